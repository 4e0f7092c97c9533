"""Methods beside a baseline, prompt by prompt: one number for each, from the rows of a bench.

    comparison = align(rows, baseline="best_of_n:64")
    rewards(comparison, "speculative_rejection:0.5")  # array, in the order of comparison.prompt_ids

Which prompts count. Only those that every method has ended, well or not: a stopped run is compared
on what all have done. A method that failed on a prompt stays in: it loses there, and its score is
that of the worst answer that the baseline could have chosen, the lowest reward (highest perplexity)
of the baseline's complete candidates. What it would have cost is not known, so compute is compared
on the prompts on which method and baseline both came to their end. Where the baseline failed there
is nothing to compare with: the prompt is left out. All of this is counted.

Definitions are those of Sun et al. (NeurIPS 2024, arXiv 2410.20290) unless a docstring says
otherwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from specrej.errors import UnknownNameError
from specrej.evaluation.intervals import Array
from specrej.evaluation.rows import BenchRow, TurnRow
from specrej.flops import FLOPS_PARTS, total_of

Compute = Literal["seconds", "tokens", "flops"]
Verdict = Literal["win", "tie", "loss", "failed"]
"""Of a judge; failed: it gave none that can be read."""

EQUAL_REWARDS = 1e-9
"""Rewards that differ by no more are equal."""

NARROW = 0.05
"""Share of the median prompt's spread below which an improvement score is to be doubted."""

UNCLEAR = 2.0
"""A judge that failed, among the outcomes 1 (win), 0 (tie) and -1 (loss)."""

_OUTCOMES: dict[Verdict, float] = {"win": 1.0, "tie": 0.0, "loss": -1.0, "failed": UNCLEAR}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows that can be compared: `rows[method][i]` is of the prompt `prompt_ids[i]`."""

    baseline: str
    prompt_ids: tuple[str, ...]
    rows: Mapping[str, Sequence[BenchRow]]
    num_unfinished: int
    num_without_baseline: int


def align(rows: Iterable[BenchRow], baseline: str) -> Comparison:
    """Prompts that all methods have ended and the baseline has not failed on.

    Raises:
        UnknownNameError: the run has no such method.
    """
    by_method: dict[str, dict[str, BenchRow]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["prompt_id"]] = row
    if baseline not in by_method:
        raise UnknownNameError("method", baseline, by_method)
    known = dict.fromkeys(prompt_id for ended in by_method.values() for prompt_id in ended)
    ended = [
        prompt_id
        for prompt_id in known
        if all(prompt_id in rows_of for rows_of in by_method.values())
    ]
    kept = [prompt_id for prompt_id in ended if by_method[baseline][prompt_id]["error"] is None]
    aligned = {
        method: [rows_of[prompt_id] for prompt_id in kept] for method, rows_of in by_method.items()
    }
    return Comparison(
        baseline, tuple(kept), aligned, len(known) - len(ended), len(ended) - len(kept)
    )


def failed(comparison: Comparison, method: str) -> NDArray[np.bool_]:
    """Where the method failed."""
    return np.array([row["error"] is not None for row in comparison.rows[method]], dtype=bool)


def rewards(comparison: Comparison, method: str) -> Array:
    """The chosen answer's reward, mean over turns."""
    return _by_turn(
        comparison, method, lambda turn, _: turn["reward"], lambda turn: turn["lowest_reward"]
    )


def improvements(comparison: Comparison, method: str) -> Array:
    """100 * (1 + (max of the method - max of the baseline) / (max - min of the baseline)), mean
    over turns.

    A method's max is the reward of the answer it chose: the partial rewards of rejected candidates
    are none of an answer. Turns on which the baseline's candidates are all equal have no scale and
    are left out; NaN where no turn is left.
    """

    def score(reward: float, turn: TurnRow) -> float:
        spread = turn["reward"] - turn["lowest_reward"]
        return 100 * (1 + (reward - turn["reward"]) / spread) if spread > 0 else np.nan

    return _by_turn(
        comparison,
        method,
        lambda turn, baseline: score(turn["reward"], baseline),
        lambda baseline: score(baseline["lowest_reward"], baseline),
    )


def narrow(comparison: Comparison) -> NDArray[np.bool_]:
    """Where some turn's scale of the improvement score, the spread of the baseline, is near zero
    and not zero.

    Near zero is below NARROW of the median over the turns of all prompts, and what rounding could
    make.
    """
    rows = [
        [t["reward"] - t["lowest_reward"] for t in row["turns"]]
        for row in comparison.rows[comparison.baseline]
    ]
    known = [spread for spreads in rows for spread in spreads if spread > 0]
    least = max(NARROW * float(np.median(known)), EQUAL_REWARDS) if known else 0.0
    return np.array([any(0 < spread < least for spread in spreads) for spreads in rows], dtype=bool)


def perplexities(comparison: Comparison, method: str) -> Array:
    """The chosen answer's perplexity, of its own tokens, mean over turns."""

    def highest(turn: TurnRow) -> float:
        known = (
            c["perplexity"]
            for c in turn["candidates"]
            if c["state"] == "complete" and c["perplexity"] is not None
        )
        return max(known, default=np.nan)  # a NaN among them would make it depend on their order

    return _by_turn(comparison, method, lambda turn, _: _number(turn["perplexity"]), highest)


def compute(comparison: Comparison, method: str, measure: Compute) -> Array:
    """Seconds, generated tokens or FLOPs, sum over turns; NaN where the method failed or a part
    is not known.
    """

    def of_turn(turn: TurnRow) -> float:
        if measure == "flops":
            return _number(total_of(turn["flops"][part] for part in FLOPS_PARTS))
        return (
            turn["usage"]["total_s"] if measure == "seconds" else turn["usage"]["generated_tokens"]
        )

    totals = np.array(
        [sum(map(of_turn, row["turns"])) for row in comparison.rows[method]], dtype=np.float64
    )
    return np.where(failed(comparison, method), np.nan, totals)


def outcomes(comparison: Comparison, method: str) -> Array:
    """1 where the reward is strictly higher than the baseline's, -1 where it is lower or the method
    failed.

    0 where they are equal within EQUAL_REWARDS, or where the answers are the same text.
    """
    difference = rewards(comparison, method) - rewards(comparison, comparison.baseline)
    texts, others = (
        [_texts(row) for row in comparison.rows[name]] for name in (method, comparison.baseline)
    )
    same = np.array([mine == other for mine, other in zip(texts, others, strict=True)], dtype=bool)
    is_tie = same | (np.abs(difference) <= EQUAL_REWARDS)
    return np.where(failed(comparison, method), -1.0, np.where(is_tie, 0.0, np.sign(difference)))


def judged(comparison: Comparison, method: str, verdicts: Mapping[str, Verdict]) -> Array:
    """1, 0, -1 or UNCLEAR by a judge's verdicts on prompts; NaN where there is none. A method
    that failed has lost.
    """
    given = [
        _OUTCOMES[verdicts[name]] if name in verdicts else np.nan for name in comparison.prompt_ids
    ]
    return np.where(failed(comparison, method), -1.0, np.array(given, dtype=np.float64))


def right(comparison: Comparison, method: str) -> Array:
    """1 where all answers to a prompt that can be checked are right, else 0; NaN where none can be.

    A method that failed is wrong where another's answer could be checked.
    """
    given = [_is_right(row) for row in comparison.rows[method]]
    can_be = [
        any(_is_right(rows[place]) is not None for rows in comparison.rows.values())
        for place in range(len(given))
    ]
    wrong = failed(comparison, method) & np.array(can_be, dtype=bool)
    known = np.array([np.nan if one is None else float(one) for one in given], dtype=np.float64)
    return np.where(wrong, 0.0, known)


def num_unchecked(comparison: Comparison, method: str) -> int:
    """Prompts with an answer of which it cannot be told whether it is right."""
    return sum(
        any("is_right" in turn and turn["is_right"] is None for turn in row["turns"])
        for row in comparison.rows[method]
    )


def _is_right(row: BenchRow) -> bool | None:
    known = [turn["is_right"] for turn in row["turns"] if "is_right" in turn]
    return None if row["error"] or not known or None in known else all(known)


def variances(comparison: Comparison) -> Array:
    """Variance of the rewards of the baseline's complete candidates, mean over turns."""

    def of_turn(turn: TurnRow) -> float:
        final = [
            list(c["rewards"].values())[-1] for c in turn["candidates"] if c["state"] == "complete"
        ]
        return float(np.var(final)) if np.ptp(final) > 0 else 0.0

    rows = comparison.rows[comparison.baseline]
    return np.array(
        [np.mean([of_turn(turn) for turn in row["turns"]]) for row in rows], dtype=np.float64
    )


def _by_turn(
    comparison: Comparison,
    method: str,
    of_turn: Callable[[TurnRow, TurnRow], float],
    of_failure: Callable[[TurnRow], float],
) -> Array:
    """Means over turns of `of_turn(turn, baseline's turn)`, of `of_failure(baseline's turn)` where
    the method failed.

    Turns that give NaN are left out.
    """
    means = []
    for row, base in zip(
        comparison.rows[method], comparison.rows[comparison.baseline], strict=True
    ):
        if row["error"] is not None:
            values = [of_failure(turn) for turn in base["turns"]]
        else:
            values = [of_turn(*turns) for turns in zip(row["turns"], base["turns"], strict=True)]
        present = [value for value in values if not np.isnan(value)]
        means.append(sum(present) / len(present) if present else np.nan)
    return np.array(means, dtype=np.float64)


def _texts(row: BenchRow) -> list[str]:
    return [turn["text"] for turn in row["turns"]]


def _number(value: float | None) -> float:
    return np.nan if value is None else value
