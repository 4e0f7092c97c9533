"""The tables that bench, replay and ratings print on stdout. Nothing is computed here.

print_bench(summarize(rows, baseline="best_of_n:8"))
"""

from collections.abc import Callable, Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specrej.calibration.calibrate import Calibration
from specrej.cli.display import make_table, number, plain
from specrej.evaluation.intervals import Estimate
from specrej.evaluation.metrics import MethodSummary, Summary
from specrej.evaluation.policy_words import policy_words
from specrej.evaluation.ratings.summary import RatingsSummary
from specrej.evaluation.replay_summary import PolicyRow, ReplaySummary
from specrej.evaluation.report.page import Table as PageTable
from specrej.evaluation.reproduce.protocol import Measured
from specrej.evaluation.speedup import Speedup

_HEADER = 12
"""Characters of a line of a header."""
_LARGE = 1e5
"""From here on digits tell nobody anything: an exponent does."""
_MOST_POLICIES = 12
"""Rows of a front that are printed; all are in replay.json."""


def print_measured(figures: Sequence[Measured], digits_of: Callable[[Measured], int]) -> None:
    """The figures of a row of a benchmark table; `digits_of` says with how many decimals."""
    table = make_table(("method", "left"), ("figure", "left"), "value", ("unit", "left"), "over")
    for figure in figures:
        table.add_row(
            figure["method"],
            figure["name"],
            _interval(figure["estimate"], decimals=digits_of(figure)),
            figure["unit"],
            f"{figure['num']:,}",
        )
    _wide_console().print(table)


def print_page_table(table: PageTable) -> None:
    """A table of a page, without its intervals."""
    first, *others = ("\n".join(wrap(column, _HEADER)) for column in table.columns)
    printed = make_table((first, "left"), *others)
    for row in table.rows:
        printed.add_row(row.name, *(cell.text for cell in row.cells))
    console = _wide_console()
    console.print(Text(table.caption, style="bold"))
    console.print(printed)
    if table.note:
        console.print(Text(table.note, style="dim"))


def print_calibration(calibration: Calibration) -> None:
    """The path from careful to bold, on the prompts that it was found on and on the others."""
    figures = ("cost", "regret", "cost", "regret", "below")
    table = make_table("n", ("decides at", "left"), "price", *figures, ("", "left"))
    for trial in calibration.trials:
        policy, chosen = trial.policy, calibration.chosen
        is_chosen = chosen is not None and (
            (policy.n, policy.price, policy.lengths)
            == (chosen.policy.n, chosen.policy.price, chosen.policy.lengths)
        )
        table.add_row(
            str(policy.n),
            " ".join(map(str, policy.lengths)),
            f"{policy.price:.1e}",
            *(f"{1 / trial.cost[0]:.2f}x", f"{trial.regret[0]:.3f}"),
            *(f"{1 / trial.cost[1]:.2f}x", f"{trial.regret[1]:.3f}"),
            f"{trial.bound:.2f}",
            "chosen" if is_chosen else "",
        )
    console = _wide_console()
    console.print(table)
    search, test = calibration.num_prompts
    about = (
        f"cost and regret on the {search} prompts that searched, then on the {test} others; below: "
        f"what can be promised of each alone; costs relative to Best-of-{calibration.n}"
    )
    console.print(Text(about, style="dim"))


def print_bench(summary: Summary) -> None:
    """What each method gained, what it cost, and which prompts count."""
    console = _wide_console()
    console.print(_gained(summary))
    console.print(_cost(summary))
    if any(figures["accuracy"]["num_checked"] for figures in summary["methods"].values()):
        console.print(_accuracy(summary))
    judged = _judged(summary)
    if judged.row_count:
        console.print(judged)
    console.print(Text(_bench_notes(summary), style="dim"))


def _gained(summary: Summary) -> Table:
    table = make_table(("method", "left"), "reward", "score", "median", "win", "tie", "failed")
    for method, figures in summary["methods"].items():
        rates = figures["by_reward"]
        table.add_row(
            method,
            _interval(figures["reward"]),
            _interval(figures["improvement"], decimals=1),
            _interval(figures["improvement_median"], decimals=1),
            number(rates["win"]["value"]),
            number(rates["tie"]["value"]),
            str(figures["num_failed"]),
        )
    return table


def _accuracy(summary: Summary) -> Table:
    table = make_table(("method", "left"), "accuracy", "checked", "not to be checked")
    for method, figures in summary["methods"].items():
        accuracy = figures["accuracy"]
        counts = (str(accuracy[name]) for name in ("num_checked", "num_unchecked"))
        table.add_row(method, _interval(accuracy["share"]), *counts)
    return table


def _cost(summary: Summary) -> Table:
    table = make_table(
        ("method", "left"), "seconds", "tokens", "FLOPs", "speedup (s)", "speedup (tokens)"
    )
    for method, figures in summary["methods"].items():
        relative = (figures["relative"][unit]["value"] for unit in ("seconds", "tokens", "flops"))
        table.add_row(
            method,
            *("–" if value is None else f"{value:.2f}" for value in relative),
            _speedup(figures["speedup"]["reward"]["seconds"]),
            _speedup(figures["speedup"]["reward"]["tokens"]),
        )
    return table


def _judged(summary: Summary) -> Table:
    table = make_table(
        ("judge", "left"), ("method", "left"), "win", "tie", "loss", "unclear", "prompts"
    )
    table.columns[0].no_wrap = False  # it may hold an address
    for method, figures in summary["methods"].items():
        for judge, rates in figures["by_judge"].items():
            shares = (number(rates[kind]["value"]) for kind in ("win", "tie", "loss", "unclear"))
            table.add_row(plain(judge), method, *shares, str(rates["num_prompts"]))
    return table


def _bench_notes(summary: Summary) -> str:
    words = [
        f"{summary['num_prompts']} prompts; cost, score and wins relative to "
        f"{summary['baseline']}; speedup: what "
        "Best-of-N needs for the same mean reward; [95% interval over prompts]"
    ]
    left_out = {
        "not ended by all methods": summary["num_unfinished"],
        "without a baseline": summary["num_without_baseline"],
        "without a scale for the score": summary["num_flat"],
    }
    words += [f"{count} prompts {why} are left out" for why, count in left_out.items() if count]
    if narrow := summary["narrow_prompts"]:
        named = ", ".join(map(plain, narrow[:3])) + (", ..." if len(narrow) > 3 else "")
        words.append(
            f"mind the score: on {len(narrow)} prompts ({named}) the baseline's rewards hardly "
            "differ, so a small difference is a large score; look at the median"
        )
    return "; ".join(words)


def totals_of(methods: dict[str, MethodSummary]) -> str:
    """What all methods took together."""
    costs = [figures["cost"] for figures in methods.values()]
    seconds = sum(cost["seconds"]["total"] for cost in costs)
    return f"{sum(cost['generated_tokens'] for cost in costs):,} tokens, {seconds:,.0f} s"


def print_replay(summary: ReplaySummary) -> None:
    """The front of reward against tokens, and what partial rewards are worth."""
    console = _wide_console()
    rows = {row["name"]: row for row in summary["policies"]}
    front = make_table(("policy on the front", "left"), "reward", "tokens", "best lost", "stale")
    front.columns[0].no_wrap = False  # a name in words is long
    names = summary["pareto"]["num_generated_tokens"]
    for name in names[:: max(1, -(-len(names) // _MOST_POLICIES))]:
        front.add_row(policy_words(rows[name]["policy"]), *_policy_cells(rows[name]))
    console.print(front)
    worth = make_table("checkpoint", "Pearson", "Spearman", "Kendall", "best lost at alpha 0.5")
    lost = {
        row["num_tokens"]: row["chance"] for row in summary["loss_chances"] if row["alpha"] == 0.5
    }
    for at in summary["correlations"]:
        coefficients = (
            _interval(at["unfinished"][name]["estimate"])
            for name in ("pearson", "spearman", "kendall")
        )
        worth.add_row(str(at["num_tokens"]), *coefficients, _interval(lost[at["num_tokens"]]))
    console.print(worth)


def print_ratings(summary: RatingsSummary) -> None:
    """What raters gave to each method, overall and where they differ most, and whether they
    agree.
    """
    disputed = summary["high_disagreement"]
    table = make_table(
        ("method", "left"),
        "score",
        "prompts",
        "ratings",
        "disputed",
        "prompts",
        "ratings",
        "failed",
    )
    for method, figures in summary["methods"].items():
        cells = []
        for part in (figures, disputed["methods"][method]):
            cells += [_interval(part["score"]), str(part["num_prompts"]), str(part["num_ratings"])]
        table.add_row(plain(method), *cells, str(len(summary["failed"][method])))
    console = _wide_console()
    console.print(table)
    low, high = summary["scale"]
    console.print(
        Text(
            f"scores from {low} to {high}; {summary['num_ratings']} ratings by "
            f"{len(summary['raters'])} raters of {summary['num_rated']} of {summary['num_items']} "
            f"items; [95% interval over prompts]\n"
            f"Krippendorff's alpha (interval) {_interval(summary['agreement'])} on "
            f"{summary['num_comparable']} ratings of items with two or more\n"
            "disputed: the fifth of these whose raters differ most, "
            f"{len(disputed['items'])} items with {disputed['num_ratings']} ratings; "
            f"{disputed['num_as_disputed']} items as disputed as its last are left out",
            style="dim",
        )
    )


def _policy_cells(row: PolicyRow) -> list[str]:
    figures = row["figures"]
    tokens, stale = figures["num_generated_tokens"]["value"], figures["stale_share"]["value"]
    return [
        _interval(figures["reward"]),
        "–" if tokens is None else f"{tokens:,.0f}",
        number(figures["loss_chance"]["value"]),
        number(stale),
    ]


def _wide_console() -> Console:
    """Whole rows where nobody's window limits them."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _interval(figure: Estimate, decimals: int = 2) -> str:
    if figure["value"] is None:
        return "–"
    value = _rounded(figure["value"], decimals)
    if figure["low"] is None or figure["high"] is None:
        return value
    return f"{value} [{_rounded(figure['low'], decimals)}, {_rounded(figure['high'], decimals)}]"


def _rounded(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < _LARGE else f"{value:.2e}"


def _speedup(figure: Speedup | None) -> str:
    if figure is None:
        return "–"
    if figure["outcome"] == "reached":
        low, high = (_end(figure[end]) for end in ("low", "high"))
        return f"{figure['value']:.2f} [{low}, {high}]"
    return f"{'>' if figure['outcome'] == 'not_reached' else '<'} {figure['value']:.2f}"


def _end(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
