"""What all figures share: colours, style, empty axes, and the files they are saved in.

    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(x="seconds", y="mean reward")
    svg, png = save(figure, "out/plots/pareto-seconds")

Figures use the colours below and no others: accent for methods that reject, greys for the rest, so
that a page can map them to its own. The same data gives the same bytes.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, PAPER = "#1c1d21", "#71737c", "#dcdde2", "#c2501f", "#ffffff"

_SIZE = (
    4.0,
    3.2,
)  # inches: on a telephone a figure is as wide as it is here, and letters keep their size
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "axes.formatter.limits": (-4, 7),
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "specrej",
}


def open_axes(*, x: str, y: str, height: float = _SIZE[1], pad: float = 12) -> tuple[Figure, Axes]:
    """A figure of one plot, with names of its axes."""
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text where labels are placed
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="y")
    axes.tick_params(length=3, width=0.8)
    axes.set_xlabel(x, loc="left")
    axes.set_title(y, loc="left", fontsize="medium", color=MUTED, pad=pad)
    return figure, axes


def save(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write STEM.svg and STEM.png (twice the size, for screens) and return their paths."""
    stem = Path(stem)
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    with matplotlib.rc_context(STYLE):
        figure.savefig(svg, metadata={"Date": None, "Creator": None}, dpi=200)
        figure.savefig(png, metadata={"Software": None}, dpi=200)
    # Not everybody has the font that the figure was laid out with.
    fonts = svg.read_text(encoding="utf-8").replace(
        "'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"
    )
    svg.write_text(fonts, encoding="utf-8")
    return svg, png


def short(value: float) -> str:
    """A number in three significant digits with a letter for thousands: 12.3, 4.56k, 7.89T."""
    for bound, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound * 0.9995:
            return f"{_three(value / bound)}{letter}"
    return _three(value)


def _three(value: float) -> str:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:.{max(0, digits)}f}" if abs(value) >= 0.001 else f"{value:.2g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
