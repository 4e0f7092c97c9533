"""A path of ever bolder policies: of all that are tried, those that no other beats.

    for policy in lay_path(replays, checkpoints):
        judged = replays.judge(policy)
        judged.cost / replays.baseline, judged.regret   # by prompt

How many go on falls with a power of the length: keep = first * (begin / length) ** power. Two
numbers and the lengths are all that is searched. On a few dozen prompts a number for each length
finds more in the prompts it has seen, and holds less on others.
"""

from collections.abc import Iterator, Sequence

from specrej.calibration.replays import Replays
from specrej.search.calibrated import CalibratedPolicy, Stage

_FIRST = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
"""Share of the candidates that the first decision keeps."""
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_STRIDES = (1, 2, 3)


def lay_path(replays: Replays, checkpoints: Sequence[int]) -> list[CalibratedPolicy]:
    """From Best-of-N, which loses nothing, to policies that lose much.

    Each is cheaper than the one before it, and none that loses less is as cheap.
    """
    policies = [CalibratedPolicy(n=replays.n, decisions=()), *_grid(replays.n, checkpoints)]
    figures = [
        (float(judged.cost.sum()), float(judged.regret.mean()), place)
        for place, judged in enumerate(map(replays.judge, policies))
    ]
    path: list[CalibratedPolicy] = []
    least = float("inf")
    for _, regret, place in sorted(figures):
        if regret < least:
            least = regret
            path.append(policies[place])
    return path[::-1]


def _grid(n: int, checkpoints: Sequence[int]) -> Iterator[CalibratedPolicy]:
    """Every choice of lengths, share and power; of those that come to the same, one."""
    found = set()
    for lengths in {
        tuple(checkpoints[at::by]) for at in range(len(checkpoints)) for by in _STRIDES
    }:
        for share in _FIRST:
            for power in _POWERS:
                decisions = _decisions(n, lengths, share, power)
                if decisions and decisions not in found:
                    found.add(decisions)
                    yield CalibratedPolicy(n=n, decisions=decisions)


def _decisions(n: int, lengths: Sequence[int], share: float, power: float) -> tuple[Stage, ...]:
    """Where fewer stay than before: a decision that rejects nobody only costs the reward's
    reading.
    """
    stages: list[Stage] = []
    fewest = n
    for length in lengths:
        keep = max(round(n * share * (lengths[0] / length) ** power), 1)
        if keep < fewest:
            stages.append(Stage(length, keep))
            fewest = keep
    return tuple(stages)
