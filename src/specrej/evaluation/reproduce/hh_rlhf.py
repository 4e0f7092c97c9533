"""The row `hh-rlhf`: how often a method wins or ties against vanilla decoding."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from specrej.evaluation.intervals import mean_of
from specrej.evaluation.judge import JUDGEMENTS, judge_pair
from specrej.evaluation.judge_scores import SCORES_FILE, score_pair
from specrej.evaluation.reproduce.protocol import (
    Answered,
    Judgement,
    Measured,
    Protocol,
    Question,
)
from specrej.evaluation.reproduce.sharing import bias_figures, measured, note_left_out, percent
from specrej.evaluation.rows import BenchRow

_WON = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def _questions(answered: Answered) -> list[Question]:
    compared = answered.comparison.rows
    return [
        question
        for method in answered.methods
        if method != answered.baseline
        for row, other in zip(compared[method], compared[answered.baseline], strict=True)
        for question in _both(row, other)
    ]


def _both(row: BenchRow, other: BenchRow) -> list[Question]:
    key = {
        "prompt_id": row["prompt_id"],
        "method": row["method"],
        "baseline": other["method"],
    }
    return [
        Question(SCORES_FILE, key, partial(score_pair, row=row, other=other)),
        Question(JUDGEMENTS, key, partial(judge_pair, row=row, other=other)),
    ]


def _figures(answered: Answered) -> list[Measured]:
    found = []
    for method in answered.methods:
        if method == answered.baseline:
            continue
        scored, strict = (
            [
                row
                for row in answered.judged(file, method, answered.comparison.prompt_ids)
                if row["baseline"] == answered.baseline
            ]
            for file in (SCORES_FILE, JUDGEMENTS)
        )
        won = [(_WON[row["verdict"]], row) for row in scored if row["verdict"] in _WON]
        found += [
            *_rates(method, scored, ""),
            *_rates(method, strict, ", both orders"),
            *bias_figures(method, won),
            *_orders(method, strict),
        ]
    return found


def _rates(method: str, rows: Sequence[Judgement], of: str) -> list[Measured]:
    """Shares of all judgements, those that failed included. A prompt on which vanilla decoding
    failed has none.
    """
    verdicts = np.array([row["verdict"] for row in rows], dtype=str)
    shares = {
        "win-tie": np.isin(verdicts, ["win", "tie"]),
        "win": verdicts == "win",
        "tie": verdicts == "tie",
        "loss": verdicts == "loss",
        "failed": verdicts == "failed",
    }
    return [
        measured(f"{name}{of}", method, "%", percent(mean_of(share.astype(np.float64))), len(rows))
        for name, share in shares.items()
    ]


def _orders(method: str, rows: Sequence[Judgement]) -> list[Measured]:
    """How often the judge that reads both orders prefers the method in each place, a tie as a
    half.
    """
    found = []
    for place in ("first", "second"):
        won = [_WON[row[place]] for row in rows if row[place] is not None]
        value = percent(mean_of(np.array(won, dtype=np.float64)))
        name = f"win rate, shown {place}, both orders"
        found.append(measured(name, method, "%", value, len(won)))
    return found


ROW = Protocol(
    name="hh-rlhf",
    title="Share of prompts on which vanilla decoding is not better",
    known="no number is given",
    prompts="hh_rlhf",
    num_prompts=300,
    methods=("best_of_n:1", "speculative_rejection:0.5"),
    chief="speculative_rejection:0.5",
    settings={"max_new_tokens": 128},
    needs_judge=True,
    needs="one GPU for generator and reward model, 900 requests a method to GPT-4 (300 for the "
    "row's own figure)",
    open_points=(
        "Which 300 prompts: here the first of the test split, up to the last question.",
        "How three scores make a verdict: here their sums are compared, equal sums tie.",
        "The order of a pair comes from a hash of the prompt's id. Beside it stands our judge that "
        "asks both orders: what they disagree on is a tie.",
        "Sampling is not named: temperature and filters are the defaults of specrej.",
        "A failed judgement stays in the denominator.",
    ),
    questions=_questions,
    figures=_figures,
    notes=note_left_out,
)
