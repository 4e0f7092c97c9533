"""The page of a trace with a replay: what policies would have cost and gained, and what a partial
reward is worth.

    page = replay_page(directory)

Figures and tables show what replay.json holds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from specrej.errors import UsageError
from specrej.evaluation.folder import read_info
from specrej.evaluation.plots import Point, pareto, violins
from specrej.evaluation.policy_words import policy_words
from specrej.evaluation.report.headline import (
    estimated,
    number,
    plural,
    provenance,
    title_of,
    titled,
)
from specrej.evaluation.report.page import Cell, Page, Section, Table, TableRow, picture

if TYPE_CHECKING:
    from specrej.evaluation.correlation import CheckpointCorrelations, Measure
    from specrej.evaluation.replay_summary import PolicyRow, ReplaySummary

_REPLAY = "replay.json"
_UNITS = {"num_generated_tokens": "generated tokens per prompt", "flops": "FLOPs per prompt"}
_MEASURES: "tuple[Measure, ...]" = ("pearson", "spearman", "kendall")


def replay_page(directory: Path) -> Page:
    """See `write_report`."""
    info = read_info(directory)
    try:
        summary = cast(
            "ReplaySummary", json.loads((directory / _REPLAY).read_text(encoding="utf-8"))
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{directory} holds a trace without a replay",
            hint=f"run specrej replay {directory} first",
        ) from error
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    sections = [
        _front(summary, plots),
        correlation_section(summary["correlations"], plots),
        _losses(summary),
        _refused(summary),
        Section("run", "How it was run", terms=provenance(info)),
    ]
    filled = [section for section in sections if section.is_filled]
    return Page(title_of("replay", info), _headline(summary), _lead(summary), filled)


def _replayed(summary: "ReplaySummary") -> "dict[str, PolicyRow]":
    return {row["name"]: row for row in summary["policies"] if row["figures"]}


def _headline(summary: "ReplaySummary") -> str:
    """The best policy that rejects, beside the best Best-of-N."""
    best, other = _best(summary, rejecting=True), _best(summary, rejecting=False)
    if best is None or other is None:
        return (
            f"{len(_replayed(summary)):,} policies of one kind, without the other to compare with."
        )
    return f"Of the policies that reject, {_told(best)}; of Best-of-N, {_told(other)}."


def _best(summary: "ReplaySummary", *, rejecting: bool) -> "PolicyRow | None":
    """The policy of the highest mean reward; of equal ones the cheapest."""
    rows = [row for row in _replayed(summary).values() if row["is_rejecting"] is rejecting]
    return max(
        rows,
        key=lambda row: (_mean(row, "reward"), -_mean(row, "num_generated_tokens")),
        default=None,
    )


def _told(row: "PolicyRow") -> str:
    reward, tokens = number(_mean(row, "reward"), 2), number(_mean(row, "num_generated_tokens"), 0)
    return (
        f"“{policy_words(row['policy'])}” has the highest mean reward, {reward} with {tokens} "
        "tokens a prompt"
    )


def _lead(summary: "ReplaySummary") -> str:
    intervals = [
        f"{policy_words(row['policy'])}: "
        f"{estimated(row['figures']['reward'], 2).interval or 'none'}"
        for row in (_best(summary, rejecting=True), _best(summary, rejecting=False))
        if row is not None
    ]
    missing = (
        f" {plural(summary['num_failed'], 'prompt')} could not be recorded."
        if summary["num_failed"]
        else ""
    )
    prompts = plural(summary["num_prompts"], "prompt")
    return (
        f"95% intervals of these rewards: {'; '.join(intervals)}. {len(_replayed(summary)):,} "
        "policies were replayed "
        f"on the recorded candidates of {prompts}.{missing} The best of many policies looks better "
        "than it is: choose "
        "on some prompts, and judge on others."
    )


def _mean(row: "PolicyRow", name: str) -> float:
    value = row["figures"][name]["value"]
    return math.nan if value is None else value


def _front(summary: "ReplaySummary", plots: Path) -> Section:
    rows = _replayed(summary)
    pictures = []
    for unit, names in summary["pareto"].items():
        cloud = [_point(row, unit, "") for row in rows.values()]
        front = [_point(rows[name], unit, _label(rows[name])) for name in names]
        told = "; ".join(policy_words(rows[name]["policy"]) for name in names)
        pictures.append(
            picture(
                pareto(cloud, front, unit=_UNITS[unit]),
                plots / f"pareto-{unit.replace('_', '-')}",
                title=f"Reward against {_UNITS[unit]}",
                caption=f"{len(cloud):,} policies, {len(front)} on the front",
                label=f"Mean reward against {_UNITS[unit]}. On the front, by rising cost: {told}.",
            )
        )
    prose = (
        "Each dot is a policy; those in colour are beaten by none in both reward and cost. Cost is "
        "on a log scale."
    )
    tables = [_front_table(rows, unit, names) for unit, names in summary["pareto"].items()]
    return Section("pareto", "Reward against compute", prose, figures=pictures, tables=tables)


def _label(row: "PolicyRow") -> str:
    """What stands beside a dot: of Best-of-N alone, for the policies that reject are many."""
    return "" if row["is_rejecting"] else f"N={row['policy']['n']}"


def _point(row: "PolicyRow", unit: str, label: str) -> Point:
    return Point(
        label=label, x=_mean(row, unit), y=_mean(row, "reward"), rejects=row["is_rejecting"]
    )


def _front_table(rows: "Mapping[str, PolicyRow]", unit: str, names: list[str]) -> Table:
    digits = {
        "reward": 3,
        unit: 0,
        "regret": 3,
        "loss_chance": 2,
        "num_candidates": 1,
        "stale_share": 2,
    }
    lines = [
        TableRow(
            titled(policy_words(rows[name]["policy"])),
            [
                estimated(rows[name]["figures"].get(figure), places)
                for figure, places in digits.items()
            ],
            rows[name]["is_rejecting"],
        )
        for name in names
    ]
    columns = (
        "Policy",
        "Mean reward",
        titled(_UNITS[unit]),
        "Regret",
        "Best lost",
        "N at start",
        "Stale rewards",
    )
    note = (
        "Regret: what the best recorded candidate has above the winner. Best lost: share of "
        "prompts. Stale rewards: "
        "share of rewards older than the decision they served; at 0 the replay is exact."
    )
    return Table(f"The front by {_UNITS[unit]}", columns, lines, note)


def correlation_section(correlations: "Sequence[CheckpointCorrelations]", plots: Path) -> Section:
    """What a partial reward tells of the final one; the figures are saved in `plots`."""
    pictures = []
    for measure in _MEASURES:
        values = {at["num_tokens"]: _by_prompt(at, measure) for at in correlations}
        told = "; ".join(
            f"{at['num_tokens']} tokens: {estimated(at['unfinished'][measure]['estimate'], 2).text}"
            for at in correlations
        )
        pictures.append(
            picture(
                violins(values, name=measure.capitalize()),
                plots / f"correlation-{measure}",
                title=measure.capitalize(),
                caption="",
                label=f"{measure.capitalize()} correlation of partial and final reward, mean over "
                f"prompts. {told}.",
            )
        )
    prose = (
        "How well the reward of an unfinished answer tells its final reward, over the candidates "
        "of a prompt that are "
        "unfinished at the checkpoint. A violin is the spread over prompts, with quartiles and "
        "median."
    )
    return Section(
        "correlation",
        "What a partial reward tells",
        prose,
        pictures,
        [correlation_table(correlations)],
    )


def _by_prompt(at: "CheckpointCorrelations", measure: "Measure") -> list[float]:
    return [
        math.nan if value is None else value for value in at["unfinished"][measure]["by_prompt"]
    ]


def correlation_table(correlations: "Sequence[CheckpointCorrelations]") -> Table:
    """Means over prompts at each checkpoint."""
    lines = [
        TableRow(
            f"{at['num_tokens']} tokens",
            [
                Cell(f"{at['live_share']:.0%}"),
                *(estimated(at["unfinished"][measure]["estimate"], 2) for measure in _MEASURES),
                *(estimated(at["all"][measure]["estimate"], 2) for measure in _MEASURES),
            ],
        )
        for at in correlations
    ]
    of_all = (f"{measure.capitalize()}, all" for measure in _MEASURES)
    columns = (
        "Checkpoint",
        "Unfinished",
        *(measure.capitalize() for measure in _MEASURES),
        *of_all,
    )
    note = (
        "Means over prompts with 95% intervals. In the columns of all, finished candidates agree "
        "with themselves."
    )
    return Table("Correlation of partial and final reward", columns, lines, note)


def _losses(summary: "ReplaySummary") -> Section:
    alphas = sorted({loss["alpha"] for loss in summary["loss_chances"]})
    chances = {
        (loss["num_tokens"], loss["alpha"]): loss["chance"] for loss in summary["loss_chances"]
    }
    lengths = sorted({num_tokens for num_tokens, _ in chances})
    lines = [
        TableRow(
            f"{length} tokens", [estimated(chances.get((length, alpha)), 2) for alpha in alphas]
        )
        for length in lengths
    ]
    columns = ("Checkpoint", *(f"α = {alpha:g}" for alpha in alphas))
    table = Table("Chance to lose the best candidate", columns, lines)
    prose = (
        "Share of prompts on which a single decision with that α, at that checkpoint, rejects the "
        "best candidate."
    )
    return Section("losses", "What a decision risks", prose, tables=[table] if lines else [])


def _refused(summary: "ReplaySummary") -> Section:
    refused = [row for row in summary["policies"] if row["error"]]
    lines = [
        TableRow(
            titled(policy_words(row["policy"])),
            [Cell(row["error"] or "", is_words=True)],
            row["is_rejecting"],
        )
        for row in refused
    ]
    table = Table("Policies that some prompt does not allow", ("Policy", "Why"), lines)
    return Section("refused", "Not replayed", "", tables=[table] if lines else [])
