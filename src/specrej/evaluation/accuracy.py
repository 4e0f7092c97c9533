r"""Whether answers are right, where a prompt says what is right: an answer to compare with, or
instructions to check.

    checks = read_checks({"prompt": "What is 6 times 7?", "answer": "42"})
    is_right(checks, 0, "It is 42.", extractor_of("auto"))       # True

A row says it by `answer` (a text, a number, or a list of one for each turn), by a `reference` that
marks its answer with `####` or `\boxed{}`, or by IFEval's `instruction_id_list` and `kwargs`.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specrej.errors import PromptError
from specrej.evaluation.instructions import Details, obeys
from specrej.files.reading import check_characters
from specrej.rewards.answers import Extract, boxed, final_answer, marked_answer, same_answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """What makes the answers to a prompt right.

    Attributes:
        answers: the right one to each turn; none where nothing is known.
        instructions: names and what they say, of the first turn; see `instructions.obeys`.
    """

    answers: tuple[str, ...] = ()
    instructions: tuple[tuple[str, Details], ...] = ()


NOTHING_CHECKED = Checks()


def read_checks(row: Mapping[str, Any]) -> Checks:
    """What a row of a prompt file says.

    Raises:
        PromptError: it says it in another form; names the field.
    """
    instructions = _instructions(row.get("instruction_id_list"), row.get("kwargs"))
    given = row.get("answer")
    if given is None:
        reference = row.get("reference")
        listed = [reference] if isinstance(reference, str) else reference or []
        # Others are for a judge: they are no answers that can be compared.
        answers = listed if all(isinstance(one, str) and boxed(one) for one in listed) else []
    else:
        answers = [str(one) for one in _listed(given)]
    check_characters(answers, "answer")
    return Checks(answers=tuple(answers), instructions=instructions)


def is_right(checks: Checks, turn: int, text: str, extract: Extract) -> bool | None:
    """Whether the answer to a turn, counted from 0, is right; None where that cannot be checked.

    An answer is compared by what is extracted from it, and by its last line as a whole.
    """
    if checks.instructions and turn == 0:
        obeyed = [obeys(name, given, text) for name, given in checks.instructions]
        return None if None in obeyed else all(obeyed)
    if turn >= len(checks.answers):
        return None
    expected = marked_answer(checks.answers[turn])
    found = extract(text)
    return (found is not None and same_answer(expected, found)) or same_answer(
        expected, final_answer(text)
    )


def _listed(given: Any) -> list[Any]:
    answers = given if isinstance(given, list) else [given]
    for one in answers:
        if not isinstance(one, str | int | float) or isinstance(one, bool):
            raise PromptError(
                f"answer must be a text, a number or a list of these, got {reprlib.repr(given)}"
            )
    return answers


def _instructions(names: Any, given: Any) -> tuple[tuple[str, Details], ...]:
    if names is None:
        return ()
    said = [{} for _ in names] if given is None and isinstance(names, list) else given
    is_list = isinstance(names, list) and isinstance(said, list) and len(names) == len(said)
    if not is_list or not all(isinstance(one, str) for one in names):
        raise PromptError(
            "instruction_id_list must be a list of names, and kwargs one of as many objects, got "
            f"{reprlib.repr(names)} and {reprlib.repr(given)}"
        )
    if not all(isinstance(one, Mapping) for one in said):
        raise PromptError(f"kwargs must be a list of objects, got {reprlib.repr(given)}")
    return tuple(zip(names, said, strict=True))
