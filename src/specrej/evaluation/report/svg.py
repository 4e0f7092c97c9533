"""A figure as a part of a page: smaller, with ids of its own, and in the page's colours, light or dark.

stem = directory / "plots" / "cost-seconds"
picture(figure, stem, title="Seconds", caption="One bar a method.", label="Best-of-8 takes 12 s, ...")
"""

import re
from pathlib import Path

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from specrej.evaluation.plots import ACCENT, INK, MUTED, PAPER, RULE, save
from specrej.evaluation.report.page import Picture

_COLORS = {INK: "var(--fig-ink)", MUTED: "var(--fig-muted)", RULE: "var(--fig-rule)", ACCENT: "var(--fig-accent)"}


def picture(figure: Figure, stem: Path, *, title: str, caption: str, label: str) -> Picture:
    """Save a figure as STEM.svg and STEM.png, and put it in a page; `label` says in words what it shows."""
    svg, _ = save(figure, stem)
    return Picture(title, caption, inline(svg.read_text(encoding="utf-8"), stem.name, label))


def inline(svg: str, name: str, label: str) -> Markup:
    """The SVG element of a matplotlib file, with `name` before every id."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _lean(tag[0]), svg)
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    svg = svg.replace(PAPER, "var(--card)")
    head = f'<svg role="img" aria-label="{escape(label)}"'
    svg = re.sub(r' (width|height)="\S+pt"', "", svg, count=2)  # as wide as its place
    return Markup(svg.replace("<svg", head, 1))


def _lean(tag: str) -> str:
    """Without what the eye does not see: fonts (the page has its own), turns by nothing, thousandths of a point."""
    tag = re.sub(r"font-family: [^;\"]*; |\s+transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = re.sub(r"\s+", " ", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)
