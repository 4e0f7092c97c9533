"""What the page is made of, in plain text: the template lays it out, and escapes it.

Section("cost", "Cost by part", "Each bar is a method.", figures=[...])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its title, what to see in it, and itself."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and the interval below it."""

    text: str
    interval: str = ""
    is_words: bool = False


@dataclass(frozen=True, slots=True)
class TableRow:
    """A line of a table; `rejects` marks Speculative Rejection."""

    name: str
    cells: Sequence[Cell]
    rejects: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first of its columns is the rows' names."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method chose, beside the lowest of its complete candidates.

    Attributes:
        same_as: the method above with the same answer, "" where there is none.
        lowest_text: "" where the chosen answer is the only complete one.
    """

    method: str
    rejects: bool
    reward: str
    text: str
    same_as: str
    lowest_reward: str
    lowest_text: str


@dataclass(frozen=True, slots=True)
class Story:
    """One prompt and its answers."""

    title: str
    question: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Terms:
    """Names and values."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; `id` is its address."""

    id: str
    title: str
    prose: str = ""
    figures: Sequence[Picture] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    stories: Sequence[Story] = field(default_factory=list)
    terms: Sequence[Terms] = field(default_factory=list)

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.figures or self.tables or self.stories or self.terms)


@dataclass(frozen=True, slots=True)
class Page:
    """All of it: the kind of run, the finding in a sentence, what belongs beside it, and the sections."""

    title: str
    headline: str
    lead: str
    sections: Sequence[Section]
