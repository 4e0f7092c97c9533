"""The page of a row: its figures, what they rest on, and how it was run.

    write_page("out", outcome)  # -> out/NAME.html

Curves, races and answers side by side are in the page that `specrej report` makes of the same
folder.
"""

from collections.abc import Sequence
from pathlib import Path

from specrej.evaluation.folder import read_info
from specrej.evaluation.metrics import Cost
from specrej.evaluation.report.headline import (
    estimated,
    in_brackets,
    plural,
    provenance,
    spoken,
    title_of,
)
from specrej.evaluation.report.page import (
    Cell,
    Page,
    Section,
    Table,
    TableRow,
    Terms,
    render,
)
from specrej.evaluation.reproduce.protocol import Measured
from specrej.evaluation.reproduce.running import RowOutcome


def write_page(directory: str | Path, outcome: RowOutcome) -> Path:
    """Write DIRECTORY/NAME.html.

    Returns:
        The page's path.
    """
    directory = Path(directory)
    info = read_info(directory)
    page = Page(
        title_of(f"reproduce {outcome['row']}", info),
        headline(outcome),
        f"{outcome['title']}. Elsewhere: {outcome['known']}.",
        [
            _figures(outcome),
            _rests_on(outcome),
            Section("run", "How it was run", terms=provenance(info)),
        ],
    )
    path = directory / f"{outcome['row']}.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def headline(outcome: RowOutcome) -> str:
    """The row's figure beside or against the first method's, on what it rests, whether it is the
    protocol's, and what the judge left out.
    """
    if not outcome["figures"]:
        return f"There is nothing to compare with {spoken(outcome['baseline'])}."
    figure, *others = outcome["figures"]
    against, beside = "", ""
    if figure["method"] != outcome["baseline"]:
        first = [
            one
            for one in others
            if (one["name"], one["method"]) == (figure["name"], outcome["baseline"])
        ]
        against = "" if first else f" against {spoken(outcome['baseline'])}"
        beside = "".join(f"; {spoken(one['method'])}: {_valued(one)}" for one in first)
    speedups = [
        f"; {one['name']}: {_valued(one)}"
        for one in others
        if one["unit"] == "times" and one["method"] == figure["method"] != outcome["baseline"]
    ]
    over = plural(figure["num"], "judgement" if figure["unit"] == "1 to 10" else "prompt")
    is_own = "" if outcome["differences"] else ", by the protocol's own settings"
    unread = f" {_unread(outcome)} judgements failed." if outcome["num_unread"] else ""
    return (
        f"{spoken(figure['method'])}: {figure['name']} {_valued(figure)}{against}, over {over}"
        f"{is_own}{beside}{''.join(speedups)}.{unread}"
    )


def _valued(figure: Measured) -> str:
    """The figure and its interval in a sentence."""
    value, digits = figure["estimate"], digits_of(figure)
    ends = in_brackets(value["low"], value["high"], digits)
    return f"{estimated(value, digits).text}{_unit(figure)}{ends}"


def _unread(outcome: RowOutcome) -> str:
    return f"{outcome['num_unread']:,} of {outcome['num_judgements']:,}"


def digits_of(figure: Measured) -> int:
    """Decimals that a figure is shown with."""
    return {"%": 1, "count": 0}.get(figure["unit"], 3)


def _unit(figure: Measured) -> str:
    return "%" if figure["unit"] == "%" else ""


def _figures(outcome: RowOutcome) -> Section:
    """The methods side by side, a line for each figure."""
    methods = list(dict.fromkeys(figure["method"] for figure in outcome["figures"]))
    lines: dict[tuple[str, str], dict[str, Measured]] = {}
    for figure in outcome["figures"]:
        lines.setdefault((figure["name"], figure["unit"]), {})[figure["method"]] = figure
    rows = [
        TableRow(
            name,
            [
                Cell(unit, is_words=True),
                Cell(_over([given[method] for method in methods if method in given])),
                *(_cell(given.get(method)) for method in methods),
            ],
        )
        for (name, unit), given in lines.items()
    ]
    table = Table("Figures", ("Figure", "Unit", "Over", *map(spoken, methods)), rows)
    prose = (
        "Below each figure is its 95% interval, by the bootstrap over prompts. Over: the prompts "
        "or judgements that it rests on, method by method where they differ."
    )
    return Section("row", "The row", prose, tables=[table])


def _cell(figure: Measured | None) -> Cell:
    """A method's figure; nothing where it has none, as the method that others are compared with."""
    return Cell("") if figure is None else estimated(figure["estimate"], digits_of(figure))


def _over(figures: Sequence[Measured]) -> str:
    nums = [f"{figure['num']:,}" for figure in figures]
    return nums[0] if len(set(nums)) == 1 else " / ".join(nums)


def _rests_on(outcome: RowOutcome) -> Section:
    num_answers = outcome["num_prompts"] * len(outcome["methods"])
    run = [
        ("prompts", f"{outcome['prompts']} ({outcome['num_prompts']:,})"),
        ("answers that failed", f"{outcome['num_failed']:,} of {num_answers:,}"),
        ("compared with", outcome["baseline"]),
    ]
    groups = [
        Terms("Run", run),
        counted("Other than the protocol", outcome["differences"]),
        counted("What the protocol leaves open", outcome["open_points"]),
        counted("To be known", outcome["notes"]),
        Terms("Cost by method", [(name, _cost(cost)) for name, cost in outcome["cost"].items()]),
        *([_judge(outcome["judge"], outcome)] if outcome["judge"] else []),
    ]
    return Section("basis", "What it rests on", terms=[group for group in groups if group.pairs])


def counted(title: str, lines: Sequence[str]) -> Terms:
    """Lines with their numbers."""
    return Terms(title, [(str(number), line) for number, line in enumerate(lines, 1)])


def _cost(cost: Cost) -> str:
    return (
        f"{cost['seconds']['total']:,.1f} s, {cost['generated_tokens']:,} tokens generated, "
        f"{cost['reward_tokens']:,} read by the reward"
    )


def _judge(name: str, outcome: RowOutcome) -> Terms:
    calls = outcome["calls"]
    return Terms(
        "Judge",
        [
            ("model", name),
            ("judgements that failed", _unread(outcome)),
            ("requests", f"{calls['requests']:,}"),
            ("from the cache", f"{calls['cached']:,}"),
            ("prompt tokens", f"{calls['prompt_tokens']:,}"),
            ("completion tokens", f"{calls['completion_tokens']:,}"),
        ],
    )
