"""The families of policies that `benchmarks/headline.py` compares with calibrated ones."""

from collections.abc import Iterator, Sequence
from itertools import product

from specrej.calibration.path import rows_of_lengths
from specrej.calibration.replays import ROOMY
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.trace import Trace
from specrej.search.choosing import rank
from specrej.search.policies import at
from specrej.types import Policy, Rule, Standing

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
SHARES = (3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16)
POWERS = (0.0, 0.5, 1.0, 2.0)
GAPS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)


def _starts(n: int, checkpoints: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Where to decide, and how many begin."""
    yield from product(rows_of_lengths(checkpoints), sorted({n, n * 3 // 4, n // 2, n // 4}))


def by_memory(traces: Sequence[Trace], n: int, checkpoints: Sequence[int]) -> list[ReplayPolicy]:
    """The paper's algorithm: memory holds all candidates up to some length, and decides when it is
    full. The replay takes the reward of the last checkpoint before a decision.
    """
    trace = max(traces, key=lambda trace: trace.num_prompt_tokens)
    rooms = [
        trace.layout.peak_bytes(trace.num_prompt_tokens, n, length) for length in checkpoints[1:]
    ]
    return [ReplayPolicy(alpha=alpha, n=n, memory=room) for room, alpha in product(rooms, ALPHAS)]


def fixed_alphas(n: int, checkpoints: Sequence[int]) -> list[ReplayPolicy]:
    """Fixed alphas at fixed lengths: all that somebody would try by hand."""
    return [
        ReplayPolicy(
            alpha=alpha, decide="at:" + ",".join(map(str, lengths)), n=num_begun, memory=ROOMY
        )
        for (lengths, num_begun), alpha in product(_starts(n, checkpoints), ALPHAS)
    ]


def counts(n: int, checkpoints: Sequence[int]) -> list[ReplayPolicy]:
    """So many go on, falling with a power of the length; complete ones count among them."""
    found = []
    for (lengths, num_begun), share, power in product(_starts(n, checkpoints), SHARES, POWERS):
        keeps = {
            length: max(round(num_begun * share * (lengths[0] / length) ** power), 1)
            for length in lengths
        }
        found.append(_replayed(lengths, num_begun, _best(keeps)))
    return found


def gaps(n: int, checkpoints: Sequence[int]) -> list[ReplayPolicy]:
    """All within a gap to the leader, in standard deviations of the scores, that falls with a power
    of the length.
    """
    return [
        _replayed(
            lengths,
            num_begun,
            _near({length: gap * (lengths[0] / length) ** power for length in lengths}),
        )
        for (lengths, num_begun), gap, power in product(_starts(n, checkpoints), GAPS, POWERS[:3])
    ]


def _replayed(lengths: Sequence[int], n: int, keep: Rule) -> ReplayPolicy:
    policy = Policy(when=at(lengths), keep=keep, first_tokens=lengths[0], n=n)
    return ReplayPolicy(policy=policy, n=n, memory=ROOMY)


def _best(keeps: dict[int, int]) -> Rule:
    def keep(standing: Standing) -> list[bool]:
        most = keeps.get(standing.num_tokens, len(standing.scores))
        known = [] if standing.best is None else [standing.best]
        order = sorted((rank(score, place) for place, score in enumerate(standing.scores)))
        places = {index: at for at, (_, _, index) in enumerate(order)}
        return [
            not live or places[place] + sum(best >= score for best in known) < most
            for place, (score, live) in enumerate(
                zip(standing.scores, standing.is_live, strict=True)
            )
        ]

    return keep


def _near(largest: dict[int, float]) -> Rule:
    def keep(standing: Standing) -> list[bool]:
        scores = standing.scores
        mean = sum(scores) / len(scores)
        spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
        leader = max(scores if standing.best is None else [*scores, standing.best])
        least = leader - largest.get(standing.num_tokens, float("inf")) * spread
        return [
            not live or score >= least for score, live in zip(scores, standing.is_live, strict=True)
        ]

    return keep
