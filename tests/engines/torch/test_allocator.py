"""Pages that a process has are used again, where glibc would have given them back."""

import os
import subprocess
import sys

import pytest

from specrej.engines.torch.allocator import _DECIDED

FAULTS = """
import resource, torch
from specrej.engines.torch.allocator import keep_freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed()
for _ in range(3):              # the heap grows once or twice
    torch.ones(1 << 24)         # 64 MiB
before = faults()
torch.ones(1 << 24)
print(faults() - before)
"""


def _num_faults(environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_what_was_freed_is_used_again_unless_the_user_has_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in _DECIDED:
        monkeypatch.delenv(name, raising=False)
    assert _num_faults(dict(os.environ)) < 100
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert _num_faults(dict(os.environ)) > 10_000
