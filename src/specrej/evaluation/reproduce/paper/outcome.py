"""The paper's tables and figures again, from what was run: paper.json.

    outcome = conclude_paper(plan, {"alpacafarm": outcome, "perplexity": other}, judge=None)
    write_json("out/paper.json", outcome)

Nothing is computed here that a row, a bench or a trace does not say; it is put beside the paper's
numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from specrej.evaluation.correlation import (
    CheckpointCorrelations,
    Measure,
    correlate,
    correlations,
)
from specrej.evaluation.folder import read_bench, read_info
from specrej.evaluation.intervals import Estimate
from specrej.evaluation.judge_client import CallsRow
from specrej.evaluation.metrics import Cost, Summary, summarize
from specrej.evaluation.reproduce.paper.plan import (
    NAME,
    OPEN_POINTS,
    TITLE,
    PaperPart,
    Plan,
    example_checkpoint,
)
from specrej.evaluation.reproduce.paper.published import (
    FIGURES,
    SOURCE,
    TABLE_1,
    TABLE_2,
    Published,
)
from specrej.evaluation.reproduce.running import RowOutcome
from specrej.evaluation.rows import RunInfo
from specrej.evaluation.trace import Trace, load, load_failures

NO_JUDGE = "Table 1: a judge gives its win rates, and none was given (--judge MODEL)"
NO_TRACE = "Figures 2 and 4: no prompt could be recorded"
UNREAD = "Table 1: none of the judge's replies could be read"
NO_PERPLEXITY = "Table 2: the method that others are compared with failed on all prompts"
NO_SCORE = "Figure 3: on no prompt the first method's candidates differ in reward, so no score"
NO_CORRELATION = "Figure 4: no prompt has three candidates whose rewards differ"
NO_EXAMPLE = "Figure 2: no prompt has three unfinished candidates whose rewards differ"


class BesideRow(TypedDict):
    """A method in a table, ours and the paper's."""

    method: str
    measured: dict[str, Estimate]
    """By name of the figure; empty where the method was not run."""
    paper: dict[str, dict[str, float]]
    """By generator, then by name of the figure; empty where it is not at hand."""


class BesideTable(TypedDict):
    """A table of the paper with our rows."""

    table: int
    title: str
    setting: str
    """Of the paper's numbers."""
    baseline: str
    """Of ours: what methods are compared with."""
    rows: list[BesideRow]


class Example(TypedDict):
    """Figure 2: the candidates of one prompt."""

    prompt_id: str
    num_tokens: int
    """Of the partial answers."""
    partial: list[float]
    """Reward at that length; of a candidate that ended before, its final one."""
    final: list[float]
    is_unfinished: list[bool]
    unfinished: dict[Measure, float | None]
    all: dict[Measure, float | None]
    slope: float
    """Of the least-squares line through the unfinished ones."""
    intercept: float
    below_best: float
    """Share of all candidates whose partial reward is below that of the best one: so many could be
    rejected there without losing it."""


class PaperFigures(TypedDict):
    """By the paper's numbers."""

    example: Example | None
    """Figure 2."""
    efficiency: Summary
    """Figure 3: score, relative compute and speedup of each method, and all else that a bench
    shows."""
    correlations: list[CheckpointCorrelations]
    """Figure 4."""


class Spent(TypedDict):
    """What a part cost in all."""

    seconds: float
    generated_tokens: int
    reward_tokens: int


class PaperOutcome(TypedDict):
    """All of it: paper.json."""

    row: str
    title: str
    source: str
    judge: str | None
    seed: int
    prompts: str
    num_prompts: int
    num_failed: int
    """Answers and traces that did not come about."""
    num_all: int
    tables: list[BesideTable]
    figures: PaperFigures
    paper_figures: dict[str, str]
    """What the paper's show, by their numbers."""
    left_out: list[str]
    """What could not be made, and why."""
    differences: list[str]
    """What was other than the paper has it."""
    notes: list[str]
    open_points: list[str]
    cost: dict[str, dict[str, Cost]]
    """Of each table, by method."""
    spent: dict[str, Spent]
    """By part, and their sum as "total"."""
    calls: CallsRow
    """Of the judge."""
    runs: dict[str, RunInfo]
    """Model, reward, settings, engine and versions, by part."""


def conclude_paper(
    plan: Plan, outcomes: Mapping[str, RowOutcome], judge: str | None
) -> PaperOutcome:
    """Tables and figures of what lies in the plan's folders.

    Args:
        plan: whose parts have run.
        outcomes: of its parts, by their names.
        judge: its name; None where there was none.

    Raises:
        UsageError: a folder holds no such run.
    """
    of_tables = [outcomes[part.protocol.name] for part in plan.parts]
    traces = list(load(plan.trace)) if any(plan.trace.glob("*.parquet")) else []
    info, rows = read_bench(plan.parts[0].folder)
    figures = PaperFigures(
        example=example_of(traces),
        efficiency=summarize(rows, plan.parts[0].methods[0]),
        correlations=correlations(traces) if traces else [],
    )
    spent = {name: _spent(outcome) for name, outcome in outcomes.items()} | {
        "trace": _spent_on(traces)
    }
    num_prompts = of_tables[0]["num_prompts"]
    return PaperOutcome(
        row=NAME,
        title=TITLE,
        source=SOURCE,
        judge=judge,
        seed=_seed(info),
        prompts=of_tables[0]["prompts"],
        num_prompts=num_prompts,
        num_failed=sum(one["num_failed"] for one in of_tables) + len(load_failures(plan.trace)),
        num_all=num_prompts * (sum(len(one["methods"]) for one in of_tables) + 1),
        tables=[
            _beside(published, part, outcome)
            for published, part, outcome in zip(
                (TABLE_1, TABLE_2), plan.parts, of_tables, strict=True
            )
        ],
        figures=figures,
        paper_figures=dict(FIGURES),
        left_out=[
            *empty_tables(*of_tables, is_judged=judge is not None),
            *_empty_figures(figures, is_traced=bool(traces)),
        ],
        differences=_of_parts(outcomes, "differences"),
        notes=_of_parts(outcomes, "notes"),
        open_points=[*OPEN_POINTS, *_of_parts(outcomes, "open_points")],
        cost={name: outcome["cost"] for name, outcome in outcomes.items()},
        spent={**spent, "total": _sum(list(spent.values()))},
        calls=of_tables[0]["calls"],
        runs={
            **{part.protocol.name: read_info(part.folder) for part in plan.parts},
            "trace": read_info(plan.trace),
        },
    )


def empty_tables(table_1: RowOutcome, table_2: RowOutcome, *, is_judged: bool) -> list[str]:
    """Why a table has none of its own figures, by what its row came to."""
    empty = [] if is_judged else [NO_JUDGE]
    if 0 < table_1["num_asked"] == table_1["num_unread"]:
        empty.append(UNREAD)
    perplexities = [one for one in table_2["figures"] if one["name"] == "perplexity"]
    if all(one["estimate"]["value"] is None for one in perplexities):
        empty.append(NO_PERPLEXITY)
    return empty


def _empty_figures(figures: PaperFigures, *, is_traced: bool) -> list[str]:
    empty = [] if has_score(figures["efficiency"]) else [NO_SCORE]
    if not is_traced:
        return [*empty, NO_TRACE]
    if figures["example"] is None:
        empty.append(NO_EXAMPLE)
    known = (
        measured["estimate"]["value"]
        for at in figures["correlations"]
        for part in (at["unfinished"], at["all"])
        for measured in part.values()
    )
    return empty if any(value is not None for value in known) else [*empty, NO_CORRELATION]


def has_score(summary: Summary) -> bool:
    """Whether some method has an improvement score, which speedups in Figure 3 are at."""
    return any(one["improvement"]["value"] is not None for one in summary["methods"].values())


def _seed(info: RunInfo) -> int:
    seed = info["settings"]["seed"]
    assert isinstance(seed, int)
    return seed


def _beside(published: Published, part: PaperPart, outcome: RowOutcome) -> BesideTable:
    """The paper's methods and ours: Best-of-N by N, then the others."""
    measured: dict[str, dict[str, Estimate]] = {method: {} for method in part.methods}
    for figure in outcome["figures"]:
        measured[figure["method"]][figure["name"]] = figure["estimate"]
    return BesideTable(
        table=published.number,
        title=published.title,
        setting=published.setting,
        baseline=outcome["baseline"],
        rows=[
            BesideRow(
                method=method,
                measured=measured.get(method, {}),
                paper={
                    generator: dict(zip(published.figures, pair, strict=True))
                    for generator, pair in published.rows.get(method, {}).items()
                },
            )
            for method in sorted(dict.fromkeys([*part.methods, *published.rows]), key=_by_n)
        ],
    )


def _by_n(method: str) -> float:
    name, *numbers = method.split(":")
    return int(numbers[0]) if name == "best_of_n" else math.inf


def example_of(traces: Sequence[Trace]) -> Example | None:
    """The prompt whose Pearson correlation over unfinished candidates is the median, the lower of
    two; None where no prompt has one.
    """
    found = []
    for trace in traces:
        place = example_checkpoint(trace.checkpoints)
        live = trace.lengths > trace.checkpoints[place]
        measures = correlate(trace.rewards[live, place], trace.final_rewards[live])
        if measures["pearson"] is not None:
            found.append((measures["pearson"], trace, measures))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    _, trace, measures = found[(len(found) - 1) // 2]
    return _example(trace, measures)


def _example(trace: Trace, unfinished: dict[Measure, float | None]) -> Example:
    place = example_checkpoint(trace.checkpoints)
    partial, final = trace.rewards[:, place], trace.final_rewards
    live = trace.lengths > trace.checkpoints[place]
    slope, intercept = np.polyfit(partial[live], final[live], 1)
    return Example(
        prompt_id=trace.prompt_id,
        num_tokens=trace.checkpoints[place],
        partial=partial.tolist(),
        final=final.tolist(),
        is_unfinished=live.tolist(),
        unfinished=unfinished,
        all=correlate(partial, final),
        slope=float(slope),
        intercept=float(intercept),
        below_best=float(np.mean(partial < partial[final == final.max()].max())),
    )


def _spent(outcome: RowOutcome) -> Spent:
    costs = outcome["cost"].values()
    return Spent(
        seconds=sum(cost["seconds"]["total"] for cost in costs),
        generated_tokens=sum(cost["generated_tokens"] for cost in costs),
        reward_tokens=sum(cost["reward_tokens"] for cost in costs),
    )


def _spent_on(traces: Sequence[Trace]) -> Spent:
    usages = [trace.usage for trace in traces]
    return Spent(
        seconds=sum(usage["total_s"] for usage in usages),
        generated_tokens=sum(usage["generated_tokens"] for usage in usages),
        reward_tokens=sum(usage["reward_tokens"] for usage in usages),
    )


def _sum(parts: Sequence[Spent]) -> Spent:
    return Spent(
        seconds=sum(part["seconds"] for part in parts),
        generated_tokens=sum(part["generated_tokens"] for part in parts),
        reward_tokens=sum(part["reward_tokens"] for part in parts),
    )


def _of_parts(outcomes: Mapping[str, RowOutcome], field: str) -> list[str]:
    """What the parts say, with their names; what they all say, once."""
    said: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        lines: list[str] = outcome[field]  # type: ignore[literal-required]
        for line in lines:
            said.setdefault(line, []).append(name)
    return [f"{' and '.join(names)}: {line}" for line, names in said.items()]
