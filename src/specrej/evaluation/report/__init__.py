"""The page of a run: report.html, one file that needs no network, and its figures in plots/ as SVG
and PNG.

    write_report("out")                        # -> out/report.html

A bench gives the efficiency curve, costs, tables, races and answers; a trace with a replay gives
the Pareto front and the correlations. All numbers come from `metrics` and `replay`; here they are
only put into words, rows and figures.
"""

from pathlib import Path

from specrej.evaluation.folder import read_info
from specrej.evaluation.report.bench_sections import bench_page
from specrej.evaluation.report.page import render
from specrej.evaluation.report.replay_sections import replay_page

__all__ = ["write_report"]


def write_report(directory: str | Path, *, baseline: str | None = None) -> Path:
    """Write DIRECTORY/report.html and DIRECTORY/plots/*.svg and *.png.

    Args:
        directory: of a bench, or of a trace with a replay.
        baseline: the method of a bench that the others are compared with; None is its largest
            Best-of-N.

    Returns:
        The page's path.

    Raises:
        UsageError: the folder holds no run, or a run without results, or the baseline is none of
            its methods.
    """
    directory = Path(directory)
    info = read_info(directory)
    page = bench_page(directory, baseline) if info["kind"] == "bench" else replay_page(directory)
    path = directory / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path
