"""The page of a bench.

    page = bench_page(directory, baseline=None)

Figures and tables show what `metrics.summarize` says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from specrej.errors import UsageError
from specrej.evaluation.comparison import Compute, align
from specrej.evaluation.figure import short
from specrej.evaluation.folder import read_bench
from specrej.evaluation.judge import read_verdicts
from specrej.evaluation.metrics import COMPUTES, Cost, Summary, default_baseline, summarize
from specrej.evaluation.plots import Point, cost_bars, efficiency, race, short_name
from specrej.evaluation.report.headline import (
    chief_method,
    doubt,
    headline,
    is_rejecting,
    lead,
    number,
    plural,
    provenance,
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
)
from specrej.evaluation.report.stories import Chosen, runners_of, story, telling_prompts
from specrej.evaluation.report.tables import method_tables
from specrej.evaluation.rows import BenchRow

_UNITS: dict[Compute, str] = {"seconds": "seconds", "tokens": "generated tokens", "flops": "FLOPs"}
_PARTS = ("decode", "reward", "prefill", "other")


def bench_page(directory: Path, baseline: str | None) -> Page:
    """See `write_report`."""
    info, rows = read_bench(directory)
    if not rows:
        raise UsageError(
            f"{directory} holds no results yet",
            hint="run specrej bench with --resume to go on with it",
        )
    summary = summarize(
        rows, baseline or default_baseline(info["methods"]), read_verdicts(directory)
    )
    chief = chief_method(summary)
    chosen = telling_prompts(align(rows, summary["baseline"]), chief)
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    sections = [
        efficiency_section(summary, plots),
        _race(chosen, chief, summary["baseline"], plots),
        _cost(summary, plots),
        Section("tables", "Tables", _on_tables(summary), tables=method_tables(summary, rows)),
        _answers(chosen, rows, chief, summary),
        _failures(rows),
        Section("run", "How it was run", terms=[_totals(rows), *provenance(info)]),
    ]
    return Page(
        title_of("bench", info),
        headline(summary),
        lead(summary),
        [section for section in sections if section.is_filled],
    )


def efficiency_section(summary: Summary, plots: Path) -> Section:
    """The improvement score against each kind of compute; the figures are saved in `plots`."""
    base = spoken(summary["baseline"])
    pictures = []
    for measure in COMPUTES:
        if points := _points(summary, measure):
            told = "; ".join(
                f"{point.label}: {number(point.y, 1)} at {number(point.x, 2)}" for point in points
            )
            pictures.append(
                picture(
                    efficiency(points, unit=_UNITS[measure], baseline=base),
                    plots / f"efficiency-{measure}",
                    title=f"Score against {_UNITS[measure]}",
                    caption="",
                    label=f"Improvement score against {_UNITS[measure]} relative to {base}. "
                    f"{told}.",
                )
            )
    prose = (
        f"Up is better, left is cheaper. {base} stands at 1 and 100. Grey is Best-of-N, labelled "
        "with N; the colour "
        "is Speculative Rejection, labelled with α. Bars are 95% intervals over prompts; compute "
        "is on a log scale."
    )
    return Section("efficiency", "Gain against compute", prose, figures=pictures)


def _points(summary: Summary, measure: Compute) -> list[Point]:
    """The methods that have both a score and a cost."""
    points = []
    for name, method in summary["methods"].items():
        score, cost = method["improvement"], method["relative"][measure]
        if score["value"] is not None and cost["value"] is not None:
            points.append(
                Point(
                    label=short_name(name),
                    x=cost["value"],
                    y=score["value"],
                    x_interval=_ends(cost["low"], cost["high"]),
                    y_interval=_ends(score["low"], score["high"]),
                    rejects=is_rejecting(name),
                )
            )
    return points


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _race(chosen: Sequence[Chosen], chief: str, baseline: str, plots: Path) -> Section:
    if not is_rejecting(chief):
        return Section("race", "")
    pictures = [_race_picture(prompt, plots) for prompt in chosen]
    prose = (
        f"Each line is a candidate of {spoken(chief)}: its reward at each decision, at its length "
        "then. A cross is a "
        "rejection, a dot a complete answer, the strong line the winner; above each decision "
        "stands how many stayed. "
        "Shown are the prompts on which it gains most, the median and least against "
        f"{spoken(baseline)}; of a "
        "conversation, its first turn."
    )
    return Section("race", "The race", prose, figures=pictures)


def _race_picture(prompt: Chosen, plots: Path) -> Picture:
    turn = prompt.row["turns"][0]
    runners, decisions = runners_of(turn)
    stayed = ", ".join(f"{count} left at {length} tokens" for length, count in decisions)
    return picture(
        race(runners, decisions),
        plots / f"race-{prompt.why.replace(' ', '-')}",
        title=f"{prompt.title}: prompt {prompt.row['prompt_id']}",
        caption=f"{len(runners)} candidates, {plural(len(decisions), 'decision')}",
        label=f"{len(runners)} candidates; {stayed}. The winner's reward is {turn['reward']:.3f}.",
    )


def _cost(summary: Summary, plots: Path) -> Section:
    costs = {
        name: method["cost"]
        for name, method in summary["methods"].items()
        if method["cost"]["num_prompts"]
    }
    rejects = {name: is_rejecting(name) for name in costs}
    pictures = []
    for measure in COMPUTES:
        parts = {name: _parts(cost, measure) for name, cost in costs.items()}
        if parts and all(parts.values()):
            pictures.append(_cost_picture(parts, rejects, measure, plots))
    prose = (
        "Means over the prompts that a method came to the end of. All parts are inside the clock, "
        "the reward too."
    )
    return Section("cost", "Where the cost goes", prose, figures=pictures)


def _cost_picture(
    parts: Mapping[str, Mapping[str, float]],
    rejects: Mapping[str, bool],
    measure: Compute,
    plots: Path,
) -> Picture:
    told = "; ".join(
        f"{short_name(name)}: "
        f"{', '.join(f'{part} {short(value)}' for part, value in of_method.items())}"
        for name, of_method in parts.items()
    )
    return picture(
        cost_bars(parts, rejects=rejects, unit=f"{_UNITS[measure]} per prompt"),
        plots / f"cost-{measure}",
        title=f"{titled(_UNITS[measure])} per prompt",
        caption="",
        label=f"{_UNITS[measure]} per prompt by part. {told}.",
    )


def _parts(cost: Cost, measure: Compute) -> dict[str, float]:
    """The mean of each part over prompts; nothing where a part is not known."""
    if measure == "tokens":
        return {"generated": cost["generated_tokens"] / cost["num_prompts"]}
    of_parts = cost["seconds"] if measure == "seconds" else cost["flops"]
    sums = {part: of_parts[part] for part in _PARTS if part in of_parts}
    known = {part: value for part, value in sums.items() if value is not None}
    return (
        {part: value / cost["num_prompts"] for part, value in known.items()}
        if len(known) == len(sums)
        else {}
    )


def _on_tables(summary: Summary) -> str:
    left_out = [
        (summary["num_unfinished"], "not yet ended by all methods"),
        (summary["num_without_baseline"], f"on which {spoken(summary['baseline'])} failed"),
    ]
    counted = [f"{plural(count, 'prompt')} {why}" for count, why in left_out if count]
    flat, base = summary["num_flat"], spoken(summary["baseline"])
    return " ".join([
        f"Over {plural(summary['num_prompts'], 'prompt')}; below each figure is its 95% interval, "
        "by the bootstrap "
        "over prompts, paired.",
        "A method that failed on a prompt stays in, with the lowest reward of the baseline's "
        "candidates.",
        *([f"Left out: {', '.join(counted)}."] if counted else []),
        *(["Without an improvement score, all candidates being equal: "
           f"{plural(flat, 'prompt')}."] if flat else []),
        *([f"{doubt(summary['narrow_prompts'], base)}."] if summary["narrow_prompts"] else []),
    ])  # fmt: skip


def _answers(
    chosen: Sequence[Chosen], rows: Sequence[BenchRow], chief: str, summary: Summary
) -> Section:
    prose = (
        f"The prompts on which {spoken(chief)} gains most, the median and least against "
        f"{spoken(summary['baseline'])}. "
        "On the left what each method chose, on the right the lowest of its complete candidates."
    )
    stories = [story(one, rows, list(summary["methods"])) for one in chosen]
    return Section("answers", "Answers side by side", prose, stories=stories)


def _failures(rows: Sequence[BenchRow]) -> Section:
    failed = [(row, row["error"]) for row in rows if row["error"]]
    lines = [
        TableRow(
            row["prompt_id"],
            [
                Cell(text, is_words=True)
                for text in (spoken(row["method"]), error["kind"], error["message"])
            ],
            is_rejecting(row["method"]),
        )
        for row, error in failed
    ]
    prose = f"{len(failed):,} of {plural(len(rows), 'answer')} did not come about."
    table = Table("Failed answers", ("Prompt", "Method", "Kind", "Message"), lines)
    return Section("failures", "Failures", prose, tables=[table] if failed else [])


def _totals(rows: Sequence[BenchRow]) -> Terms:
    """What the run has cost so far, all methods and prompts together."""
    usages = [turn["usage"] for row in rows for turn in row["turns"]]
    seconds = sum(usage["total_s"] for usage in usages)
    return Terms(
        "Cost of the run",
        [
            ("answers asked for", f"{len(rows):,}"),
            ("failed", f"{sum(row['error'] is not None for row in rows):,}"),
            ("seconds", f"{seconds:,.1f}"),
            ("tokens generated", f"{sum(usage['generated_tokens'] for usage in usages):,}"),
            ("tokens read by the reward", f"{sum(usage['reward_tokens'] for usage in usages):,}"),
        ],
    )
