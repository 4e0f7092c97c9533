"""What raters' scores say: mean score of each method, agreement, and the items that divide them.

    summary = import_ratings("out", ["anna.csv", "ratings-ben.jsonl"])
    summary["methods"]["speculative_rejection:0.5"]["score"]     # {"value": 7.1, "low": 6.4, ...}

A method's score on a prompt is the mean over the raters of its answer, its score the mean over
prompts. Intervals are of 95%, by the bootstrap over prompts: they say what other prompts would
change, not what other raters would. Agreement and the high-disagreement items are defined in
`agreement`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import numpy as np

from specrej.evaluation.intervals import Estimate, mean_of
from specrej.evaluation.ratings.agreement import alpha_of, most_disputed, variance
from specrej.evaluation.ratings.reading import Rating, answers_of, read_ratings
from specrej.evaluation.ratings.sheet import KeyItem, SheetKey


class MethodRatings(TypedDict):
    """What raters gave to one method."""

    score: Estimate
    num_prompts: int
    """Prompts that carry the score: those of which the method's answer was rated."""
    num_ratings: int
    """Of its answers; those that other methods gave as well count for each of them."""


class RaterFigures(TypedDict):
    """One rater."""

    num_ratings: int
    mean: float


class DisputedItem(TypedDict):
    """An answer on which raters differ."""

    prompt_id: str
    methods: list[str]
    scores: dict[str, int]
    """By rater."""
    variance: float


class HighDisagreement(TypedDict):
    """The fifth of items whose raters differ most, of those with two ratings or more."""

    items: list[DisputedItem]
    """The most disputed first."""
    num_ratings: int
    """What this subset costs: ratings of its items."""
    num_as_disputed: int
    """Items that were left out although they are as disputed as the last one that was not."""
    methods: dict[str, MethodRatings]


class RatingsSummary(TypedDict):
    """All figures of a rating, in JSON's types."""

    sheets: list[str]
    scale: list[int]
    num_items: int
    """Answers in the sheets."""
    num_rated: int
    """Answers with a rating."""
    num_ratings: int
    """What the rating cost."""
    num_comparable: int
    """Ratings that the agreement rests on: of items with two or more."""
    raters: dict[str, RaterFigures]
    agreement: Estimate
    """Krippendorff's alpha, interval metric."""
    failed: dict[str, list[str]]
    """By method, the prompts that it failed on; they were not rated, of no method."""
    methods: dict[str, MethodRatings]
    """In the run's order."""
    high_disagreement: HighDisagreement


def import_ratings(directory: str | Path, paths: Sequence[str | Path]) -> RatingsSummary:
    """The figures of raters' files. Nothing is written.

    Args:
        directory: of the bench that the sheets were made from.
        paths: the raters' files, of one sheet of the folder or of several.

    Raises:
        UsageError: files or lines that cannot be used; see `reading.read_ratings`.
    """
    return summarize_ratings(*read_ratings(directory, paths))


def summarize_ratings(ratings: Sequence[Rating], keys: Sequence[SheetKey]) -> RatingsSummary:
    """The figures of ratings, of sheets of one bench.

    Args:
        ratings: at least one, of any raters, at most one a rater and answer.
        keys: of the sheets that hold the answers; their scales are equal.
    """
    answers = answers_of(keys)
    methods = list(dict.fromkeys(name for key in keys for name in key["methods"]))
    # In an order of their own: figures do not depend on that of the files.
    order = sorted(answers, key=lambda answer: (answers[answer]["prompt_id"], answer))
    given: dict[str, dict[str, int]] = {answer: {} for answer in order}
    for rating in ratings:
        given[rating.answer][rating.rater] = rating.score
    scores = {answer: by_rater for answer, by_rater in given.items() if by_rater}
    by_prompt: dict[str, list[list[int]]] = {}
    for answer, by_rater in scores.items():
        prompt_id = answers[answer]["prompt_id"]
        by_prompt.setdefault(prompt_id, []).append(list(by_rater.values()))
    return {
        "sheets": [key["sheet"] for key in keys],
        "scale": keys[0]["scale"],
        "num_items": len(answers),
        "num_rated": len(scores),
        "num_ratings": len(ratings),
        "num_comparable": sum(len(one) for one in scores.values() if len(one) > 1),
        "raters": _raters(ratings),
        "agreement": alpha_of(list(by_prompt.values())),
        "failed": _failed(keys, methods),
        "methods": {name: _method(name, answers, scores) for name in methods},
        "high_disagreement": _high_disagreement(answers, scores, methods),
    }


def _raters(ratings: Iterable[Rating]) -> dict[str, RaterFigures]:
    given: dict[str, list[int]] = {}
    for rating in ratings:
        given.setdefault(rating.rater, []).append(rating.score)
    return {
        name: {"num_ratings": len(scores), "mean": fmean(scores)}
        for name, scores in sorted(given.items())
    }


def _failed(keys: Iterable[SheetKey], methods: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {name: {} for name in methods}
    for key in keys:
        for name, prompt_ids in key["failed"].items():
            found[name] |= dict.fromkeys(prompt_ids)
    return {name: list(prompt_ids) for name, prompt_ids in found.items()}


def _method(
    name: str, answers: Mapping[str, KeyItem], scores: Mapping[str, Mapping[str, int]]
) -> MethodRatings:
    """A method's figures on the answers that have scores here."""
    own = [given for answer, given in scores.items() if name in answers[answer]["methods"]]
    return {
        "score": mean_of(np.array([fmean(given.values()) for given in own], dtype=np.float64)),
        "num_prompts": len(own),
        "num_ratings": sum(map(len, own)),
    }


def _high_disagreement(
    answers: Mapping[str, KeyItem],
    scores: Mapping[str, Mapping[str, int]],
    methods: Sequence[str],
) -> HighDisagreement:
    given = {answer: list(by_rater.values()) for answer, by_rater in scores.items()}
    chosen = most_disputed(given)
    least = variance(given[chosen[-1]]) if chosen else None
    subset = {answer: scores[answer] for answer in chosen}
    return {
        "items": [
            {
                "prompt_id": answers[answer]["prompt_id"],
                "methods": [name for name in methods if name in answers[answer]["methods"]],
                "scores": dict(sorted(by_rater.items())),
                "variance": float(variance(given[answer])),
            }
            for answer, by_rater in subset.items()
        ],
        "num_ratings": sum(map(len, subset.values())),
        "num_as_disputed": sum(
            variance(of_item) == least
            for answer, of_item in given.items()
            if len(of_item) > 1 and answer not in subset
        ),
        "methods": {name: _method(name, answers, subset) for name in methods},
    }
