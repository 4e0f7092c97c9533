"""What a step frees stays with the process, for the next step.

    keep_freed()    # on a CPU; as often as one likes

The logits of 256 rows of SmolLM2 are 50 MB. Glibc maps anew whatever is larger than 32 MB, and the
kernel clears each of its pages: a tenth of such a step. What is kept is no more than a step needs
at once, and some hundreds of megabytes at most.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_LARGEST = 1 << 28
"""Bytes: what is larger is mapped for itself, as before."""
_DECIDED = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
"""Who has set one of them has decided."""


def keep_freed() -> None:
    """Have glibc keep what is freed, unless the environment says otherwise. Other C libraries are
    left as they are.
    """
    if _DECIDED.isdisjoint(os.environ):
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_MMAP_THRESHOLD, _LARGEST)
            set_option(_TRIM_THRESHOLD, 2 * _LARGEST)
