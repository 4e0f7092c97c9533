"""How the page says numbers and names.

    spoken("speculative_rejection:0.5")              # "Speculative Rejection (α = 0.5)"
    estimated({"value": 1.234, "low": 1.1, "high": 1.4}, 2)      # Cell("1.23", "1.10 to 1.40")

Nothing is computed here.
"""

import math
from collections.abc import Mapping, Sequence

from specrej.evaluation.intervals import Estimate
from specrej.evaluation.plots import short
from specrej.evaluation.report.page import Cell, Terms
from specrej.evaluation.rows import RunInfo
from specrej.evaluation.speedup import Speedup

NONE = "–"
_DIGITS = 6
_LARGE = 1e6


def is_rejecting(method: str) -> bool:
    return method.startswith("speculative_rejection")


def spoken(method: str) -> str:
    """A method's name in a sentence."""
    name, *numbers = method.split(":")
    if name == "best_of_n":
        return f"Best-of-{numbers[0]}"
    start = f", N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{numbers[1]}" if len(numbers) > 1 else ""
    return f"Speculative Rejection (α\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{numbers[0]}{start})"


def number(value: float, digits: int) -> str:
    """With commas, a real minus sign, and no minus before zero; six digits count, from a million on three."""
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
    return Cell(number(estimate["value"], digits), interval(estimate["low"], estimate["high"], digits))


def share(estimate: Estimate) -> Cell:
    """A share in percent."""
    value, low, high = (
        None if end is None else 100 * end for end in (estimate["value"], estimate["low"], estimate["high"])
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
        f"Mind the improvement score: on {plural(len(prompts), 'prompt')} ({named}) the rewards of {baseline} hardly "
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
    return [
        Terms("Run", run),
        Terms("Settings", _pairs(info["settings"])),
        Terms("Engine", _pairs(info["engine"])),
        Terms("Versions", _pairs(info["versions"])),
    ]


def _pairs(names: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
        for name, value in names.items()
    ]
