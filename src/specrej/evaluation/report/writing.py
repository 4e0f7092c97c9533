"""Reads a run's folder and writes its page: `write_report` is all that others need."""

from pathlib import Path

import jinja2
from markupsafe import Markup

from specrej.evaluation.folder import read_info
from specrej.evaluation.report.bench_sections import bench_page
from specrej.evaluation.report.page import Page
from specrej.evaluation.report.replay_sections import replay_page

_HERE = Path(__file__).parent


def write_report(directory: str | Path, *, baseline: str | None = None) -> Path:
    """Write DIRECTORY/report.html and DIRECTORY/plots/*.svg and *.png.

    Args:
        directory: of a bench, or of a trace with a replay.
        baseline: the method of a bench that the others are compared with; None is its largest Best-of-N.

    Returns:
        The page's path.

    Raises:
        UsageError: the folder holds no run, or a run without results, or the baseline is none of its methods.
    """
    directory = Path(directory)
    info = read_info(directory)
    page = bench_page(directory, baseline) if info["kind"] == "bench" else replay_page(directory)
    path = directory / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return path


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
