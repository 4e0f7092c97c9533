"""Matplotlib figures of the report and of `specrej replay`: pure functions from plain data to a
Figure.

    figure = efficiency(points, unit="seconds", baseline="best_of_n:8")

Nothing here computes a metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from specrej.evaluation.figure import ACCENT, INK, MUTED, PAPER, RULE, STYLE, open_axes, short

Interval = tuple[float, float]
Fate = Literal["rejected", "complete", "winner"]

_LABEL_SPOTS = ((-6, 5), (6, -12), (6, 5), (-6, -12))  # points from a dot
_FAR = 20  # points
_MOST_SHAPES = 800  # beyond these a cloud of dots goes into the SVG as an image


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A method or policy by what it costs and what it gains.

    Attributes:
        label: what stands beside it, such as "N=8"; "" for none.
        x: its cost, above 0.
        y: its gain.
        x_interval, y_interval: 95% intervals, None where there are none.
        rejects: whether it is Speculative Rejection.
    """

    label: str
    x: float
    y: float
    x_interval: Interval | None = None
    y_interval: Interval | None = None
    rejects: bool = False


@dataclass(frozen=True, slots=True)
class Runner:
    """A candidate in a race: its length in tokens and its reward at each decision, and how it
    ended.
    """

    num_tokens: Sequence[int]
    rewards: Sequence[float]
    fate: Fate


class _Look(NamedTuple):
    """Of a runner's line, and of the mark at its end."""

    color: str
    alpha: float
    width: float
    mark: str
    size: float


_FATES: dict[Fate, _Look] = {
    "rejected": _Look(MUTED, 0.35, 0.8, "x", 4.5),
    "complete": _Look(MUTED, 0.8, 1.1, "o", 4.0),
    "winner": _Look(ACCENT, 1.0, 2.4, "o", 8.0),
}
"""Drawn in this order."""


def efficiency(points: Sequence[Point], *, unit: str, baseline: str) -> Figure:
    """The improvement score against relative compute, a line through each kind of method, with
    95% intervals.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(x=f"{unit}, relative to {baseline}", y="improvement score")
        axes.axhline(100, color=RULE, linewidth=1)
        axes.axvline(1, color=RULE, linewidth=1)
        for rejects, color in ((False, MUTED), (True, ACCENT)):
            line = sorted(
                (point for point in points if point.rejects is rejects), key=lambda point: point.x
            )
            axes.plot(
                [point.x for point in line],
                [point.y for point in line],
                color=color,
                linewidth=1.2,
                alpha=0.45,
            )
            for point in line:
                _draw_point(axes, point, color)
        _log_x(axes)
        _label_points(figure, axes, points)
        return figure


def pareto(
    cloud: Sequence[Point], front: Sequence[Point], *, unit: str, y: str = "mean reward"
) -> Figure:
    """Policies by compute (log x) and reward: a cloud, and in the accent those that no other
    beats in both.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(x=unit, y=y)
        axes.plot(
            [point.x for point in cloud],
            [point.y for point in cloud],
            linestyle="none",
            marker="o",
            markersize=3,
            markeredgewidth=0,
            color=MUTED,
            alpha=0.45,
            rasterized=len(cloud) > _MOST_SHAPES,
        )
        steps = sorted(front, key=lambda point: point.x)
        xs, ys = [point.x for point in steps], [point.y for point in steps]
        axes.step(xs, ys, where="post", color=ACCENT, linewidth=1.2, alpha=0.6)
        axes.plot(
            xs, ys, linestyle="none", marker="o", markersize=4.5, markeredgewidth=0, color=ACCENT
        )
        _log_x(axes)
        _label_points(figure, axes, front)
        return figure


def violins(values: Mapping[int, Sequence[float]], *, name: str) -> Figure:
    """How a coefficient spreads over prompts, by checkpoint in tokens: a violin, its quartiles and
    its median.

    Args:
        values: one value a prompt by checkpoint; those that are not defined (NaN) are left out.
        name: of the coefficient, such as "Spearman".
    """
    kept = {
        tokens: [value for value in group if not math.isnan(value)]
        for tokens, group in sorted(values.items())
    }
    kept = {tokens: group for tokens, group in kept.items() if group}
    places = range(len(kept))
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(
            x="tokens of the partial answer", y=f"{name} correlation with final reward"
        )
        axes.axhline(0, color=RULE, linewidth=1)
        if kept:
            drawn: Any = axes.violinplot(
                list(kept.values()), positions=list(places), widths=0.8, showextrema=False
            )
            for body in drawn["bodies"]:
                body.set(facecolor=ACCENT, alpha=0.22, edgecolor="none")
        for place, group in zip(places, kept.values(), strict=True):
            _draw_quartiles(axes, place, group)
        axes.set_xticks(list(places), [str(tokens) for tokens in kept])
        axes.set_ylim(min(0.0, *(min(group) for group in kept.values()), 0.0) - 0.05, 1.05)
        return figure


def _draw_quartiles(axes: Axes, place: int, group: Sequence[float]) -> None:
    low, middle, high = np.quantile(group, [0.25, 0.5, 0.75])
    axes.plot([place, place], [low, high], color=ACCENT, linewidth=3, solid_capstyle="round")
    axes.plot(
        place, middle, "o", color=PAPER, markeredgecolor=ACCENT, markersize=6, markeredgewidth=1.5
    )


def race(runners: Sequence[Runner], decisions: Sequence[tuple[int, int]]) -> Figure:
    """One prompt's candidates: partial reward against tokens, from decision to decision, until each
    one's end.

    Args:
        runners: the candidates.
        decisions: (tokens, how many stayed) of each decision.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(x="tokens of the answer", y="reward so far", pad=20)
        for fate, look in _FATES.items():
            for runner in (runner for runner in runners if runner.fate == fate):
                axes.plot(
                    runner.num_tokens,
                    runner.rewards,
                    color=look.color,
                    alpha=look.alpha,
                    linewidth=look.width,
                )
        for fate, look in _FATES.items():
            _draw_ends(axes, [runner for runner in runners if runner.fate == fate], look)
        axes.margins(x=0.05, y=0.08)
        _mark_decisions(axes, decisions)
        return figure


def _draw_ends(axes: Axes, runners: Sequence[Runner], look: _Look) -> None:
    axes.plot(
        [runner.num_tokens[-1] for runner in runners],
        [runner.rewards[-1] for runner in runners],
        linestyle="none",
        marker=look.mark,
        markersize=look.size,
        color=look.color,
        alpha=max(look.alpha, 0.6),
        rasterized=len(runners) > _MOST_SHAPES,
    )


def cost_bars(
    parts: Mapping[str, Mapping[str, float]], *, rejects: Mapping[str, bool], unit: str
) -> Figure:
    """What each method cost, one bar a method, its parts from dark to light.

    Args:
        parts: cost by part by method; the methods' parts are the same and in the same order.
        rejects: by method, whether it is Speculative Rejection.
        unit: of the cost.
    """
    names = list(next(iter(parts.values()), {}))
    tones = np.linspace(1.0, 0.2, len(names)) if len(names) > 1 else np.ones(len(names))
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(x=unit, y="", height=1.1 + 0.34 * len(parts))
        for place, (method, costs) in enumerate(parts.items()):
            widths = [costs[part] for part in names]
            _draw_bar(axes, place, widths, tones, ACCENT if rejects[method] else MUTED)
        axes.set_yticks(range(len(parts)), [short_name(method) for method in parts])
        _lie_down(axes)
        if len(names) > 1:
            swatches = [Patch(color=MUTED, alpha=tone, linewidth=0) for tone in tones]
            figure.legend(
                swatches,
                names,
                loc="outside upper left",
                ncols=len(names),
                frameon=False,
                handlelength=0.9,
            )
        return figure


def _draw_bar(
    axes: Axes, place: int, widths: Sequence[float], tones: NDArray[np.float64], color: str
) -> None:
    """Parts one behind the other, and their sum."""
    left = 0.0
    for width, tone in zip(widths, tones, strict=True):
        axes.barh(place, width, left=left, height=0.62, color=color, alpha=tone, linewidth=0)
        left += width
    axes.annotate(
        short(left), (left, place), (5, 0), textcoords="offset points", va="center", color=INK
    )


def _lie_down(axes: Axes) -> None:
    """The look of horizontal bars, the first on top."""
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short_name(method: str) -> str:
    """What a figure calls a method: "N=8" for best_of_n:8, "α=0.5 N=64" for
    speculative_rejection:0.5:64. Others keep their names.
    """
    name, *numbers = method.split(":")
    letters = {"best_of_n": "N", "speculative_rejection": "αN"}.get(name)
    if letters is None:
        return " ".join([name.replace("_", " "), *numbers])
    return " ".join(f"{letter}={number}" for letter, number in zip(letters, numbers, strict=False))


def _log_x(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _draw_point(axes: Axes, point: Point, color: str) -> None:
    """A dot with a thin cross of its intervals."""
    if point.x_interval:
        axes.plot(point.x_interval, (point.y, point.y), color=color, linewidth=1, alpha=0.7)
    if point.y_interval:
        axes.plot((point.x, point.x), point.y_interval, color=color, linewidth=1, alpha=0.7)
    axes.plot(point.x, point.y, "o", color=color, markersize=6, markeredgewidth=0)


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """A label beside each point, at the first spot that no label, dot or interval takes; none if
    all are taken.
    """
    axes.margins(x=0.12, y=0.16)
    figure.draw_without_rendering()  # places the axes
    taken = (
        np.concatenate([_occupied(axes, point) for point in points]) if points else np.empty((0, 2))
    )
    boxes: list[Bbox] = []
    for point in (point for point in points if point.label):
        for y, dx, dy in _spots(point):
            label = _label(axes, point, y, dx, dy)
            box = label.get_window_extent().padded(2)
            is_inside = (
                axes.bbox.containsx(box.x0)
                and axes.bbox.containsx(box.x1)
                and box.y1 < axes.bbox.y1
            )
            if is_inside and not box.count_contains(taken) and not box.count_overlaps(boxes):
                boxes.append(box)
                _lead(axes, point, dx, dy)
                break
            label.remove()


def _spots(point: Point) -> list[tuple[float, float, float]]:
    """Where a label may stand, as a height and an offset in points: at the dot, at its
    interval's ends, further off.
    """
    low, high = point.y_interval or (point.y, point.y)
    off = [(point.y, dx, dy) for dy in (-26, 26, -40, 40, -54, 54) for dx in (0, 16, -16, 32, -32)]
    return [*((point.y, dx, dy) for dx, dy in _LABEL_SPOTS), (high, 0, 4), (low, 0, -11), *off]


def _label(axes: Axes, point: Point, y: float, dx: float, dy: float) -> Annotation:
    color = ACCENT if point.rejects else INK
    side = "center" if dx == 0 else "left" if dx > 0 else "right"
    return axes.annotate(
        point.label, (point.x, y), (dx, dy), textcoords="offset points", ha=side, color=color
    )


def _lead(axes: Axes, point: Point, dx: float, dy: float) -> None:
    """A hair from the dot to a label that stands far off."""
    if abs(dy) > _FAR:
        color = ACCENT if point.rejects else INK
        hair = {
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.6,
            "alpha": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
        }
        end = (dx, dy if dy < 0 else dy - 2)
        axes.annotate("", (point.x, point.y), end, textcoords="offset points", arrowprops=hair)


def _occupied(axes: Axes, point: Point) -> NDArray[np.float64]:
    """Pixels that a dot and its intervals cover, closely enough for a label's height."""
    steps = np.linspace(0, 1, 16)
    left, right = point.x_interval or (point.x, point.x)
    low, high = point.y_interval or (point.y, point.y)
    across = np.stack([left + (right - left) * steps, np.full(16, point.y)], axis=1)
    upright = np.stack([np.full(16, point.x), low + (high - low) * steps], axis=1)
    return axes.transData.transform(np.concatenate([across, upright]))


def _mark_decisions(axes: Axes, decisions: Sequence[tuple[int, int]]) -> None:
    """A thin line at each decision, with the number that stayed above it where there is room."""
    low, high = axes.get_xlim()
    last = -math.inf
    for num_tokens, stayed in sorted(decisions):
        axes.axvline(num_tokens, color=RULE, linewidth=0.8, zorder=0)
        if num_tokens - last > (high - low) * 0.06:
            place = (num_tokens, 1.0)
            axes.annotate(
                str(stayed), place, (0, 2),
                xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="center", va="bottom", fontsize="small", color=MUTED,
            )  # fmt: skip
            last = num_tokens
