r"""What a reasoning model thinks before it answers, told from its answer by the tokenizer's marks.

    thinking = Thinking("<think>", "</think>")
    thinking.split("<think>6 times 7.</think>\n\n42")    # Parts("6 times 7.", "42")

The marks are those that the tokenizer has as tokens of their own, or that its chat template holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
)
"""Of DeepSeek-R1, Qwen3 and many others; of Granite; of Seed-OSS; of Magistral."""
_QUESTION = {"role": "user", "content": "?"}


class Parts(NamedTuple):
    """Of a text, without the marks and the white space beside them."""

    thought: str
    answer: str
    """Empty while the model thinks."""


@dataclass(frozen=True)
class Thinking:
    """How the answers to a prompt hold what was thought.

    Attributes:
        opening, closing: the marks.
        is_begun: whether the prompt ends in the opening mark.
    """

    opening: str
    closing: str
    is_begun: bool = False

    def split(self, text: str) -> Parts:
        """The parts of an answer's text so far; all is answer where it thinks nothing."""
        begun = self._begun(text)
        if begun is None:
            return Parts("", text)
        thought, _, answer = begun.partition(self.closing)
        return Parts(thought.strip(), answer.lstrip())

    def span(self, text: str) -> range:
        """The characters of an answer's text so far that stand between the marks; none where it
        thinks nothing.
        """
        begun = self._begun(text)
        thought = "" if begun is None else begun.partition(self.closing)[0]
        if begun is None or not thought.strip():
            return range(0)
        start = len(text) - len(begun)
        return range(start, start + len(thought))

    def _begun(self, text: str) -> str | None:
        """What stands behind the opening mark, to the end; None where nothing is thought."""
        begun = text.lstrip()
        if begun.startswith(self.opening):
            return begun[len(self.opening) :]
        return text if self.is_begun else None

    def is_inside(self, text: str) -> bool:
        """Whether a text so far ends inside of a thought."""
        begun = self._begun(text)
        return begun is not None and self.closing not in begun

    def may_begin(self, text: str) -> bool:
        """Whether a thought can still begin behind a text so far."""
        return not self.is_begun and self.opening.startswith(text.lstrip())

    def answer(self, text: str) -> str:
        """What of a text so far is answer for certain: text that follows only adds to it."""
        if self.may_begin(text):
            return ""
        return self.split(text).answer


def marks_of(tokenizer: Any) -> tuple[str, str] | None:
    """The marks of a tokenizer's model; None where it has none."""
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template or "")
    return next(
        (
            marks
            for marks in MARKS
            if all(mark in added for mark in marks) or all(mark in template for mark in marks)
        ),
        None,
    )


def begins(tokenizer: Any, marks: tuple[str, str], arguments: Mapping[str, Any]) -> bool:
    """Whether a chat template puts the opening mark before every answer, with these arguments."""
    try:
        written = tokenizer.apply_chat_template(
            [_QUESTION], tokenize=False, add_generation_prompt=True, **arguments
        )
    except Exception:  # a template that wants more of a conversation than a question
        return False
    return is_open(written, marks)


def is_open(text: str, marks: tuple[str, str]) -> bool:
    """Whether a text ends inside of a thought."""
    opening, closing = marks
    return text.rfind(opening) > text.rfind(closing)
