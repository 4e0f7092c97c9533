"""Figures show what they are given: read back from the axes, the SVG and the PNG."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specrej.evaluation.figure import ACCENT, MUTED, save, short
from specrej.evaluation.plots import (
    Point,
    Runner,
    cost_bars,
    efficiency,
    pareto,
    race,
    short_name,
    violins,
)

POINTS = [
    Point(label="N=4", x=0.5, y=90.0, x_interval=(0.45, 0.55), y_interval=(85.0, 95.0)),
    Point(label="N=8", x=1.0, y=100.0),
    Point(label="α=0.5", x=0.6, y=108.0, y_interval=(101.0, 113.0), rejects=True),
]


def lines(axes: Axes, color: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_color() == color]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def dots(axes: Axes, color: str) -> set[tuple[float, float]]:
    marked = [line for line in lines(axes, color) if line.get_marker() == "o"]
    return {(float(x), float(y)) for line in marked for x, y in np.asarray(line.get_xydata())}


def test_the_efficiency_figure_has_every_method_where_it_belongs() -> None:
    figure = efficiency(POINTS, unit="seconds", baseline="best_of_n:8")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert dots(axes, MUTED) == {(0.5, 90.0), (1.0, 100.0)}
    assert dots(axes, ACCENT) == {(0.6, 108.0)}
    assert sorted(labels(figure)) == ["N=4", "N=8", "α=0.5"]
    assert axes.get_xlabel() == "seconds, relative to best_of_n:8"


def test_intervals_are_drawn_from_end_to_end() -> None:
    axes = efficiency(POINTS, unit="seconds", baseline="best_of_n:8").axes[0]
    drawn = {tuple(np.asarray(line.get_xydata()).ravel().tolist()) for line in axes.lines}
    assert {(0.45, 90.0, 0.55, 90.0), (0.5, 85.0, 0.5, 95.0), (0.6, 101.0, 0.6, 113.0)} <= drawn


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(-50, 300)), min_size=1, max_size=8))
def test_labels_never_cover_each_other_or_a_dot(places: list[tuple[float, float]]) -> None:
    points = [Point(label=f"N={number}", x=x, y=y) for number, (x, y) in enumerate(places)]
    figure = efficiency(points, unit="tokens", baseline="best_of_n:8")
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert all(not box.count_overlaps(boxes[:number]) for number, box in enumerate(boxes))
    centres = axes.transData.transform(np.array(places))
    assert all(not box.count_contains(centres) for box in boxes)


def test_crowded_points_are_all_labelled() -> None:
    points = [
        Point(label=f"α=0.{n}", x=0.4 + 0.03 * n, y=99 - n, y_interval=(97 - n, 101 - n))
        for n in range(1, 9)
    ]
    figure = efficiency(points, unit="seconds", baseline="best_of_n:8")
    assert sorted(labels(figure)) == [point.label for point in points]


def test_the_front_stands_out_of_the_cloud() -> None:
    cloud = [Point(label="", x=x, y=y) for x, y in ((1.0, 2.0), (2.0, 1.0), (3.0, 4.0))]
    front = [Point(label="α=0.3", x=3.0, y=4.0, rejects=True), Point(label="N=1", x=1.0, y=2.0)]
    axes = pareto(cloud, front, unit="tokens").axes[0]
    assert dots(axes, MUTED) == {(1.0, 2.0), (2.0, 1.0), (3.0, 4.0)}
    assert dots(axes, ACCENT) == {(1.0, 2.0), (3.0, 4.0)}


def test_a_large_cloud_stays_a_small_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cloud = [Point(label="", x=float(x), y=float(y)) for x, y in rng.uniform(1, 9, (5000, 2))]
    svg, _ = save(pareto(cloud, cloud[:1], unit="tokens"), tmp_path / "pareto")
    assert svg.stat().st_size < 400_000


def test_violins_leave_out_what_is_not_defined() -> None:
    figure = violins({16: [0.2, math.nan, 0.4], 8: [0.1, 0.1, 0.1], 32: [math.nan]}, name="Kendall")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16"]
    medians = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(np.asarray(line.get_ydata())[0]) for line in medians] == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("values", [{}, {8: []}, {8: [math.nan]}, {8: [0.5]}])
def test_violins_of_next_to_nothing_are_drawn(
    values: dict[int, list[float]], tmp_path: Path
) -> None:
    svg, png = save(violins(values, name="Pearson"), tmp_path / "violins")
    assert svg.stat().st_size > 0
    assert png.stat().st_size > 0


def test_a_race_shows_each_candidate_to_its_end() -> None:
    runners = [
        Runner([16], [1.0], "rejected"),
        Runner([16, 32], [2.0, 2.5], "complete"),
        Runner([16, 40], [1.5, 3.0], "winner"),
    ]
    figure = race(runners, [(16, 2), (40, 2)])
    axes = figure.axes[0]
    marks = {
        str(line.get_marker()): np.asarray(line.get_xydata()).tolist()
        for line in axes.lines
        if line.get_alpha()
    }
    assert marks["x"] == [[16.0, 1.0]]
    assert dots(axes, ACCENT) == {(40.0, 3.0)}
    assert dots(axes, MUTED) == {(32.0, 2.5)}
    assert labels(figure) == ["2", "2"]
    winner = [line for line in lines(axes, ACCENT) if line.get_marker() == "None"]
    assert np.asarray(winner[0].get_xydata()).tolist() == [[16.0, 1.5], [40.0, 3.0]]


def test_bars_add_up_to_what_a_method_cost() -> None:
    parts = {
        "best_of_n:8": {"decode": 3.0, "reward": 1.0},
        "speculative_rejection:0.5": {"decode": 1.5, "reward": 0.5},
    }
    rejects = {"best_of_n:8": False, "speculative_rejection:0.5": True}
    figure = cost_bars(parts, rejects=rejects, unit="seconds")
    bars = [(patch.get_x(), patch.get_width()) for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [(0.0, 3.0), (3.0, 1.0), (0.0, 1.5), (1.5, 0.5)]
    assert labels(figure) == ["4", "2"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["N=8", "α=0.5"]


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        save(efficiency(POINTS, unit="s", baseline="b"), tmp_path / name) for name in ("one", "two")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert (first[0].name, first[1].name) == ("one.svg", "one.png")


def test_an_svg_keeps_its_words_and_names_fonts_that_are_there(tmp_path: Path) -> None:
    svg, _ = save(
        efficiency(POINTS, unit="seconds", baseline="best_of_n:8"), tmp_path / "efficiency"
    )
    words = [element.text for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"N=4", "N=8", "α=0.5", "improvement score"} <= set(words)
    assert "sans-serif" in svg.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (1, "1"),
        (12.34, "12.3"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (2.5e12, "2.5T"),
        (1e-5, "1e-05"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@settings(deadline=None)
@given(st.floats(1e-6, 1e17))
def test_a_short_number_is_within_one_percent(value: float) -> None:
    text = short(value)
    letters = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    number = float(text.rstrip("kMGTP")) * letters.get(text[-1], 1.0)
    assert number == pytest.approx(value, rel=0.06 if value < 0.001 else 0.01)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("best_of_n:8", "N=8"),
        ("speculative_rejection:0.5", "α=0.5"),
        ("speculative_rejection:0.5:64", "α=0.5 N=64"),
    ],
)
def test_short_names(method: str, name: str) -> None:
    assert short_name(method) == name
