"""A path of ever bolder policies, each the cheapest that was found at its price of regret.

    for policy in lay_path(replays, checkpoints):
        judged = replays.judge(policy)
        judged.cost / replays.baseline, judged.regret   # by prompt

A policy is a number of candidates to begin with and how many stay at each checkpoint. The price
says how much compute a loss of one spread is worth; as it falls, policies grow bold. At every price
the policy before is improved one number at a time until nothing improves it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from specrej.calibration.replays import Replays
from specrej.search.calibrated import CalibratedPolicy, Stage

PRICES = (30.0, 10.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
"""In the cost of Best-of-N, for a regret of one spread."""
_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 3 / 64, 1 / 32, 1 / 64)
_ROUNDS = 5


class _Numbers(NamedTuple):
    """Begun, and kept at each checkpoint; as many as begun is no decision."""

    n: int
    keeps: tuple[int, ...]


def lay_path(replays: Replays, checkpoints: Sequence[int]) -> list[CalibratedPolicy]:
    """From Best-of-N, which loses nothing, to policies that lose much; none twice."""
    sizes = sorted({max(round(replays.n * share), 1) for share in _SHARES}, reverse=True)
    numbers = _Numbers(replays.n, (replays.n,) * len(checkpoints))
    found = [numbers]
    for price in PRICES:

        def worth(tried: _Numbers, price: float = price) -> float:
            judged = replays.judge(_policy(tried, checkpoints))
            saved = judged.cost.sum() / replays.baseline.sum()
            return float(saved + price * judged.regret.mean())

        numbers = _improve(numbers, sizes, worth)
        if numbers not in found:
            found.append(numbers)
    policies = [_policy(numbers, checkpoints) for numbers in found]
    return sorted(policies, key=lambda policy: -replays.judge(policy).cost.sum())


def _improve(
    numbers: _Numbers, sizes: Sequence[int], worth: Callable[[_Numbers], float]
) -> _Numbers:
    least = worth(numbers)
    for _ in range(_ROUNDS):
        before = least
        for place in range(-1, len(numbers.keeps)):
            for size in sizes:
                tried = _with(numbers, place, size)
                if (value := worth(tried)) < least - 1e-12:
                    numbers, least = tried, value
        if least == before:
            break
    return numbers


def _with(numbers: _Numbers, place: int, size: int) -> _Numbers:
    """The same with another number in one place: -1 is who begins."""
    if place < 0:
        return _Numbers(size, tuple(min(keep, size) for keep in numbers.keeps))
    keeps = (*numbers.keeps[:place], min(size, numbers.n), *numbers.keeps[place + 1 :])
    return _Numbers(numbers.n, keeps)


def _policy(numbers: _Numbers, checkpoints: Sequence[int]) -> CalibratedPolicy:
    decisions = (
        Stage(length, keep)
        for length, keep in zip(checkpoints, numbers.keeps, strict=True)
        if keep < numbers.n
    )
    return CalibratedPolicy(n=numbers.n, decisions=tuple(decisions))
