"""What a page is made of, in plain text, and how it becomes HTML.

    Section("cost", "Cost by part", "Each bar is a method.", figures=[...])
    picture(figure, directory / "cost", title="Seconds", caption="A bar a method.", label="12 s")
    render(page)

The template lays the page out, and escapes its text. A figure in it is smaller than its file, has
ids of its own, and the page's colours, light or dark.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from specrej.evaluation.figure import ACCENT, INK, MUTED, PAPER, RULE, save

_HERE = Path(__file__).parent
_COLORS = {
    INK: "var(--fig-ink)",
    MUTED: "var(--fig-muted)",
    RULE: "var(--fig-rule)",
    ACCENT: "var(--fig-accent)",
}


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
class StoryAnswer:
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
    answers: Sequence[StoryAnswer]


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
    """All of it: the kind of run, the finding in a sentence, what belongs beside it, and the
    sections.
    """

    title: str
    headline: str
    lead: str
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML; all text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(page=page, css=Markup(css))


def picture(figure: Figure, stem: Path, *, title: str, caption: str, label: str) -> Picture:
    """Save a figure as STEM.svg and STEM.png, and put it in a page; `label` says in words what
    it shows.
    """
    svg, _ = save(figure, stem)
    return Picture(title, caption, inline(svg.read_text(encoding="utf-8"), stem.name, label))


def inline(svg: str, name: str, label: str) -> Markup:
    """The SVG element of a matplotlib file, with `name` before every id."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _lean(tag[0]), svg)
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg
    )
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    svg = svg.replace(PAPER, "var(--card)")
    head = f'<svg role="img" aria-label="{escape(label)}"'
    svg = re.sub(r' (width|height)="\S+pt"', "", svg, count=2)  # as wide as its place
    return Markup(svg.replace("<svg", head, 1))


def _lean(tag: str) -> str:
    """Without what the eye does not see: fonts (the page has its own), turns by nothing,
    thousandths of a point.
    """
    tag = re.sub(r"font-family: [^;\"]*; |\s+transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"\s+", " ", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)
