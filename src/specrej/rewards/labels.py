"""Which outputs of a classifier are the score: a label, a number, or a weighted sum of some.

choose_output("org/model", {0: "bad", 1: "good"}, "good")                  # 1
choose_outputs("org/model", {0: "bad", 1: "good"}, "good*0.7+bad*-0.3")    # {1: 0.7, 0: -0.3}
"""

from collections.abc import Mapping, Sequence

from specrej.errors import UnknownNameError, UsageError


def choose_outputs(
    model: str, id2label: Mapping[int, str], label: str | int | None
) -> dict[int, float]:
    """Weights by number of the outputs that `label` names; of the only one where no label is given.

    Raises:
        UnknownNameError: there is no such label.
        UsageError: several outputs and no label, or a weight that is no number.
    """
    if not isinstance(label, str) or "*" not in label or label in id2label.values():
        return {choose_output(model, id2label, label): 1.0}
    weights: dict[int, float] = {}
    for part in label.split("+"):
        name, _, weight = part.rpartition("*")
        try:
            weights[choose_output(model, id2label, name)] = float(weight)
        except ValueError:
            raise UsageError(
                f"{part!r} is no label with a weight",
                hint="write LABEL*WEIGHT+LABEL*WEIGHT, such as good*0.7+kind*0.3",
            ) from None
    return weights


def weigh(logits: Sequence[float], weights: Mapping[int, float]) -> float:
    """The score of one row of logits."""
    return sum(weight * logits[output] for output, weight in weights.items())


def choose_output(model: str, id2label: Mapping[int, str], label: str | int | None) -> int:
    """Number of the output that `label` names; of the only one where no label is given.

    Raises:
        UnknownNameError: there is no such label.
        UsageError: several outputs and no label.
    """
    names = {str(name): number for number, name in id2label.items()}
    shown = [f"{number} ({name})" for number, name in sorted(id2label.items())]
    if label is None:
        if len(id2label) == 1:
            return 0
        raise UsageError(
            f"the classifier {model!r} has {len(id2label)} outputs: {', '.join(shown)}",
            hint="choose one with label=NAME, or classifier:MODEL#NAME",
        )
    if label in names:
        return names[str(label)]
    if str(label).isdecimal() and int(label) in id2label:
        return int(label)
    hint = f"its labels are {', '.join(shown)}"
    raise UnknownNameError(f"label of the classifier {model!r}", str(label), names, hint=hint)
