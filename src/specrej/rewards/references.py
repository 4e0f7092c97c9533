"""Right answers: one for all prompts, or one for each from a JSONL file, looked up by the prompt's
last question.

    find = read_references("42")                 # for all prompts
    # {"prompt": "What is 6 times 7?", "answer": "42"} a line
    find = read_references("@answers.jsonl")
    find([{"role": "user", "content": "What is 6 times 7?"}])     # -> "42"

Rows may be those of a prompt file of `specrej bench`: `prompt`, `messages` or `turns`, of which the
last text of the user counts, and beside it `answer`. What makes an answer the right one is up to
the reward.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specrej.errors import PromptError, UsageError
from specrej.files.jsonlines import check_lines
from specrej.files.reading import check_characters, decode, without_mark
from specrej.messages import as_messages
from specrej.rewards.function import last_question
from specrej.types import Message

FindReference = Callable[[Sequence[Message]], str]
"""The right answer to a conversation; raises PromptError where there is none."""

_FORM = 'one JSON object a line: {"prompt": "What is 6 times 7?", "answer": "42"}'


def read_references(given: str) -> FindReference:
    """What finds the right answer to a prompt.

    Args:
        given: the answer itself, or "@" and the path of a JSONL file.

    Raises:
        UsageError: the answer is empty, or the file cannot be read, has a broken row, or two
            answers to one question.
    """
    if not given.startswith("@"):
        if not given.strip():
            raise UsageError("the reference is empty", hint="give the right answer, or @FILE.jsonl")
        check_characters(given, "the reference", UsageError)
        return lambda messages: given
    path = Path(given[1:])
    answers = _read(path)

    def find(messages: Sequence[Message]) -> str:
        question = last_question(messages)
        if question not in answers:
            raise PromptError(
                f"{path} has no answer to the prompt {_shorten(question)!r}",
                hint=f"add a row with this very text; expected {_FORM}",
            )
        return answers[question]

    return find


def _read(path: Path) -> dict[str, str]:
    """The answers by their questions."""
    answers: dict[str, str] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the references in {path}: {error}", hint=f"expected {_FORM}"
        ) from error
    # No splitlines: JSON may hold U+2028 as it is. A mark begins each of files that were put one
    # behind the other.
    begun = (line.strip() for line in without_mark(content, str(path)).split(b"\n"))
    check_lines((line for line in begun if line), str(path))
    for number, line in enumerate(decode(content, str(path)).split("\n"), 1):
        text = line.removeprefix("\ufeff").strip()
        if not text:
            continue
        where = f"line {number} of {path}"
        question, answer = _read_row(text, where)
        if answers.setdefault(question, answer) != answer:
            raise UsageError(
                f"{where} has another answer to {_shorten(question)!r} than a row before"
            )
    if not answers:
        raise UsageError(f"{path} holds no references", hint=f"expected {_FORM}")
    return answers


def _read_row(text: str, where: str) -> tuple[str, str]:
    """The question and the answer of a line."""
    try:
        row = json.loads(text)
        check_characters(row, "", UsageError)
        return _question(row), _answer(row)
    except UsageError as error:
        raise UsageError(f"{where}: {error}", hint=error.hint) from error
    except KeyError as error:
        raise UsageError(f"{where} has no {error}", hint=f"expected {_FORM}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(f"{where} is no reference: {error}", hint=f"expected {_FORM}") from error


def _question(row: Mapping[str, Any]) -> str:
    if row.get("messages") is not None:
        return last_question(as_messages(row["messages"]))
    question = row["turns"][-1] if row.get("turns") is not None else row["prompt"]
    if not isinstance(question, str):
        raise TypeError(f"the prompt is {question!r}, not a text")
    return question


def _answer(row: Mapping[str, Any]) -> str:
    answer = row["answer"]
    if (
        isinstance(answer, bool)
        or not isinstance(answer, str | int | float)
        or not str(answer).strip()
    ):
        raise TypeError(f"the answer is {answer!r}, not a text or a number")
    return str(answer)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
