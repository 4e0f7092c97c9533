"""Two models of vLLM in one process: the first one that ends must not take down what both stand
on."""

import subprocess
import sys
from pathlib import Path

import pytest
from in_process import reward_model

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

SCRIPT = """
import sys
from specrej.rewards.vllm import VllmClassifierReward
from specrej.testing.held import held
from specrej.types import Candidate

before = held()
one, other = (
    VllmClassifierReward(sys.argv[1], label=0, max_tokens=256, memory_bytes=2**26) for _ in range(2)
)
asked = [{"role": "user", "content": "Why?"}]
score = lambda reward: reward.open(asked).score([Candidate(0, text="So.")])
expected = score(other)
assert score(one) == expected
one.close()
one.close()
assert score(other) == expected
assert {kind for kind, _ in held() - before} >= {"socket"}
other.close()
other.close()
assert not {kind for kind, _ in held() - before} - {"thread"}, held() - before
"""


def test_a_model_goes_on_when_another_one_is_closed_and_nothing_is_left_of_both() -> None:
    given = [sys.executable, "-c", SCRIPT, reward_model()]
    done = subprocess.run(given, check=False, capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
