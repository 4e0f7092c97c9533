"""Each second of a search counts once, in the innermost span that it was spent in."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.search import clock as clock_module
from specrej.search.clock import Clock, Part
from specrej.types import Usage

PARTS: tuple[Part, ...] = get_args(Part)

Span = tuple[Part, list[Any]]
"""A part, and what is done in it: seconds that pass, and spans."""

Spans = st.recursive(
    st.integers(0, 9),
    lambda inner: st.tuples(st.sampled_from(PARTS), st.lists(inner, max_size=4)),
    max_leaves=20,
)


class Hands:
    """The time of day, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", hands)
    return hands


def run(doing: int | Span, clock: Clock, hands: Hands) -> None:
    if isinstance(doing, int):
        hands.now_s += doing
        return
    part, inner = doing
    with clock.span(part):
        for one in inner:
            run(one, clock, hands)


def by_hand(doing: int | Span, around: Part | None, spent: dict[str, float]) -> None:
    if isinstance(doing, int):
        if around is not None:
            spent[around] += doing
        return
    for one in doing[1]:
        by_hand(one, doing[0], spent)


@given(st.lists(Spans, max_size=5))
def test_seconds_count_in_the_innermost_span_and_no_other(doings: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        hands, usage = Hands(), Usage()
        patch.setattr(clock_module, "time", hands)
        clock, spent = Clock(usage), {str(part): 0.0 for part in PARTS}
        for doing in doings:
            run(doing, clock, hands)
            by_hand(doing, None, spent)
    assert {part: asdict(usage)[part] for part in PARTS} == spent
    assert usage.total_s == sum(spent.values()) <= hands.now_s


def test_a_span_that_fails_counts_like_any_other(hands: Hands) -> None:
    usage = Usage()
    clock = Clock(usage)
    with suppress(ValueError), clock.span("other_s"):
        hands.now_s += 1
        with clock.span("reward_s"):
            hands.now_s += 2
            raise ValueError
    with clock.span("other_s"):
        hands.now_s += 4
    assert (usage.other_s, usage.reward_s) == (5, 2)


def test_a_share_takes_nothing_from_the_span_around_it(hands: Hands) -> None:
    usage = Usage()
    clock = Clock(usage)
    with clock.span("other_s"):
        hands.now_s += 1
        clock.add("decode_s", 8)
    assert (usage.other_s, usage.decode_s, usage.total_s) == (1, 8, 9)


def test_the_parts_are_the_seconds_of_usage() -> None:
    seconds = cast("set[str]", set(PARTS))
    assert seconds == {name for name in asdict(Usage()) if name.endswith("_s")}
