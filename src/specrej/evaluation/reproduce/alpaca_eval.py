"""The rows `alpaca-eval` and `alpaca-eval-high-variance`: the mean reward in DARC's setting, and
the win rate against the references of AlpacaEval 2.
"""

from functools import partial

from specrej.evaluation.reproduce.protocol import Answered, Measured, Protocol, Question
from specrej.evaluation.reproduce.sharing import (
    DARC,
    DARC_METHODS,
    DARC_OPEN,
    OPEN_VARIANCE,
    high_variance,
    high_variance_ids,
    note_left_out,
    note_variance,
    preference_figures,
    preference_notes,
    risk_figures,
    weigh_all,
)

_WRITER = "references"
_OPEN = (
    "The seed's 4.52 is a reward, so it depends on the reward model: DARC's is "
    "Skywork-Reward-Llama-3.1-8B-v0.2.",
    *DARC_OPEN,
    "The order of a pair comes from a hash of the instruction, not from alpaca_eval's seed.",
    "A judgement that cannot be read is counted, and in no rate.",
)


def _others(answered: Answered) -> dict[str, str]:
    return {name: task.references[0] for name, task in answered.tasks.items()}


def _all_ids(answered: Answered) -> list[str]:
    return list(answered.tasks)


def _questions(answered: Answered) -> list[Question]:
    return weigh_all(answered, _others(answered), _WRITER, _all_ids(answered))


def _figures(answered: Answered) -> list[Measured]:
    everywhere = range(len(answered.comparison.prompt_ids))
    preferences = preference_figures(answered, _others(answered), _WRITER, _all_ids(answered))
    return [*risk_figures(answered, everywhere), *preferences]


def _notes(answered: Answered) -> list[str]:
    notes = preference_notes(answered, _others(answered), _WRITER, _all_ids(answered))
    return [*notes, *note_left_out(answered, " of rewards")]


def _hard_questions(answered: Answered) -> list[Question]:
    return weigh_all(answered, _others(answered), _WRITER, high_variance_ids(answered))


def _hard_figures(answered: Answered) -> list[Measured]:
    chosen = high_variance_ids(answered)
    return [
        *risk_figures(answered, high_variance(answered)),
        *preference_figures(answered, _others(answered), _WRITER, chosen),
    ]


def _hard_notes(answered: Answered) -> list[str]:
    chosen = high_variance_ids(answered)
    notes = preference_notes(answered, _others(answered), _WRITER, chosen)
    return [*note_variance(answered), *notes, *note_left_out(answered)]


_alike = partial(
    Protocol,
    prompts="alpaca_eval_2",
    num_prompts=805,
    methods=DARC_METHODS,
    chief=DARC_METHODS[1],
    settings=DARC,
    needs_judge=True,
    needs_references=True,
    single_turn=True,
)
ROW = _alike(
    name="alpaca-eval",
    title="Mean reward, and win rate against the references of AlpacaEval 2",
    known="4.52, a mean reward (the seed; DARC's setting)",
    needs="one 80 GB GPU for generator and reward model, 805 requests of one token a method to "
    "GPT-4-Turbo, and alpaca_eval",
    open_points=_OPEN,
    questions=_questions,
    figures=_figures,
    notes=_notes,
)
HARD_ROW = _alike(
    name="alpaca-eval-high-variance",
    title="The same over the fifth of prompts on which candidates differ most",
    known="no number is given",
    needs="as alpaca-eval, and 161 requests a method; a finished alpaca-eval folder is taken over "
    "by --resume",
    open_points=(*_OPEN, OPEN_VARIANCE),
    by_variance=True,
    questions=_hard_questions,
    figures=_hard_figures,
    notes=_hard_notes,
)
