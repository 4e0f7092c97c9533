"""Figure 2 of the paper: partial against final reward of one prompt's candidates.

figure = scatter(example)
"""

import matplotlib
from matplotlib.figure import Figure

from specrej.evaluation.figure import ACCENT, INK, MUTED, STYLE, open_axes
from specrej.evaluation.reproduce.paper.outcome import Example


def scatter(example: Example) -> Figure:
    """A dot a candidate, hollow where it had ended before; the least-squares line through the
    others; the best answer in the accent, and a dashed line at its partial reward.
    """
    points = list(zip(example["partial"], example["final"], example["is_unfinished"], strict=True))
    with matplotlib.rc_context(STYLE):
        figure, axes = open_axes(
            x=f"reward after {example['num_tokens']:,} tokens", y="final reward"
        )
        for is_live, fill in ((False, "none"), (True, MUTED)):
            chosen = [point for point in points if point[2] is is_live]
            axes.plot(
                [x for x, _, _ in chosen],
                [y for _, y, _ in chosen],
                linestyle="none",
                marker="o",
                markersize=4,
                markerfacecolor=fill,
                markeredgecolor=MUTED,
                markeredgewidth=0.8,
                alpha=0.6,
            )
        live = [x for x, _, is_live in points if is_live]
        ends = [min(live), max(live)]
        line = [example["intercept"] + example["slope"] * x for x in ends]
        axes.plot(ends, line, color=INK, linewidth=1.2)
        highest = max(example["final"])
        best = max(x for x, y, _ in points if y == highest)
        axes.axvline(best, color=ACCENT, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(best, highest, "o", color=ACCENT, markersize=8, markeredgewidth=0)
        axes.margins(0.06)
        return figure
