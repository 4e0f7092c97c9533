"""How threads that compute together wait for one another in processes that are ours.

Those are the command and Ray's actors. The library leaves the environment of its host as it is.

spin_only_briefly()             # before torch is imported
"""

import os

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""OpenMP's own variable, which every runtime reads, and GNU's, which goes first where that is the
runtime. A thousand rounds are some microseconds: most waits of a step are shorter.
`benchmarks/contention.py` measures it.
"""
_VARIABLES = {*WAITING, "KMP_BLOCKTIME"}
"""With Intel's. Whoever has set one of them has decided."""


def spin_only_briefly() -> None:
    """Have OpenMP's threads sleep when they have waited a little, unless the environment says how
    they wait.

    By themselves they spin. On a core that another process wants, a thread that spins holds up
    the one it waits for. Threads that sleep at once cost more where nobody else wants the cores.
    OpenMP reads the environment once, when torch loads it. Child processes inherit what is set
    here.
    """
    if _VARIABLES.isdisjoint(os.environ):
        os.environ.update(WAITING)
