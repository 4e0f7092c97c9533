"""What methods gained and what they cost: everything that a bench's table and report show, from its
rows.

    summary = summarize(rows, baseline="best_of_n:64")
    # {"value": 104.1, "low": 99.0, "high": 109.6}
    summary["methods"]["speculative_rejection:0.5"]["improvement"]

The figures of single prompts, and what becomes of failures, are in `comparison`; compute and
speedup in `speedup`; the intervals in `intervals`. Risk is that of DARC (arXiv 2603.08145).
"""

from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.comparison import (
    UNCLEAR,
    Comparison,
    Compute,
    Verdict,
    align,
    failed,
    improvements,
    judged,
    narrow,
    num_unchecked,
    outcomes,
    perplexities,
    rewards,
    right,
    variances,
)
from specrej.evaluation.intervals import Array, Estimate, estimate, mean_of, median_of, share_of
from specrej.evaluation.judge import VerdictRow
from specrej.evaluation.rows import BenchRow, TurnRow
from specrej.evaluation.speedup import Score, Speedup, largest_best_of_n, relative_compute, speedup
from specrej.flops import FLOPS_PARTS, total_of

COMPUTES: tuple[Compute, ...] = ("seconds", "tokens", "flops")
SCORES: tuple[Score, ...] = ("reward", "improvement")
RISK_AVERSION = 1.0
"""Lambda of mean - lambda * sigma."""


class Rates(TypedDict):
    """Shares of prompts."""

    win: Estimate
    tie: Estimate
    loss: Estimate
    num_prompts: int
    """All that the shares are of."""
    unclear: Estimate
    """Neither won, tied nor lost: the judge's replies could not be read. Zero where rewards
    decide."""
    num_unclear: int


class Risk(TypedDict):
    """How bad it gets, in rewards."""

    mean_minus_sigma: Estimate
    """Mean - RISK_AVERSION * standard deviation over prompts (of the population: divided by
    their number)."""
    cvar: Estimate
    """Mean over the worst tenth of prompts, rounded down, at least one."""
    high_variance: Estimate
    """Mean over the prompts of `Summary.high_variance_prompts`."""


class Cost(TypedDict):
    """Sums over the prompts that the method came to the end of."""

    num_prompts: int
    prompt_tokens: int
    generated_tokens: int
    reward_tokens: int
    seconds: dict[str, float]
    """By part: prefill, decode, reward, other, total."""
    flops: dict[str, float | None]
    """By part: prefill, decode, reward, total; None where it is not known."""
    peak_kv_bytes: int
    """The most of any prompt."""


class Accuracy(TypedDict):
    """Of prompts that say what is right."""

    share: Estimate
    """Of right answers among those checked, with Wilson's interval."""
    num_checked: int
    num_unchecked: int
    """Prompts that ask for something that cannot be checked here."""


class MethodSummary(TypedDict):
    """One method beside the baseline."""

    num_failed: int
    """Of `Summary.num_prompts`."""
    reward: Estimate
    difference: Estimate
    """Of the reward to the baseline's, prompt by prompt."""
    improvement: Estimate
    """Percent; the mean over prompts."""
    improvement_median: Estimate
    """Which no single prompt can carry off; see `Summary.narrow_prompts`."""
    relative: dict[Compute, Estimate]
    """Compute by the baseline's."""
    speedup: dict[Score, dict[Compute, Speedup | None]]
    """At equal score; None where the run has no Best-of-N, the compute is not known, or no
    prompt has the score."""
    perplexity: Estimate
    """Of the chosen answers, of the answer's own tokens. The paper takes prompt and answer
    together."""
    speedup_to_largest: dict[Compute, Estimate] | None
    """Compute of the largest Best-of-N by the method's, whatever their scores: the paper's
    perplexity table.

    The largest is the one that draws most tokens; None where the run has no Best-of-N.
    """
    accuracy: Accuracy
    by_reward: Rates
    by_judge: dict[str, Rates]
    """By judge's name, over the prompts that it has judged: judges are never put together. Empty
    where none has."""
    risk: Risk
    cost: Cost


class Summary(TypedDict):
    """All methods of a run."""

    baseline: str
    num_prompts: int
    """Prompts that the figures rest on."""
    num_unfinished: int
    """Left out: some method has not ended them yet."""
    num_without_baseline: int
    """Left out: the baseline failed on them."""
    num_flat: int
    """Left out of improvement scores: all of the baseline's candidates have the same reward."""
    narrow_prompts: list[str]
    """Prompts whose improvement score is to be doubted: the baseline's best and lowest reward are
    nearly the same.

    They differ by less than NARROW of the median prompt's difference, so such a score weighs that
    much more.
    """
    high_variance_prompts: list[str]
    """The fifth of prompts, at least one, on which the baseline's candidates differ most in
    reward; none if nowhere."""
    methods: dict[str, MethodSummary]
    """In the order in which the run has them."""


def summarize(
    rows: Iterable[BenchRow], baseline: str, verdicts: Iterable[VerdictRow] = ()
) -> Summary:
    """All figures of a run, in JSON's types.

    Args:
        rows: of a bench, in any order, complete or not.
        baseline: the method that the others are compared with, as the rows name it.
        verdicts: of any judges, as `judge.read_verdicts` gives them; those against another baseline
            are not read.

    Raises:
        UnknownNameError: the rows have no such method; names those there are.
    """
    comparison = align(rows, baseline)
    by_judge = _by_judge(comparison, verdicts)
    widest = widest_fifth(variances(comparison))
    return {
        "baseline": baseline,
        "num_prompts": len(comparison.prompt_ids),
        "num_unfinished": comparison.num_unfinished,
        "num_without_baseline": comparison.num_without_baseline,
        "num_flat": int(np.isnan(improvements(comparison, baseline)).sum()),
        "narrow_prompts": [
            comparison.prompt_ids[place] for place in np.flatnonzero(narrow(comparison))
        ],
        "high_variance_prompts": [comparison.prompt_ids[place] for place in widest],
        "methods": {
            method: _method(comparison, method, widest, by_judge[method])
            for method in comparison.rows
        },
    }


def widest_fifth(spread: Array) -> NDArray[np.intp]:
    """Places of the fifth of prompts, rounded down, at least one, whose figure is the highest; none
    whose figure is zero.
    """
    widest = np.argsort(-spread, kind="stable")[: max(1, len(spread) // 5)]
    return widest[spread[widest] > 0]


def _by_judge(
    comparison: Comparison, verdicts: Iterable[VerdictRow]
) -> dict[str, dict[str, dict[str, Verdict]]]:
    """Verdicts against the baseline: by method, judge and prompt."""
    found: dict[str, dict[str, dict[str, Verdict]]] = {method: {} for method in comparison.rows}
    for verdict in verdicts:
        if verdict["baseline"] == comparison.baseline and verdict["method"] in found:
            of_judge = found[verdict["method"]].setdefault(verdict["judge"], {})
            of_judge[verdict["prompt_id"]] = verdict["verdict"]
    return found


def default_baseline(methods: Sequence[str]) -> str:
    """The largest Best-of-N, or the first method where there is none."""
    sizes = {
        method: int(method.partition(":")[2])
        for method in methods
        if method.startswith("best_of_n:")
    }
    return max(sizes, key=lambda method: sizes[method]) if sizes else methods[0]


def _method(
    comparison: Comparison,
    method: str,
    widest: NDArray[np.intp],
    by_judge: dict[str, dict[str, Verdict]],
) -> MethodSummary:
    scores = improvements(comparison, method)
    own, base = rewards(comparison, method), rewards(comparison, comparison.baseline)
    largest = largest_best_of_n(comparison)
    return {
        "num_failed": int(failed(comparison, method).sum()),
        "reward": mean_of(own),
        "difference": mean_of(own - base),
        "improvement": mean_of(scores),
        "improvement_median": median_of(scores),
        "relative": {
            c: relative_compute(comparison, method, c, comparison.baseline) for c in COMPUTES
        },
        "speedup": {
            score: {c: speedup(comparison, method, score, c) for c in COMPUTES} for score in SCORES
        },
        "perplexity": mean_of(perplexities(comparison, method)),
        "speedup_to_largest": (
            None
            if largest is None
            else {c: relative_compute(comparison, largest, c, method) for c in COMPUTES}
        ),
        "accuracy": _accuracy(comparison, method),
        "by_reward": _rates(outcomes(comparison, method)),
        "by_judge": {
            name: _rates(judged(comparison, method, verdicts))
            for name, verdicts in by_judge.items()
        },
        "risk": _risk(own, widest),
        "cost": cost_of([row for row in comparison.rows[method] if row["error"] is None]),
    }


def _accuracy(comparison: Comparison, method: str) -> Accuracy:
    given = right(comparison, method)
    num = int((~np.isnan(given)).sum())
    return {
        "share": share_of(int(np.nansum(given)), num),
        "num_checked": num,
        "num_unchecked": num_unchecked(comparison, method),
    }


def _rates(results: Array) -> Rates:
    results = results[~np.isnan(results)]
    win, tie, loss, unclear = (
        mean_of((results == outcome).astype(np.float64)) for outcome in (1, 0, -1, UNCLEAR)
    )
    return {
        "win": win,
        "tie": tie,
        "loss": loss,
        "unclear": unclear,
        "num_prompts": len(results),
        "num_unclear": int((results == UNCLEAR).sum()),
    }


def _risk(own: Array, widest: NDArray[np.intp]) -> Risk:
    return {
        "mean_minus_sigma": mean_minus_sigma(own),
        "cvar": cvar(own),
        "high_variance": mean_of(own[widest]),
    }


def mean_minus_sigma(own: Array) -> Estimate:
    """Of rewards of prompts; see `Risk`."""
    return estimate(
        lambda drawn: own[drawn].mean(-1) - RISK_AVERSION * own[drawn].std(-1), len(own)
    )


def cvar(own: Array) -> Estimate:
    """Of rewards of prompts; see `Risk`."""
    worst = max(1, len(own) // 10)
    return estimate(lambda drawn: np.sort(own[drawn])[:, :worst].mean(-1), len(own))


def cost_of(rows: Sequence[BenchRow]) -> Cost:
    """What the turns of these rows cost."""
    turns: list[TurnRow] = [turn for row in rows for turn in row["turns"]]
    usages = [turn["usage"] for turn in turns]
    flops: dict[str, float | None] = {
        part: total_of(turn["flops"][part] for turn in turns) for part in FLOPS_PARTS
    }
    return {
        "num_prompts": len(rows),
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "generated_tokens": sum(usage["generated_tokens"] for usage in usages),
        "reward_tokens": sum(usage["reward_tokens"] for usage in usages),
        "seconds": {
            "prefill": sum(usage["prefill_s"] for usage in usages),
            "decode": sum(usage["decode_s"] for usage in usages),
            "reward": sum(usage["reward_s"] for usage in usages),
            "other": sum(usage["other_s"] for usage in usages),
            "total": sum(usage["total_s"] for usage in usages),
        },
        "flops": {**flops, "total": total_of(flops.values())},
        "peak_kv_bytes": max((usage["peak_kv_bytes"] for usage in usages), default=0),
    }
