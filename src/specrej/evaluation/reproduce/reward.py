"""The row `reward`: rewards of the chosen answers and their risk, for any model, as DARC reports
them for Qwen2.5-14B-Instruct.
"""

from specrej.evaluation.reproduce.protocol import Answered, Measured, Protocol
from specrej.evaluation.reproduce.sharing import (
    DARC,
    DARC_METHODS,
    DARC_OPEN,
    OPEN_VARIANCE,
    high_variance,
    note_left_out,
    note_variance,
    risk_figures,
)


def _figures(answered: Answered) -> list[Measured]:
    everywhere = range(len(answered.comparison.prompt_ids))
    return [
        *risk_figures(answered, everywhere),
        *risk_figures(answered, high_variance(answered), ", high-variance"),
    ]


ROW = Protocol(
    name="reward",
    title="Mean reward and its risk over prompts",
    known="no number is given; DARC (arXiv 2603.08145) reports it for Qwen2.5-14B-Instruct",
    prompts="alpaca_eval",
    num_prompts=805,
    methods=DARC_METHODS,
    chief=DARC_METHODS[1],
    settings=DARC,
    needs="one 80 GB GPU for a 14B generator and an 8B reward model; no judge",
    open_points=(
        *DARC_OPEN,
        "Lambda is 1. Sigma is that of the chosen answers' rewards over prompts, divided by their "
        "number.",
        "CVaR10% is the mean over the worst tenth of prompts, rounded down, at least one.",
        OPEN_VARIANCE,
    ),
    by_variance=True,
    figures=_figures,
    notes=lambda answered: [*note_variance(answered), *note_left_out(answered)],
)
