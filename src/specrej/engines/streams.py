"""Random numbers by address: one uniform for each (seed, candidate, position), in any order, on any
machine.

A candidate's draws depend on nothing but its own address, so rejecting its neighbours never changes
its tokens, and a run can be replayed. The generator is Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011): the seed is its key, candidate and position are its
counter.

    uniforms(seed=1, candidates=[0, 1, 2], position=17)     # three numbers in [0, 1)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(
    counter: Sequence[NDArray[np.uint64]], key: tuple[int, int]
) -> list[NDArray[np.uint64]]:
    """Ten rounds of Philox on four arrays of 32-bit words (held in uint64). Returns four arrays
    of the same kind.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def uniforms(
    seed: int, candidates: Sequence[int], position: int | Sequence[int]
) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each candidate, shape `[len(candidates)]`.

    Args:
        seed: below 2^64.
        candidates: index of each candidate.
        position: number of tokens that the candidates have so far, of all or of each.
    """
    words = _words(seed, candidates, position, use=0)
    high, low = words[0] >> np.uint64(5), words[1] >> np.uint64(6)
    uniform: NDArray[np.float64] = (
        high.astype(np.float64) * 2.0**26 + low.astype(np.float64)
    ) * 2.0**-53
    return uniform


def seeds(seed: int, candidates: Sequence[int], position: int = 0, *, bits: int = 63) -> list[int]:
    """A seed for each candidate, for engines that draw with a generator of their own.

    Args:
        seed: below 2^64.
        candidates: index of each candidate.
        position: number of tokens that the candidates have when their generators begin.
        bits: how large a seed the engine takes, at most 64.
    """
    words = _words(seed, candidates, position, use=1)
    return [int(value) >> (64 - bits) for value in (words[0] << _SHIFT) | words[1]]


def _words(
    seed: int, candidates: Sequence[int], position: int | Sequence[int], use: int
) -> list[NDArray[np.uint64]]:
    """Four random words for each candidate; numbers for another use are independent of these."""
    index = np.asarray(candidates, dtype=np.uint64)
    still = np.zeros_like(index)
    at = still + np.asarray(position, dtype=np.uint64)
    counter = [at, index & _LOW, index >> _SHIFT, still + np.uint64(use)]
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
