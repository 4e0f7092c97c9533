"""How the page says numbers and names, and the finding of a bench in two sentences, for better or
worse.

spoken("speculative_rejection:0.5")              # "Speculative Rejection (α = 0.5)"
estimated({"value": 1.234, "low": 1.1, "high": 1.4}, 2)      # Cell("1.23", "1.10 to 1.40")
headline(summary)  # "At equal reward, Speculative Rejection (α = 0.5) takes ..."
"""

import json
import math
from collections.abc import Mapping, Sequence

from specrej.evaluation.figure import short
from specrej.evaluation.intervals import Estimate
from specrej.evaluation.metrics import COMPUTES, MethodSummary, Summary
from specrej.evaluation.report.page import Cell, Terms
from specrej.evaluation.rows import RunInfo
from specrej.evaluation.speedup import Speedup

NONE = "–"
_DIGITS = 6
_LARGE = 1e6


def chief_method(summary: Summary) -> str:
    """The method of the highest mean reward, of equal ones the cheapest, among those that
    reject; else among all.
    """
    methods = summary["methods"]
    rejecting = [method for method in methods if is_rejecting(method)]
    return max(
        rejecting or methods, key=lambda name: (_reward(methods[name]), -_seconds(methods[name]))
    )


def _reward(method: MethodSummary) -> float:
    value = method["reward"]["value"]
    return float("-inf") if value is None else value


def _seconds(method: MethodSummary) -> float:
    value = method["relative"]["seconds"]["value"]
    return float("inf") if value is None else value


def headline(summary: Summary) -> str:
    """What the chief method's reward costs beside Best-of-N's, in seconds."""
    chief = chief_method(summary)
    method = summary["methods"][chief]
    speedup = method["speedup"]["reward"]["seconds"] if is_rejecting(chief) else None
    if summary["num_prompts"] == 0:
        return "No prompt has an answer of all methods yet, so there is nothing to compare."
    if speedup is None:
        reward = method["reward"]
        ends = in_brackets(reward["low"], reward["high"], 2)
        return f"{spoken(chief)} reaches a mean reward of {_reward(method):.2f}{ends}."
    return _on_speedup(chief, speedup, f"{_gap(method)} to {spoken(summary['baseline'])}")


def _gap(method: MethodSummary) -> str:
    """The difference in reward, which may well be noise."""
    gap = method["difference"]
    return f"a difference of {estimated(gap, 3).text}{in_brackets(gap['low'], gap['high'], 3)}"


def _on_speedup(chief: str, speedup: Speedup, gap: str) -> str:
    name, value = spoken(chief), speedup["value"]
    if speedup["outcome"] == "not_reached":
        return (
            f"No Best-of-N of this run reaches the mean reward of {name}, {gap}; the dearest takes "
            f"{value:.2f} times "
            "its seconds."
        )
    if speedup["outcome"] == "below":
        return (
            f"{name} stays below the mean reward of the cheapest Best-of-N of this run, which "
            f"takes {value:.2f} times "
            "its seconds: there is no speedup."
        )
    ends = in_brackets(speedup["low"], speedup["high"], 2)
    if value < 1:
        return (
            f"{name} is slower than Best-of-N: at equal mean reward its speedup in seconds is "
            f"{value:.2f}{ends}."
        )
    doubt = "" if (speedup["low"] or 0) > 1 else "; that it is slower is not ruled out"
    return f"{name} is {value:.2f} times as fast as Best-of-N at equal mean reward{ends}{doubt}."


def lead(summary: Summary) -> str:
    """How the chief method stands to the baseline, and what all of it rests on."""
    chief, baseline = chief_method(summary), summary["baseline"]
    counted = f"All figures rest on {plural(summary['num_prompts'], 'prompt')}."
    if chief == baseline or summary["num_prompts"] == 0:
        return counted
    method = summary["methods"][chief]
    score, relative = method["improvement"], method["relative"]
    ends = in_brackets(score["low"], score["high"], 1)
    gain = (
        "no improvement score"
        if score["value"] is None
        else f"an improvement score of {score['value']:.1f}{ends}"
    )
    words = {"seconds": "seconds", "tokens": "tokens", "flops": "FLOPs"}
    costs = [
        f"{relative[c]['value']:.2f} of its {words[c]}"
        for c in COMPUTES
        if relative[c]["value"] is not None
    ]
    known = f", for {', '.join(costs)}" if costs else ""
    return f"Against {spoken(baseline)} (score 100) it has {gain}{known}. {counted}"


def is_rejecting(method: str) -> bool:
    return method.startswith("speculative_rejection")


def spoken(method: str) -> str:
    """A method's name in a sentence."""
    name, *numbers = method.split(":")
    if name == "best_of_n":
        return f"Best-of-{numbers[0]}"
    if not is_rejecting(method):
        return method.replace("_", " ")
    start = f", N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{numbers[1]}" if len(numbers) > 1 else ""
    return f"Speculative Rejection (α\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{numbers[0]}{start})"


def number(value: float, digits: int) -> str:
    """With commas, a real minus sign, and no minus before zero; six digits count, from a million
    on three.
    """
    if abs(value) >= _LARGE:
        return short(value).replace("-", "−")
    if value:
        digits = min(digits, max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))))
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def interval(low: float | None, high: float | None, digits: int) -> str:
    """The two ends; nothing where there are none, or where they are the same in so many digits."""
    if low is None or high is None or number(low, digits) == number(high, digits):
        return ""
    return f"{number(low, digits)} to {number(high, digits)}"


def estimated(estimate: Estimate | None, digits: int) -> Cell:
    """A figure over its interval."""
    if estimate is None or estimate["value"] is None:
        return Cell(NONE)
    return Cell(
        number(estimate["value"], digits), interval(estimate["low"], estimate["high"], digits)
    )


def share(estimate: Estimate) -> Cell:
    """A share in percent."""
    value, low, high = (
        None if end is None else 100 * end
        for end in (estimate["value"], estimate["low"], estimate["high"])
    )
    return Cell(NONE if value is None else f"{value:.0f}%", interval(low, high, 0))


def quickened(speedup: Speedup | None) -> Cell:
    """A speedup; where Best-of-N never gets there, the bound that is known."""
    if speedup is None:
        return Cell(NONE)
    ends = interval(speedup["low"], speedup["high"], 2)
    if speedup["outcome"] == "not_reached":
        return Cell(f"not reached (> {speedup['value']:.2f})", ends)
    if speedup["outcome"] == "below":
        return Cell(f"below (< {speedup['value']:.2f})", ends)
    return Cell(f"{speedup['value']:.2f}", ends)


def in_brackets(low: float | None, high: float | None, digits: int) -> str:
    """An interval in a sentence."""
    ends = interval(low, high, digits)
    return f" (95% interval {ends})" if ends else ""


def doubt(prompts: Sequence[str], baseline: str) -> str:
    """Why the mean of an improvement score may be that of few prompts."""
    named = ", ".join(prompts[:3]) + (", ..." if len(prompts) > 3 else "")
    return (
        f"Mind the improvement score: on {plural(len(prompts), 'prompt')} ({named}) the rewards of "
        f"{baseline} hardly "
        "differ, so a small difference is a large score; the median is not moved by it"
    )


def titled(text: str) -> str:
    """With its first letter large, and the others as they are."""
    return f"{text[0].upper()}{text[1:]}"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def title_of(command: str, info: RunInfo) -> str:
    """What was run, in a line."""
    return f"specrej {command} · {info['engine']['model']} · reward {info['settings']['reward']}"


def provenance(info: RunInfo) -> list[Terms]:
    """What was run, on what, with which versions."""
    prompts = info["prompts"]
    run = [
        ("began", info["created"]),
        ("prompts", f"{prompts['source']} ({prompts['num_prompts']:,})"),
        ("sha256 of the prompts", prompts["sha256"]),
        ("methods", ", ".join(info["methods"])),
    ]
    by_category = _pairs(info.get("temperatures", {}))
    return [
        Terms("Run", run),
        Terms("Settings", _pairs(info["settings"])),
        *([Terms("Temperatures by category", by_category)] if by_category else []),
        Terms("Engine", _pairs(info["engine"])),
        Terms("Versions", _pairs(info["versions"])),
    ]


def _pairs(names: Mapping[str, object]) -> list[tuple[str, str]]:
    """Each by its name, in words; what was not set is left out."""
    return [
        (name.replace("_", " "), _in_words(value))
        for name, value in names.items()
        if value not in (None, [], {})
    ]


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
