"""The page of `specrej reproduce paper`: each table and figure beside what the paper says.

write_page("out", outcome)       # -> out/paper.html, and its figures in out/plots/
paper_tables(outcome)            # the same tables, for a terminal
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specrej.evaluation.metrics import COMPUTES
from specrej.evaluation.report.bench_sections import efficiency_section
from specrej.evaluation.report.headline import (
    NONE,
    estimated,
    headline,
    is_rejecting,
    number,
    plural,
    provenance,
    quickened,
    spoken,
    title_of,
    titled,
)
from specrej.evaluation.report.page import (
    Cell,
    Page,
    Picture,
    Section,
    Table,
    TableRow,
    Terms,
    picture,
    render,
)
from specrej.evaluation.report.replay_sections import correlation_section, correlation_table
from specrej.evaluation.reproduce.page import counted
from specrej.evaluation.reproduce.paper.outcome import (
    BesideRow,
    BesideTable,
    Example,
    PaperOutcome,
    Spent,
    has_score,
)
from specrej.evaluation.reproduce.paper.plan import NAME
from specrej.evaluation.reproduce.paper.published import GENERATORS
from specrej.evaluation.reproduce.paper.scatter import scatter

_INTERVALS = (
    "Below each of our figures is its 95% interval, by the bootstrap over prompts. A dash under a "
    "generator: not at hand. A dash under ours: not run, or not to be had."
)


def write_page(directory: str | Path, outcome: PaperOutcome) -> Path:
    """Write DIRECTORY/paper.html, and DIRECTORY/plots/*.svg and *.png.

    Returns:
        The page's path.
    """
    directory = Path(directory)
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    table_1, table_2, of_figure_3 = _tables(outcome)
    sections = [
        Section("table-1", "Table 1", _on_table(outcome, 0), tables=[table_1]),
        Section("table-2", "Table 2", _on_table(outcome, 1), tables=[table_2]),
        _figure_2(outcome, plots),
        _figure_3(outcome, of_figure_3, plots),
        _figure_4(outcome, plots),
        _rests_on(outcome),
        Section("run", "How it was run", terms=provenance(outcome["runs"]["alpacafarm"])),
    ]
    page = Page(
        title_of(f"reproduce {NAME}", outcome["runs"]["alpacafarm"]),
        finding(outcome),
        f"The paper ({outcome['source']}): {outcome['paper_figures']['3']}.",
        [section for section in sections if section.is_filled],
    )
    path = directory / f"{NAME}.html"
    path.write_text(render(page), encoding="utf-8")
    return path


def finding(outcome: PaperOutcome) -> str:
    """What Speculative Rejection saves here, in a sentence."""
    summary = outcome["figures"]["efficiency"]
    if summary["num_prompts"] and not has_score(summary):
        return (
            f"The candidates of {spoken(summary['baseline'])} differ in reward on no prompt, so "
            "there is no score, and no speedup at equal score."
        )
    return headline(summary)


def paper_tables(outcome: PaperOutcome) -> list[Table]:
    """Tables 1 and 2, and the figures' numbers as tables."""
    of_figure_4 = correlation_table(outcome["figures"]["correlations"])
    return [*_tables(outcome), *([of_figure_4] if of_figure_4.rows else [])]


def _tables(outcome: PaperOutcome) -> tuple[Table, Table, Table]:
    table_1, table_2 = outcome["tables"]
    speedup = f"speedup against {table_2['baseline']}"
    against = f"against {spoken(table_2['baseline'])}"
    return (
        _beside(
            table_1,
            {
                "win rate": ("Ours: win rate", 1),
                "length-controlled win rate": ("Ours: length-controlled", 1),
            },
            (2, 2),
            f"The paper's: {table_1['setting']}. Ours is against {spoken(table_1['baseline'])}.",
        ),
        _beside(
            table_2,
            {
                "perplexity": ("Ours: perplexity", 3),
                f"{speedup}, generation alone": ("Ours: speedup, generation alone", 2),
                f"{speedup}, everything inside": ("Ours: speedup, everything inside", 2),
            },
            (3, 1),
            f"The paper's: {table_2['setting']}. Our speedups are {against}.",
        ),
        _efficiency_table(outcome),
    )


def _beside(
    table: BesideTable,
    ours: dict[str, tuple[str, int]],
    digits: tuple[int, int],
    note: str,
) -> Table:
    """Ours, then the paper's pairs.

    Args:
        table: the numbers.
        ours: column and decimals by the figure's name.
        digits: decimals of the paper's pairs.
        note: below it.
    """
    rows = [
        TableRow(
            _named(row, table["baseline"]),
            [
                *(estimated(row["measured"].get(name), count) for name, (_, count) in ours.items()),
                *(_pair(row, generator, digits) for generator in GENERATORS),
            ],
            is_rejecting(row["method"]),
        )
        for row in table["rows"]
    ]
    columns = ("Method", *(column for column, _ in ours.values()), *map(titled, GENERATORS))
    return Table(f"Table {table['table']}: {_lowered(table['title'])}", columns, rows, note)


def _named(row: BesideRow, baseline: str) -> str:
    return f"{spoken(row['method'])}{', compared with' if row['method'] == baseline else ''}"


def _lowered(text: str) -> str:
    return f"{text[0].lower()}{text[1:]}"


def _pair(row: BesideRow, generator: str, digits: tuple[int, int]) -> Cell:
    known = row["paper"].get(generator)
    if known is None:
        return Cell(NONE)
    pairs = zip(known.values(), digits, strict=True)
    return Cell("/".join(f"{value:.{count}f}" for value, count in pairs))


def _on_table(outcome: PaperOutcome, place: int) -> str:
    names = " / ".join(_figure_names(outcome["tables"][place]))
    number = f"Table {place + 1}"
    lines = [f"{line}. " for line in outcome["left_out"] if line.startswith(number)]
    over = plural(outcome["num_prompts"], "prompt")
    return (
        f"{''.join(lines)}The first columns are ours, over {over}. The others are the paper's, as "
        f"{names}. {_INTERVALS}"
    )


def _figure_names(table: BesideTable) -> Sequence[str]:
    return next(list(pair) for row in table["rows"] for pair in row["paper"].values())


def _efficiency_table(outcome: PaperOutcome) -> Table:
    summary = outcome["figures"]["efficiency"]
    rows = [
        TableRow(
            spoken(name),
            [
                estimated(method["improvement"], 1),
                *(estimated(method["relative"][measure], 2) for measure in COMPUTES),
                quickened(method["speedup"]["improvement"]["seconds"]),
                quickened(method["speedup"]["improvement"]["tokens"]),
            ],
            is_rejecting(name),
        )
        for name, method in summary["methods"].items()
    ]
    columns = (
        "Method", "Score", "Seconds", "Tokens", "FLOPs", "Speedup, seconds", "Speedup, tokens",
    )  # fmt: skip
    note = (
        f"Score: the paper's improvement score, {spoken(summary['baseline'])} being 100. Compute "
        "is relative to its own, everything inside the clock. Speedup: what Best-of-N needs for "
        "the same score, log-linear between its points."
    )
    return Table("Figure 3: gain against compute", columns, rows, note)


def _figure_2(outcome: PaperOutcome, plots: Path) -> Section:
    example = outcome["figures"]["example"]
    prose = (
        f"The paper: {outcome['paper_figures']['2']}. Ours: each dot is an answer, a hollow one "
        "had ended before. The line fits the unfinished ones. The dashed line is at the partial "
        "reward of the best answer: what is left of it could be rejected without a loss."
    )
    pictures = [] if example is None else [_example_picture(example, plots)]
    return Section("figure-2", "Figure 2", prose, figures=pictures)


def _example_picture(example: Example, plots: Path) -> Picture:
    told = ", ".join(
        f"{name.capitalize()} {number(value, 2)}"
        for name, value in example["unfinished"].items()
        if value is not None
    )
    return picture(
        scatter(example),
        plots / "partial-and-final",
        title=f"Prompt {example['prompt_id']}, {example['num_tokens']:,} tokens",
        caption=f"{plural(len(example['final']), 'answer')}; of the unfinished: {told}. "
        f"{example['below_best']:.0%} have a partial reward below that of the best.",
        label=f"Final against partial reward of {len(example['final'])} answers. {told}.",
    )


def _figure_3(outcome: PaperOutcome, table: Table, plots: Path) -> Section:
    section = efficiency_section(outcome["figures"]["efficiency"], plots)
    prose = f"The paper: {outcome['paper_figures']['3']}. Ours: {_lowered(section.prose)}"
    return replace(section, id="figure-3", title="Figure 3", prose=prose, tables=[table])


def _figure_4(outcome: PaperOutcome, plots: Path) -> Section:
    if not outcome["figures"]["correlations"]:
        return Section("figure-4", "Figure 4")
    section = correlation_section(outcome["figures"]["correlations"], plots)
    prose = f"The paper: {outcome['paper_figures']['4']}. Ours: {_lowered(section.prose)}"
    return replace(section, id="figure-4", title="Figure 4", prose=prose)


def _rests_on(outcome: PaperOutcome) -> Section:
    run = [
        ("prompts", f"{outcome['prompts']} ({outcome['num_prompts']:,})"),
        ("judge", outcome["judge"] or "none"),
        ("failed", f"{outcome['num_failed']:,} of {outcome['num_all']:,} answers and traces"),
        ("seed", str(outcome["seed"])),
    ]
    calls = outcome["calls"]
    judged = [(name.replace("_", " "), f"{calls[name]:,}") for name in calls]  # type: ignore[literal-required]
    groups = [
        Terms("Run", run),
        counted("Left out", outcome["left_out"]),
        counted("Other than the paper", outcome["differences"]),
        counted("What the paper leaves open", outcome["open_points"]),
        counted("To be known", outcome["notes"]),
        Terms("Cost", [(name, cost_of(spent)) for name, spent in outcome["spent"].items()]),
        Terms("Requests to the judge", judged if outcome["judge"] else []),
    ]
    return Section("basis", "What it rests on", terms=[group for group in groups if group.pairs])


def cost_of(spent: Spent) -> str:
    """What a part took, in words."""
    return (
        f"{spent['seconds']:,.1f} s, {spent['generated_tokens']:,} tokens generated, "
        f"{spent['reward_tokens']:,} read by the reward"
    )
