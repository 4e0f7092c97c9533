"""The row `alpacafarm`: win rate against Best-of-120 of the same model and reward, Table 1 of the
paper.
"""

from dataclasses import replace

import numpy as np

from specrej.evaluation.comparison import improvements
from specrej.evaluation.intervals import mean_of
from specrej.evaluation.reproduce.protocol import Answered, Measured, Protocol, Question
from specrej.evaluation.reproduce.sharing import (
    measured,
    note_left_out,
    preference_figures,
    preference_notes,
    weigh_all,
)


def _others(answered: Answered) -> dict[str, str]:
    """The first method's answers; a prompt on which it failed has none, and is left out."""
    rows = answered.comparison.rows[answered.baseline]
    return {row["prompt_id"]: row["turns"][0]["text"] for row in rows}


def _questions(answered: Answered) -> list[Question]:
    others = _others(answered)
    return weigh_all(answered, others, answered.baseline, list(others))


def _figures(answered: Answered) -> list[Measured]:
    others = _others(answered)
    judged = preference_figures(answered, others, answered.baseline, list(others))
    return [*judged, *_scores(answered)]


def _scores(answered: Answered) -> list[Measured]:
    """What needs no judge."""
    comparison = answered.comparison
    scores = {method: improvements(comparison, method) for method in answered.methods}
    return [
        measured("improvement score", method, "%", mean_of(score), int(np.isfinite(score).sum()))
        for method, score in scores.items()
    ]


def _notes(answered: Answered) -> list[str]:
    others = _others(answered)
    notes = preference_notes(answered, others, answered.baseline, list(others))
    return [*notes, *note_left_out(answered)]


ROW = Protocol(
    name="alpacafarm",
    title="Win rate and length-controlled win rate against Best-of-120",
    known="73.60 and 77.91 with Llama-3-8B and ArmoRM at alpha = 0.5 (the paper, Table 1)",
    prompts=None,
    num_prompts=100,
    methods=("best_of_n:120", "speculative_rejection:0.5"),
    chief="speculative_rejection:0.5",
    settings={"temperature": 1.0, "top_k": 50, "top_p": 1.0, "max_new_tokens": 2048},
    needs_judge=True,
    single_turn=True,
    needs="one H100 for generator and reward model, the paper's 100 AlpacaFarm prompts as a file, "
    "100 requests of one token a method to GPT-4-Turbo, and alpaca_eval",
    open_points=(
        "The order of a pair comes from a hash of the instruction, not from alpaca_eval's seed.",
        "The paper's length-controlled rates come from alpaca_eval as it was in 2024. On other "
        "prompts than its own 805 we use its model without difficulties of instructions.",
        "A judgement that cannot be read is counted, and in no rate.",
    ),
    questions=_questions,
    figures=_figures,
    notes=_notes,
)
UNJUDGED_ROW = replace(
    ROW, needs_judge=False, questions=lambda answered: [], figures=_scores, notes=note_left_out
)
"""What there is of it without a judge."""
