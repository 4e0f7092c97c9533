"""What an algorithm sees of a search is enough for those there are, and is what it gets by its
types."""

from collections.abc import Callable
from typing import Any, cast

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej.search.algorithms import Steps, best_of_n, speculative_rejection
from specrej.search.view import SearchView
from specrej.types import Policy

NAMES = {name for name in vars(SearchView) if not name.startswith("_")}


class Narrow:
    """A search without what `SearchView` does not have."""

    def __init__(self, search: SearchView) -> None:
        self._search = search

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(name)
        return getattr(self._search, name)


def narrowed(algorithm: Callable[[SearchView, int | None, Policy], Steps]) -> Any:
    return lambda search, n, policy: algorithm(cast("SearchView", Narrow(search)), n, policy)


@pytest.mark.parametrize("algorithm", [best_of_n, speculative_rejection])
def test_the_algorithms_need_no_more_than_the_view(algorithm: Any) -> None:
    def generate(algorithm: Any) -> list[dict[str, Any]]:
        options: dict[str, Any] = {
            "n": 9,
            "max_new_tokens": 24,
            "min_tokens": 6,
            "memory": "2KiB",
            "seed": 3,
        }
        result = specrej.generate(
            "Hello", model=FakeEngine(), reward=FakeReward(), algorithm=algorithm, **options
        )
        return [candidate.to_dict() for candidate in result.candidates]

    assert generate(narrowed(algorithm)) == generate(algorithm.__name__)


def test_the_view_shows_all_that_there_is_to_an_algorithm() -> None:
    seen: list[dict[str, Any]] = []

    def looking(search: SearchView, n: int | None, policy: Policy) -> Steps:
        for wave in search.waves(n, None):
            search.start(wave)
            scores = yield policy.when
            seen.append({name: getattr(search, name) for name in sorted(NAMES)})
            search.keep([True] * len(scores))

    result = specrej.generate(
        "Hello", model=FakeEngine(), reward=FakeReward(), algorithm=looking, n=2, max_new_tokens=4
    )
    [view] = seen
    assert list(view["candidates"]) == list(result.candidates)
    assert view["budget_bytes"] == result.settings["memory_bytes"]
    assert view["sampling"].max_new_tokens == 4
    assert view["decisions"] == [*result.decisions]
