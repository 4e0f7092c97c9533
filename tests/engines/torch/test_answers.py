"""Who is the answer of a run on a real engine: at its end, and wherever it is broken off."""

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from fakes import watched
from specrej.search.search import Search
from specrej.server.answering import best_answers
from specrej.types import Candidate
from tiny import make_engine, make_model


def few_values(_messages: Sequence[Any], texts: Sequence[str]) -> list[float]:
    """Rewards below 0, of which many are equal."""
    return [-1.0 - zlib.crc32(text.encode()) % 3 for text in texts]


def is_no_worse(one: Candidate, other: Candidate) -> bool:
    if one.state != other.state:
        return one.state == "complete"
    if one.reward is None or other.reward is None:
        return other.reward is None
    return one.reward >= other.reward


@pytest.mark.parametrize("algorithm", ["best_of_n", "speculative_rejection"])
def test_the_best_so_far_is_never_worse_than_another_nor_the_last_answer_unscored(
    algorithm: str,
) -> None:
    engine = make_engine(make_model("llama"), eos_ids=[9, 30, 77])
    seen: set[tuple[str, bool]] = set()

    def observe(search: Search) -> None:
        if all(candidate.state == "rejected" for candidate in search.candidates):
            return
        result = search.result()
        left = [candidate for candidate in result.candidates if candidate.state != "rejected"]
        assert all(is_no_worse(result.best, other) for other in left)
        answers = best_answers(result, 99)
        assert answers[0] is result.best
        assert len(answers) == max(1, sum(candidate.state == "complete" for candidate in left))
        assert all(is_no_worse(one, other) for one, other in pairwise(answers))
        seen.add((result.best.state, result.best.reward is None))

    options: dict[str, Any] = {
        "n": 12,
        "max_new_tokens": 24,
        "decide": "every:5",
        "seed": 4,
        "top_k": 0,
    }
    result = watched(
        "Hello", model=engine, reward=few_values, algorithm=algorithm, observe=observe, **options
    )
    assert result.reward is not None
    assert {("live", True), ("complete", False)} <= seen
