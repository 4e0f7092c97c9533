"""The plots of docs/policies.md, from the last line of `benchmarks/headline.py`.

    python benchmarks/headline.py --output out/long | tail -1 > long.json
    python benchmarks/headline_plots.py long.json --n 64 --output docs/results/long

They are OUTPUT-regret.svg, what each family of policies saves at what regret on unseen prompts, and
OUTPUT-survival.svg, how often the best candidate is still among the best k.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from specrej.evaluation.figure import ACCENT, INK, MUTED, RULE, STYLE, open_axes, save

LOOKS = {
    "alpha, memory": (MUTED, ":"),
    "alpha, lengths": (INK, "--"),
    "counts": (RULE, "--"),
    "gaps": (RULE, ":"),
    "calibrated": (ACCENT, "-"),
}


def regret_plot(figures: dict[str, Any], n: int) -> Figure:
    """What is saved against what is lost, a line for each family."""
    found = figures["best_of"][str(n)]
    figure, axes = open_axes(
        x=f"regret against Best-of-{n} on unseen prompts, spreads",
        y=f"times less {figures['unit']} than Best-of-{n}",
    )
    for family, (color, line) in LOOKS.items():
        if curve := found["curves"][family]:
            axes.plot(*zip(*curve, strict=True), color=color, linestyle=line, label=family)
    axes.axhline(found["oracle"]["16"], color=MUTED, linewidth=0.8)
    axes.annotate(
        "oracle at 16 tokens", (0, found["oracle"]["16"]), xytext=(0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", color=MUTED,
    )  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda saves, _: f"{saves:g}x"))
    axes.legend(frameon=False)
    return figure


def survival_plot(figures: dict[str, Any]) -> Figure:
    """How often the best candidate is among the best k, a line for each length."""
    lengths = figures["survival"]
    figure, axes = open_axes(
        x="k, of all candidates", y="prompts whose best candidate is among the best k, %"
    )
    for place, (length, shares) in enumerate(lengths.items()):
        depth = 0.25 + 0.75 * place / max(len(lengths) - 1, 1)
        axes.plot(
            [int(k) for k in shares], [100 * share for share in shares.values()],
            color=ACCENT, alpha=depth, label=f"{length} tokens",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    axes.set_ylim(0, 102)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, help="the JSON line of headline.py")
    parser.add_argument("--n", type=int, default=64, help="of the Best-of-n to compare with")
    parser.add_argument("--output", required=True, help="where the plots go: a folder and a stem")
    given = parser.parse_args()
    figures = json.loads(given.figures.read_text(encoding="utf-8"))
    with matplotlib.rc_context(STYLE):
        plots = {"regret": regret_plot(figures, given.n), "survival": survival_plot(figures)}
    for name, figure in plots.items():
        svg, png = save(figure, f"{given.output}-{name}")
        png.unlink()
        print(svg)


if __name__ == "__main__":
    main()
