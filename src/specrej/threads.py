"""How threads that compute together wait for one another in processes that are ours.

Those are the command and Ray's actors. The library leaves the environment of its host as it is.

sleep_while_waiting()           # before torch is imported
"""

import os

_VARIABLES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""OpenMP's own, and those of GNU's and Intel's runtimes. The first one speaks to both."""


def sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep while they wait, unless the environment says how they wait.

    By themselves they spin. On a core that another process wants, a thread that spins holds up
    the one it waits for. OpenMP reads the environment once, when torch loads it. Child processes
    inherit what is set here.
    """
    if _VARIABLES.isdisjoint(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "passive"
