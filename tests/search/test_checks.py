"""Policies and algorithms of a user's own that are none, or say what means nothing."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward
from specrej.errors import UsageError
from specrej.search.policies import at, everyone, never
from specrej.search.view import SearchView
from specrej.types import Policy, Result, Standing

RUN: dict[str, Any] = {"n": 6, "max_new_tokens": 20, "reward": FakeReward()}


def run_with(keep: Callable[[Standing], Any], engine: FakeEngine | None = None) -> Result:
    policy = Policy(when=at((4, 8)), keep=keep, first_tokens=8, name="mine")
    return specrej.generate("Hi", engine=engine or FakeEngine(eos=0), policy=policy, **RUN)


# Whom a policy keeps

GOOD: dict[str, Callable[[list[bool]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "array of objects": lambda fates: np.array(fates, dtype=object),
    "numpy's booleans": lambda fates: [np.bool_(fate) for fate in fates],
}


@pytest.mark.parametrize("form", GOOD)
def test_booleans_in_any_sequence_say_who_stays(form: str) -> None:
    def best(standing: Standing) -> list[bool]:
        return [score >= sorted(standing.scores)[-2] for score in standing.scores]

    result, usual = run_with(lambda standing: GOOD[form](best(standing))), run_with(best)
    assert result.candidates == usual.candidates
    assert result.decisions == usual.decisions
    assert len(result.decisions[0].rejected) == 4


BAD: dict[str, tuple[Callable[[Standing], Any], str]] = {
    "few": (lambda _: [True], r"got 1: \[True\]"),
    "many": (lambda s: [True] * (len(s.scores) + 1), r"got 7: \[True, True"),
    "numbers": (lambda s: [1, *[0] * (len(s.scores) - 1)], r"got 6: \[1, 0"),
    "scores": (lambda s: s.scores, r"got 6: \["),
    "places": (lambda _: [0, 2], r"got 2: \[0, 2\]"),
    "texts": (lambda s: ["no"] * len(s.scores), "got 6: .'no'"),
    "NaN": (lambda s: [float("nan")] * len(s.scores), r"got 6: \[nan"),
    "none of them": (lambda s: [None] * len(s.scores), r"got 6: \[None"),
    "a text": (lambda s: "x" * len(s.scores), "got 'xxxxxx'"),
    "a dictionary": (lambda s: dict.fromkeys(range(len(s.scores)), True), "got {0: True"),
    "a set": (lambda _: {True}, "got {True}"),
    "nothing": (lambda _: None, "got None"),
    "one": (lambda _: True, "got True"),
    "a generator": (lambda s: (True for _ in s.scores), "got <generator"),
    "places of numpy": (lambda s: np.argsort(s.scores)[:2], r"got 2: array"),
    "numbers of numpy": (lambda s: np.ones(len(s.scores)), r"got 6: array"),
    "a table": (lambda s: np.ones((len(s.scores), 1), bool), r"got 6: array"),
    "one of numpy": (lambda _: np.array(True), r"got array"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_says_of_no_one_who_stays_is_refused(fault: str) -> None:
    keep, got = BAD[fault]
    engine = FakeEngine(eos=0)
    told = f"^the policy 'mine' must say True or False of each of 6 candidates, {got}"
    with pytest.raises(UsageError, match=told) as caught:
        run_with(keep, engine)
    assert "one for each candidate of the batch" in str(caught.value.hint)
    assert not engine.groups


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_exactly_what_a_policy_says_becomes_of_them(data: st.DataObject) -> None:
    said: list[list[bool]] = []

    def keep(standing: Standing) -> list[bool]:
        size = len(standing.scores)
        said.append(data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any)))
        return said[-1]

    for fates, decision in zip(said, run_with(keep).decisions, strict=True):
        pairs = zip(decision.scored, fates, strict=True)
        assert decision.rejected == tuple(index for index, stays in pairs if not stays)


def test_a_policy_that_keeps_nobody_is_told_so() -> None:
    with pytest.raises(UsageError, match="no candidate is left: all 6 were rejected") as caught:
        run_with(lambda standing: [False] * len(standing.scores))
    assert "must keep one at least" in str(caught.value.hint)


# Policies as they are made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"when": 3}, r"when of the policy 'mine' must be a function when\(length, last\), got 3"),
        (
            {"keep": None},
            r"keep of the policy 'mine' must be a function keep.standing., got None",
        ),
        ({"name": 3}, "a policy's name must be a string, got 3"),
        *(
            ({name: value}, f"{name} of the policy 'mine' must be a whole number of at least 1, .*")
            for name in ("first_tokens", "n")
            for value in (0, -1, 8.5, "8", True)
        ),
    ],
)
def test_what_makes_no_policy_is_refused(given: dict[str, Any], told: str) -> None:
    usual = {"when": never, "keep": everyone, "first_tokens": 8, "name": "mine"}
    with pytest.raises(UsageError, match=f"^{told}"):
        Policy(**{**usual, **given})


# Algorithms


def ends(search: SearchView, n: int | None, policy: Policy) -> Any:
    search.start(4)
    return
    yield


def yields(what: Any) -> Any:
    def yielding(search: SearchView, n: int | None, policy: Policy) -> Any:
        search.start(4)
        yield what

    return yielding


def starts(*numbers: Any) -> Any:
    def starting(search: SearchView, n: int | None, policy: Policy) -> Any:
        for number in numbers:
            search.start(number)
        yield never

    return starting


def keeps(fates: Any) -> Any:
    def keeping(search: SearchView, n: int | None, policy: Policy) -> Any:
        search.start(4)
        yield at((4,))
        search.keep(fates)

    return keeping


def plain(search: SearchView, n: int | None, policy: Policy) -> Any:
    return [never]


def starts_at_once(search: SearchView, n: int | None, policy: Policy) -> Any:
    search.start(4)
    return iter([never])


def narrow(search: SearchView) -> Any:
    yield never


async def asynchronous(search: SearchView, n: int | None, policy: Policy) -> Any:
    yield never


FAULTS: dict[str, tuple[Any, str]] = {
    "ends": (ends, "has ended with 4 candidates live and none complete"),
    "yields a number": (yields(42), "must yield a schedule, it yielded 42"),
    "yields nothing": (yields(None), "must yield a schedule, it yielded None"),
    "starts none": (starts(0), "must start a whole number of at least 1 candidates, got 0"),
    "starts less": (starts(-1), "must start a whole number of at least 1 candidates, got -1"),
    "starts a text": (starts("4"), "must start a whole number of at least 1 candidates, got '4'"),
    "starts half": (starts(4.5), "must start a whole number of at least 1 candidates, got 4.5"),
    "starts twice": (starts(4, 3), "started 3 candidates while 4 are being decoded"),
    "keeps few": (keeps([True]), "must say True or False of each of 4 candidates, got 1"),
    "keeps places": (keeps([0, 2]), "must say True or False of each of 4 candidates, got 2"),
    "is plain": (plain, "must be a generator function, it returned .<function nev"),
    "is plain and starts": (
        starts_at_once,
        "must be a generator function, it started candidates when it was called",
    ),
    "is asynchronous": (asynchronous, "must be a generator function, it returned <async_gen"),
    "takes less": (narrow, "cannot begin, called with .search, n, policy.: TypeError"),
    "is no algorithm": ("os:getcwd", "cannot begin, called with .search, n, policy.: TypeError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_algorithm_that_is_none_is_told_what_is_expected(fault: str) -> None:
    algorithm, told = FAULTS[fault]
    name = algorithm if isinstance(algorithm, str) else algorithm.__qualname__
    engine = FakeEngine(eos=0)
    with pytest.raises(UsageError, match=f"^the algorithm '.*{name}' {told}") as caught:
        specrej.generate("Hi", engine=engine, algorithm=algorithm, **RUN)
    assert caught.value.hint is not None
    assert not engine.groups


@pytest.mark.parametrize("fault", FAULTS)
def test_every_caller_is_told_the_same(fault: str) -> None:
    algorithm, told = FAULTS[fault]

    async def ask() -> None:
        async with specrej.Session(engine=FakeEngine(eos=0), **RUN) as session:
            with pytest.raises(UsageError, match=told):
                await session.agenerate("Hi", algorithm=algorithm)

    asyncio.run(ask())
    [(_, outcome)] = specrej.generate_batch(
        ["Hi"], engine=FakeEngine(eos=0), algorithm=algorithm, **RUN
    )
    assert isinstance(outcome, UsageError)


def halving(search: SearchView, n: int | None, policy: Policy, *, share: int = 2) -> Any:
    search.start(np.int64(4))  # type: ignore[arg-type]
    scores = yield at((4,))
    search.keep(np.array(scores) >= sorted(scores)[len(scores) // share])
    scores = yield never
    search.keep([True] * len(scores))


class Halving:
    def __call__(self, search: SearchView, n: int | None, policy: Policy) -> Any:
        return halving(search, n, policy)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (halving, "halving"),
        (functools.partial(halving, share=2), "halving"),
        (Halving(), "Halving"),
        (functools.partial(Halving()), "Halving"),
        (Halving().__call__, "Halving.__call__"),
    ],
)
def test_whatever_can_be_called_is_an_algorithm_by_its_name(algorithm: Any, name: str) -> None:
    result = specrej.generate("Hi", engine=FakeEngine(eos=0), algorithm=algorithm, **RUN)
    assert result.settings["algorithm"] == f"{__name__}:{name}"
    assert [len(decision.rejected) for decision in result.decisions] == [2, 0]


def test_where_an_algorithm_asks_a_policy_both_are_named() -> None:
    policy = Policy(when=at((4,)), keep=lambda _: [], first_tokens=8, name="mine")

    def asking(search: SearchView, n: int | None, policy: Policy) -> Any:
        search.start(4)
        scores = yield policy.when
        search.keep(policy.keep(search.standing(scores)))

    told = "^the algorithm '.*asking', or the policy 'mine' that it asks, must say True or False"
    with pytest.raises(UsageError, match=told):
        specrej.generate("Hi", engine=FakeEngine(eos=0), algorithm=asking, policy=policy, **RUN)
