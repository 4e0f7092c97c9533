"""The finding of a bench in two sentences, for better or worse.

headline(summary)                                # "At equal reward, Speculative Rejection (α = 0.5) takes ..."
"""

from specrej.evaluation.metrics import COMPUTES, MethodSummary, Summary
from specrej.evaluation.report.words import estimated, in_brackets, is_rejecting, plural, spoken
from specrej.evaluation.speedup import Speedup


def chief_method(summary: Summary) -> str:
    """The method of the highest mean reward, of equal ones the cheapest, among those that reject; else among all."""
    methods = summary["methods"]
    rejecting = [method for method in methods if is_rejecting(method)]
    return max(rejecting or methods, key=lambda name: (_reward(methods[name]), -_seconds(methods[name])))


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
            f"No Best-of-N of this run reaches the mean reward of {name}, {gap}; the dearest takes {value:.2f} times "
            "its seconds."
        )
    if speedup["outcome"] == "below":
        return (
            f"{name} stays below the mean reward of the cheapest Best-of-N of this run, which takes {value:.2f} times "
            "its seconds: there is no speedup."
        )
    ends = in_brackets(speedup["low"], speedup["high"], 2)
    if value < 1:
        return f"{name} is slower than Best-of-N: at equal mean reward its speedup in seconds is {value:.2f}{ends}."
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
    gain = "no improvement score" if score["value"] is None else f"an improvement score of {score['value']:.1f}{ends}"
    words = {"seconds": "seconds", "tokens": "tokens", "flops": "FLOPs"}
    costs = [f"{relative[c]['value']:.2f} of its {words[c]}" for c in COMPUTES if relative[c]["value"] is not None]
    known = f", for {', '.join(costs)}" if costs else ""
    return f"Against {spoken(baseline)} (score 100) it has {gain}{known}. {counted}"
