"""What a partial reward says about the final one: correlations, the chance to lose the best, and
what a loss buys.

    correlate(partial, final)  # {"pearson": 0.71, "spearman": 0.69, "kendall": 0.52}
    correlations(traces)  # of each checkpoint: every prompt's, their mean, its interval
    loss_chances(traces, alphas=(0.25, 0.5))
    pareto_front(tokens, rewards)                    # who is beaten by nobody

Figures 2 and 4 of arXiv 2410.20290 show the correlation of partial and final reward over the
answers to a prompt. A candidate that ended by the checkpoint has its final reward there and
correlates with itself; so the figures to quote are those of the unfinished candidates, and those of
all stand beside them.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from specrej.evaluation.intervals import NUM_RESAMPLES, SEED, Estimate, mean_of
from specrej.evaluation.trace import Trace
from specrej.search.policies import fraction
from specrej.types import Standing

Measure = Literal["pearson", "spearman", "kendall"]
MEASURES: tuple[Measure, ...] = ("pearson", "spearman", "kendall")

_LEAST_POINTS = 3  # through two points there is always a line
_BLOCK = 500  # columns
_LEAST_SPREAD = 1e-12  # relative; what differs by less differs by rounding


class Correlations(TypedDict):
    """One measure at one checkpoint."""

    by_prompt: list[float | None]
    """None where it is undefined: fewer than three candidates, or all with the same reward."""
    estimate: Estimate
    """The mean over the prompts where it is defined."""


class CheckpointCorrelations(TypedDict):
    """Partial against final reward at one checkpoint."""

    num_tokens: int
    live_share: float
    """Candidates that are unfinished at the checkpoint, of all."""
    unfinished: dict[Measure, Correlations]
    """Over the candidates that are unfinished there: the default."""
    all: dict[Measure, Correlations]
    """Over all candidates, those that ended before with their final reward."""


class LossChance(TypedDict):
    """How often a single decision rejects the best candidate, and all that equal it."""

    num_tokens: int
    alpha: float
    chance: Estimate


def correlate(partial: ArrayLike, final: ArrayLike) -> dict[Measure, float | None]:
    """Pearson's, Spearman's and Kendall's (tau-b) correlation of two arrays `[n]`; None where it
    is undefined.
    """
    x, y = np.asarray(partial, dtype=np.float64), np.asarray(final, dtype=np.float64)
    if len(x) < _LEAST_POINTS or _is_constant(x) or _is_constant(y):
        return dict.fromkeys(MEASURES)
    results = (stats.pearsonr(x, y), stats.spearmanr(x, y), stats.kendalltau(x, y))
    return {name: float(result.statistic) for name, result in zip(MEASURES, results, strict=True)}


def correlations(traces: Sequence[Trace]) -> list[CheckpointCorrelations]:
    """Of every checkpoint that the traces have in common."""
    return [_at_checkpoint(traces, place) for place in range(len(traces[0].checkpoints))]


def _at_checkpoint(traces: Sequence[Trace], place: int) -> CheckpointCorrelations:
    num_tokens = traces[0].checkpoints[place]
    live = [trace.lengths > num_tokens for trace in traces]
    pairs = [(trace.rewards[:, place], trace.final_rewards) for trace in traces]
    unfinished = [
        correlate(x[is_live], y[is_live]) for (x, y), is_live in zip(pairs, live, strict=True)
    ]
    return CheckpointCorrelations(
        num_tokens=num_tokens,
        live_share=float(np.mean(np.concatenate(live))),
        unfinished=_by_measure(unfinished),
        all=_by_measure([correlate(x, y) for x, y in pairs]),
    )


def _by_measure(of_prompts: Sequence[dict[Measure, float | None]]) -> dict[Measure, Correlations]:
    return {name: _summary([of_prompt[name] for of_prompt in of_prompts]) for name in MEASURES}


def _summary(values: list[float | None]) -> Correlations:
    return Correlations(by_prompt=values, estimate=mean_of(np.array(values, dtype=np.float64)))


def is_best_lost(partial: ArrayLike, final: ArrayLike, alpha: float) -> bool:
    """Whether a decision on these partial rewards `[n]` with this alpha rejects all of the best
    final one.
    """
    scores = np.asarray(partial, dtype=np.float64).tolist()
    stays = np.array(fraction(alpha)(Standing(0, scores, [True] * len(scores))))
    rewards = np.asarray(final)
    return bool(rewards[stays].max() < rewards.max())


def loss_chances(traces: Sequence[Trace], alphas: Sequence[float]) -> list[LossChance]:
    """How often a single decision loses the best candidate, by checkpoint and alpha, over
    prompts.
    """
    places = [(place, alpha) for place in range(len(traces[0].checkpoints)) for alpha in alphas]
    lost = [
        [
            is_best_lost(trace.rewards[:, place], trace.final_rewards, alpha)
            for place, alpha in places
        ]
        for trace in traces
    ]
    return [
        LossChance(num_tokens=traces[0].checkpoints[place], alpha=alpha, chance=chance)
        for (place, alpha), chance in zip(
            places, estimates(np.array(lost, dtype=np.float64)), strict=True
        )
    ]


def estimates(values: NDArray[np.float64]) -> list[Estimate]:
    """`intervals.mean_of` of each column of `[prompts, columns]`, without NaN; for thousands of
    columns at once.
    """
    num_prompts = len(values)
    if num_prompts < 2:
        return [mean_of(column) for column in values.T]
    drawn = np.random.default_rng(SEED).integers(num_prompts, size=(NUM_RESAMPLES, num_prompts))
    weights = np.stack([np.bincount(row, minlength=num_prompts) for row in drawn]) / num_prompts
    tail = int(NUM_RESAMPLES * 0.025)
    # By blocks: the resamples of thousands of policies at once would take gigabytes.
    blocks = np.array_split(values, -(-values.shape[1] // _BLOCK), axis=1)
    ends = [np.sort(weights @ block, axis=0)[[tail, -1 - tail]] for block in blocks]
    return [
        Estimate(value=value, low=low, high=high)
        for value, low, high in np.vstack([values.mean(axis=0), np.hstack(ends)]).T.tolist()
    ]


def pareto_front(compute: ArrayLike, reward: ArrayLike) -> list[int]:
    """Indices of those than which none costs less or equal and gains more or equal; by rising cost.

    Of equals the first is taken.
    """
    costs, gains = np.asarray(compute, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    front: list[int] = []
    for index in np.lexsort((-gains, costs)).tolist():
        if not front or gains[index] > gains[front[-1]]:
            front.append(index)
    return front


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _LEAST_SPREAD * np.abs(values).max())
