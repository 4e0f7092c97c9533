"""The tables of a bench's page: one line a method, from `metrics.summarize`.

    for table in method_tables(summary, rows):
        print(table.caption, len(table.rows))

Nothing is computed here but how many candidates a method began with.
"""

from collections.abc import Callable, Sequence

from specrej.evaluation.metrics import COMPUTES, RISK_AVERSION, SCORES, MethodSummary, Summary
from specrej.evaluation.report.headline import (
    NONE,
    estimated,
    is_rejecting,
    quickened,
    share,
    spoken,
)
from specrej.evaluation.report.page import Cell, Table, TableRow
from specrej.evaluation.rows import BenchRow
from specrej.memory import format_bytes

Cells = Callable[[str, MethodSummary], Sequence[Cell]]


def method_tables(summary: Summary, rows: Sequence[BenchRow]) -> list[Table]:
    """Gain and compute, accuracy where answers can be checked, speedups, wins, those by each
    judge, perplexity, risk.
    """
    return [
        _gain(summary, rows),
        *_accuracy(summary),
        _speedups(summary),
        _wins(summary),
        *_judged(summary),
        _perplexity(summary),
        _risk(summary),
    ]


def _lines(summary: Summary, cells: Cells) -> list[TableRow]:
    return [
        TableRow(spoken(name), cells(name, method), is_rejecting(name))
        for name, method in summary["methods"].items()
    ]


def _gain(summary: Summary, rows: Sequence[BenchRow]) -> Table:
    def cells(name: str, method: MethodSummary) -> list[Cell]:
        relative = [estimated(method["relative"][measure], 2) for measure in COMPUTES]
        return [
            Cell(_begun(rows, name)),
            estimated(method["reward"], 3),
            estimated(method["difference"], 3),
            estimated(method["improvement"], 1),
            estimated(method["improvement_median"], 1),
            *relative,
            Cell(format_bytes(method["cost"]["peak_kv_bytes"])),
            Cell(str(method["num_failed"])),
        ]

    base = spoken(summary["baseline"])
    costs = ("Seconds, relative", "Tokens, relative", "FLOPs, relative")
    columns = (
        "Method",
        "N at start",
        "Mean reward",
        "Difference",
        "Improvement score",
        "Its median",
        *costs,
        "Peak KV",
        "Failed",
    )
    note = (
        f"Difference and compute are relative to {base}. The improvement score is 100 where a "
        "method's reward is that "
        f"of {base}, and 0 where it is that of its lowest candidate."
    )
    return Table("Gain and compute", columns, _lines(summary, cells), note)


def _accuracy(summary: Summary) -> list[Table]:
    """None where no answer can be checked."""

    def cells(_: str, method: MethodSummary) -> list[Cell]:
        accuracy = method["accuracy"]
        counts = [Cell(str(accuracy[name])) for name in ("num_checked", "num_unchecked")]
        return [share(accuracy["share"]), *counts]

    if not any(method["accuracy"]["num_checked"] for method in summary["methods"].values()):
        return []
    note = (
        "Share of the prompts whose answers can be checked on which the chosen answer is right, "
        "with Wilson's interval; who failed is wrong. Not checked: prompts with an instruction "
        "that is not known here."
    )
    columns = ("Method", "Accuracy", "Checked", "Not checked")
    return [Table("Accuracy", columns, _lines(summary, cells), note)]


def _begun(rows: Sequence[BenchRow], method: str) -> str:
    """Candidates at the start, from the fewest to the most of any turn."""
    counts = [
        len(turn["candidates"]) for row in rows if row["method"] == method for turn in row["turns"]
    ]
    if not counts:
        return NONE
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _speedups(summary: Summary) -> Table:
    def cells(_: str, method: MethodSummary) -> list[Cell]:
        return [
            quickened(method["speedup"][score][measure]) for score in SCORES for measure in COMPUTES
        ]

    units = ("Seconds", "Tokens", "FLOPs")
    columns = (
        "Method",
        *(f"{unit}, equal {score}" for score in ("reward", "score") for unit in units),
    )
    note = (
        "How many times the method's compute Best-of-N needs for the same mean reward or "
        "improvement score, "
        "interpolated between the Best-of-N of this run, linear in the log of compute. Not "
        "reached: no Best-of-N of "
        "the run scores as high, and the dearest bounds the speedup from below. Below: the "
        "cheapest scores "
        "higher already."
    )
    return Table("Speedup at equal reward", columns, _lines(summary, cells), note)


def _wins(summary: Summary) -> Table:
    def cells(_: str, method: MethodSummary) -> list[Cell]:
        rates = method["by_reward"]
        return [
            share(rates["win"]),
            share(rates["tie"]),
            share(rates["loss"]),
            Cell(str(rates["num_prompts"])),
        ]

    columns = ("Method", "Win, by reward", "Tie", "Loss", "Prompts")
    note = "Shares of prompts. A tie is an equal reward or the same text; who failed has lost."
    return Table(
        f"Wins against {spoken(summary['baseline'])}", columns, _lines(summary, cells), note
    )


def _judged(summary: Summary) -> list[Table]:
    """A table a judge: judges differ, and what they say is never put together."""
    judges = dict.fromkeys(
        name for method in summary["methods"].values() for name in method["by_judge"]
    )
    columns = ("Method", "Win", "Tie", "Loss", "Unclear", "Judged")
    note = (
        "Shares of the prompts that this judge was asked about. A win is preferred in both orders. "
        "Unclear: its replies could not be read."
    )
    base = spoken(summary["baseline"])
    return [
        Table(f"Wins against {base}, by the judge {name}", columns, _of_judge(summary, name), note)
        for name in judges
    ]


def _of_judge(summary: Summary, judge: str) -> list[TableRow]:
    return [
        TableRow(
            spoken(name),
            [
                *(share(rates[kind]) for kind in ("win", "tie", "loss", "unclear")),
                Cell(str(rates["num_prompts"])),
            ],
            is_rejecting(name),
        )
        for name, method in summary["methods"].items()
        if (rates := method["by_judge"].get(judge))
    ]


def _perplexity(summary: Summary) -> Table:
    def cells(_: str, method: MethodSummary) -> list[Cell]:
        to_largest = method["speedup_to_largest"]
        times = [
            estimated(to_largest[measure], 2) if to_largest else Cell(NONE) for measure in COMPUTES
        ]
        return [estimated(method["perplexity"], 3), *times]

    columns = ("Method", "Perplexity", "Speedup, seconds", "Speedup, tokens", "Speedup, FLOPs")
    note = (
        "Perplexity of the chosen answers under the generator, lower is likelier. Speedup: compute "
        "of the largest "
        "Best-of-N of the run by the method's, whatever their rewards."
    )
    return Table("Perplexity", columns, _lines(summary, cells), note)


def _risk(summary: Summary) -> Table:
    def cells(_: str, method: MethodSummary) -> list[Cell]:
        risk = method["risk"]
        return [estimated(risk[name], 3) for name in ("mean_minus_sigma", "cvar", "high_variance")]

    columns = ("Method", f"Mean − {RISK_AVERSION:g} σ", "CVaR 10%", "High-variance prompts")
    count = len(summary["high_variance_prompts"])
    note = (
        "Rewards over prompts: the mean less its standard deviation, the mean of the worst tenth, "
        "and the mean over "
        f"the fifth of prompts ({count}) on which the candidates of {spoken(summary['baseline'])} "
        "differ most."
    )
    return Table("Risk", columns, _lines(summary, cells), note)
