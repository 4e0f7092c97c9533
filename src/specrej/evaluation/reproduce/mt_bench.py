"""The rows `mt-bench` and `mt-bench-high-variance`: two turns, graded from 1 to 10."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specrej.evaluation.intervals import Array, Estimate, estimate
from specrej.evaluation.judge_grade import GRADES, LOWEST, WITH_REFERENCE, grade_turn
from specrej.evaluation.reproduce.protocol import (
    Answered,
    Judgement,
    Measured,
    Protocol,
    Question,
)
from specrej.evaluation.reproduce.sharing import (
    DARC,
    DARC_METHODS,
    DARC_OPEN,
    OPEN_VARIANCE,
    failures_of,
    high_variance,
    high_variance_ids,
    measured,
    note_left_out,
    note_variance,
    risk_figures,
)

_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
_OPEN = (
    "MT-Bench knows one answer a question: 16 candidates are ours, and the chosen answer of the "
    "first turn is in the context of the second.",
    "A judgement that cannot be read, and an answer that failed, count as 1. FastChat leaves "
    "unread ones out: that mean stands beside ours.",
    "A question of math, reasoning or coding without a reference is graded as the others are, and "
    "counted.",
    "The judge's prompts are in our words; FastChat's backup reading of [x] is not done.",
)


def _ask_about(answered: Answered, prompt_ids: Sequence[str]) -> list[Question]:
    wanted = set(prompt_ids)
    return [
        Question(
            GRADES,
            {"prompt_id": row["prompt_id"], "method": row["method"], "turn": turn},
            partial(grade_turn, row=row, turn=turn, references=task.references),
        )
        for row in answered.rows
        if row["prompt_id"] in wanted
        for task in [answered.tasks[row["prompt_id"]]]
        for turn in range(1, len(task.turns) + 1)
    ]


def _grades(answered: Answered, prompt_ids: Sequence[str]) -> list[Measured]:
    """Means over judgements: of all, by turn and by category."""
    found = []
    for method in answered.methods:
        rows = answered.judged(GRADES, method, prompt_ids)
        read = [row for row in rows if row["grade"] is not None]
        parts = {"mean grade": rows, "mean grade, unread ones left out": read}
        for turn in sorted({row["turn"] for row in rows}):
            parts[f"mean grade, turn {turn}"] = [row for row in rows if row["turn"] == turn]
        for category in sorted({row["category"] for row in rows if row["category"]}):
            parts[f"mean grade, {category}"] = [row for row in rows if row["category"] == category]
        found += [
            measured(name, method, "1 to 10", mean_grade(part), len(part))
            for name, part in parts.items()
        ]
        found.append(failures_of(method, len(rows) - len(read), len(rows)))
    return found


def mean_grade(rows: Sequence[Judgement]) -> Estimate:
    """The mean over judgements, an unread one as the lowest grade; prompts are resampled, with all
    their turns.
    """
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    place = {name: number for number, name in enumerate(ids)}
    sums, counts = np.zeros(len(ids)), np.zeros(len(ids))
    for row in rows:
        grade = LOWEST if row["grade"] is None else row["grade"]
        sums[place[row["prompt_id"]]] += grade
        counts[place[row["prompt_id"]]] += 1

    def statistic(drawn: NDArray[np.intp]) -> Array:
        means: Array = sums[drawn].sum(-1) / counts[drawn].sum(-1)
        return means

    return estimate(statistic, len(ids))


def _ungraded(answered: Answered, prompt_ids: Sequence[str]) -> list[str]:
    """What should have been graded beside a reference, and was not."""
    judged = (
        row for method in answered.methods for row in answered.judged(GRADES, method, prompt_ids)
    )
    num = sum(row["category"] in WITH_REFERENCE and not row["has_reference"] for row in judged)
    return [f"{num} grades of math, reasoning or coding had no reference."] if num else []


def _all_ids(answered: Answered) -> list[str]:
    return list(answered.tasks)


ROW = Protocol(
    name="mt-bench",
    title="Mean grade over two turns of 80 questions",
    known="no number is given",
    prompts="mt_bench",
    num_prompts=80,
    methods=DARC_METHODS,
    chief=DARC_METHODS[1],
    settings={"temperature": 0.7, "max_new_tokens": 1024, "decide": "every:64"},
    temperatures=_TEMPERATURES,
    needs_judge=True,
    needs="one GPU for generator and reward model, 160 requests a method to GPT-4",
    open_points=(
        "Temperatures are FastChat's: 0.7 for writing and roleplay, 0.1 for stem and humanities. "
        "Where it has 0 (extraction, math, coding, reasoning), Best-of-N would be one answer: "
        "there it is that of the settings, 0.7. Top-k is 50, our default: no filter is named.",
        "Speculative Rejection decides every 64 tokens: 16 candidates would never fill a GPU's "
        "memory.",
        *_OPEN,
    ),
    questions=lambda answered: _ask_about(answered, _all_ids(answered)),
    figures=lambda answered: _grades(answered, _all_ids(answered)),
    notes=lambda answered: _ungraded(answered, _all_ids(answered)),
)
HARD_ROW = Protocol(
    name="mt-bench-high-variance",
    title="Mean reward and grade over the fifth of questions on which candidates differ most",
    known="no number is given",
    prompts="mt_bench",
    num_prompts=80,
    methods=DARC_METHODS,
    chief=DARC_METHODS[1],
    settings=DARC,
    needs_judge=True,
    by_variance=True,
    needs="one 80 GB GPU for generator and reward model, 32 requests a method to GPT-4",
    open_points=(
        "The setting is DARC's, which reports a reward: one temperature for all categories, 320 "
        "tokens a turn.",
        *DARC_OPEN,
        *_OPEN,
        OPEN_VARIANCE,
    ),
    questions=lambda answered: _ask_about(answered, high_variance_ids(answered)),
    figures=lambda answered: [
        *risk_figures(answered, high_variance(answered)),
        *_grades(answered, high_variance_ids(answered)),
    ],
    notes=lambda answered: [
        *note_variance(answered),
        *_ungraded(answered, high_variance_ids(answered)),
        *note_left_out(answered),
    ],
)
