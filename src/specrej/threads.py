"""How many threads compute together, and how they wait for one another.

OpenMP reads the environment once, when torch loads it. The command and Ray's actors set theirs, so
that child processes have it too. The library sets its host's only while it loads torch.

    settle_threads()             # in a process that is ours, before torch is imported
    with while_torch_loads():    # in somebody else's
        import torch
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""OpenMP's own variable, which every runtime reads, and GNU's, which goes first where that is the
runtime. A thousand rounds are some microseconds: most waits of a step are shorter.
`benchmarks/contention.py` measures it.
"""
_WAITS = {*WAITING, "KMP_BLOCKTIME"}
"""With Intel's. Whoever has set one of them has decided."""
_COUNTS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}


def settle_threads() -> None:
    """Have OpenMP's threads sleep when they have waited a little, and be no more than the cores
    that the process may use, unless the environment says otherwise.

    By themselves they spin. On a core that another process wants, a thread that spins holds up
    the one it waits for. Threads that sleep at once cost more where nobody else wants the cores.
    OpenMP counts the cores by affinity, but knows nothing of a container's quota.
    """
    os.environ.update(_missing())


@contextmanager
def while_torch_loads() -> Iterator[None]:
    """The same for a block that may load torch; then the environment is as it was."""
    added = {} if "torch" in sys.modules else _missing()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def usable_cores(root: str | Path = "/") -> int:
    """Cores that this process may use: those of its affinity, as many as the quota of its control
    groups (version 2) pays for; a part of one counts as one.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = _cores()
    quotas = [quota for quota in map(_quota, _control_groups(Path(root))) if quota is not None]
    return max(min(cores, *map(ceil, quotas)), 1) if quotas else cores


def _missing() -> dict[str, str]:
    """What the environment does not say yet."""
    missing = dict(WAITING) if _WAITS.isdisjoint(os.environ) else {}
    if _COUNTS.isdisjoint(os.environ) and (usable := usable_cores()) < _cores():
        missing["OMP_NUM_THREADS"] = str(usable)
    return missing


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _control_groups(root: Path) -> list[Path]:
    """Directories of the control group that this process is in, and of those above it."""
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system than Linux
        return []
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return [above for name in own for above in (mounted / name, *(mounted / name).parents)]


def _quota(group: Path) -> float | None:
    """Cores that a control group may use; None where it is not limited."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None
