"""The page's first sentence is as good or as bad as the figures."""

import re
from typing import Literal

import pytest
from synthetic import METHODS, make_bench

from specrej.evaluation.metrics import Summary, summarize
from specrej.evaluation.report.headline import chief_method, headline, lead, number, spoken

Outcome = Literal["reached", "not_reached", "below"]


def summary_with(outcome: Outcome, value: float, low: float | None, high: float | None) -> Summary:
    _, rows = make_bench(
        num_prompts=3, methods=["best_of_n:4", "speculative_rejection:0.5"], num_failures=0
    )
    summary = summarize(rows, "best_of_n:4")
    method = summary["methods"]["speculative_rejection:0.5"]
    method["speedup"]["reward"]["seconds"] = {
        "outcome": outcome,
        "value": value,
        "low": low,
        "high": high,
    }
    return summary


@pytest.mark.parametrize(
    ("outcome", "value", "low", "high", "words"),
    [
        ("reached", 2.5, 1.8, 3.1, r"is 2\.50 times as fast .* \(95% interval 1\.80 to 3\.10\)\.$"),
        ("reached", 1.5, 0.8, 3.1, r"1\.50 times .*; that it is slower is not ruled out\.$"),
        ("reached", 1.5, None, None, r"1\.50 times .* equal mean reward; that it is slower is not"),
        ("reached", 0.5, 0.4, 0.6, r"is slower than .* 0\.50 \(95% interval 0\.40 to 0\.60\)\.$"),
        ("not_reached", 3.0, None, None, r"^No Best-of-N .* 3\.00 times its seconds\.$"),
        ("below", 0.7, None, None, r"stays below .* there is no speedup\.$"),
    ],
)  # fmt: skip
def test_the_headline_is_honest(
    outcome: Outcome, value: float, low: float | None, high: float | None, words: str
) -> None:
    text = headline(summary_with(outcome, value, low, high))
    assert re.search(words, text)
    assert spoken("speculative_rejection:0.5") in text


def test_the_lead_has_the_score_with_its_interval() -> None:
    summary = summary_with("reached", 2.5, 1.8, 3.1)
    score = summary["methods"]["speculative_rejection:0.5"]["improvement"]
    assert f"an improvement score of {number(score['value'] or 0, 1)}" in lead(summary)
    assert "3 prompts" in lead(summary)


def test_the_chief_method_rejects_and_has_the_highest_reward() -> None:
    _, rows = make_bench(num_failures=0)
    summary = summarize(rows, "best_of_n:64")
    rewards = {
        name: method["reward"]["value"] or 0.0 for name, method in summary["methods"].items()
    }
    rejecting = [name for name in METHODS if name.startswith("speculative")]
    cost = {
        name: method["relative"]["seconds"]["value"] or 0.0
        for name, method in summary["methods"].items()
    }
    assert chief_method(summary) == max(rejecting, key=lambda name: (rewards[name], -cost[name]))
