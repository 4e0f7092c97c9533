"""The length-controlled win rate, by alpaca_eval's own code where that is installed.

    found = length_controlled(pairs, own_prompts=False)
    # an estimate in percent, and what it is or why there is none
    found.rate, found.words

It is a regression of preferences on the difference in length, read at no difference (Dubois et al.,
arXiv 2404.04475). The model of alpaca_eval has a difficulty of each of its own 805 instructions. On
other prompts it is the one without them, `length_controlled_minimal`. Either needs a file of the
hub. The interval is the rate with 1.96 of alpaca_eval's standard errors on both sides: the spread
of predicted preferences over prompts, without the doubt of the fit.
"""

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from specrej.evaluation.intervals import Estimate

_NONE: Estimate = {"value": None, "low": None, "high": None}


class PreferredPair(NamedTuple):
    """Two answers to an instruction, and a judge's preference."""

    place: int
    """Of the instruction in its set, from 0."""
    output: str
    """Of the method."""
    reference: str
    preference: float
    """1 is the reference's, 2 the method's."""


class LengthControlled(NamedTuple):
    """What came of it."""

    rate: Estimate
    """In percent; without a value where there is none."""
    words: str
    """Which model it is, or why there is none."""


def length_controlled(pairs: Sequence[PreferredPair], *, own_prompts: bool) -> LengthControlled:
    """The win rate that the method would have with answers as long as the references.

    Args:
        pairs: with a preference each.
        own_prompts: they are alpaca_eval's, and `place` is that of its file.
    """
    name = "length_controlled_v1" if own_prompts else "length_controlled_minimal"
    annotations: list[dict[str, Any]] = [
        {
            # The minimal model has no use for a difficulty, but looks each up: there are 805.
            "index": pair.place if own_prompts else 0,
            "output_1": pair.reference,
            "output_2": pair.output,
            "generator_1": "reference",
            "generator_2": "method",
            "preference": pair.preference,
        }
        for pair in pairs
    ]
    if find_spec("alpaca_eval") is None:
        return LengthControlled(
            _NONE, "none: alpaca_eval is not installed (pip install alpaca-eval)"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what alpaca_eval still uses
            glm = import_module("alpaca_eval.metrics.glm_winrate")
            found = glm.get_length_controlled_winrate(
                annotations, glm_name=name, save_weights_dir=None
            )
        rate = float(found["length_controlled_winrate"])
        margin = 1.96 * float(found["lc_standard_error"])
    except Exception as error:  # of the hub, pandas or scikit-learn, which have no class in common
        return LengthControlled(_NONE, f"none: alpaca_eval failed: {type(error).__name__}: {error}")
    if not own_prompts:  # all have the same predicted preference; rounding may spread them
        words = f"alpaca_eval's {name}, which has no standard error"
        return LengthControlled({"value": rate, "low": None, "high": None}, words)
    return LengthControlled(
        {"value": rate, "low": rate - margin, "high": rate + margin}, f"alpaca_eval's {name}"
    )
