"""What an algorithm, a policy or an engine does that leads nowhere: it ends its prompt with an
error, and no other."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import Policy, Session, UsageError
from specrej.attention.layout import Demand
from specrej.engines.base import Memory
from specrej.search.algorithms import Steps
from specrej.search.policies import everyone, never
from specrej.search.view import SearchView
from specrej.types import Result, Schedule

OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "n": 4, "memory": 4000}


def generate(engine: FakeEngine | None = None, **options: Any) -> Result:
    engine, reward = engine or FakeEngine(eos=0.0), FakeReward()
    try:
        return specrej.generate("Why?", model=engine, reward=reward, **{**OPTIONS, **options})
    finally:
        assert not engine.groups
        assert all(session.is_closed for session in reward.sessions)


def deciding(when: Schedule) -> Policy:
    return Policy(when=when, keep=everyone, first_tokens=None)


# Decisions without progress


@pytest.mark.parametrize(
    ("when", "lengths"),
    [
        (lambda length, last: length in (4, 8), [4, 8, 20]),
        (lambda length, last: True, [*range(1, 21)]),
        (lambda length, last: length >= last, [*range(1, 21)]),
        (lambda length, last: length == 0, [20]),
    ],
)
def test_a_schedule_is_asked_once_a_length(when: Schedule, lengths: list[int]) -> None:
    result = generate(policy=deciding(when))
    assert [decision.num_tokens for decision in result.decisions] == lengths
    assert len(result.candidates) == 4


def test_a_schedule_is_not_asked_again_where_nothing_is_said_of_who_stays() -> None:
    asked: list[int] = []

    def when(length: int, last: int) -> bool:
        asked.append(length)
        return length in (4, 8)

    def silent(search: SearchView, n: int | None, policy: Policy) -> Steps:
        for wave in search.waves(n, None):
            search.start(wave)
            while search.live:
                yield when

    result = generate(algorithm=silent)
    assert not result.decisions
    assert result.is_complete
    assert asked == [*range(1, 20)]


def waits_for_ever(search: SearchView, n: int | None, policy: Policy) -> Steps:
    search.start(4)
    while True:
        yield never


def keeps_for_ever(search: SearchView, n: int | None, policy: Policy) -> Steps:
    search.start(4)
    while True:
        search.keep(everyone(search.standing((yield never))))


def begins_nobody(search: SearchView, n: int | None, policy: Policy) -> Steps:
    while True:
        yield never


ENDLESS = [waits_for_ever, keeps_for_ever, begins_nobody]


@pytest.mark.parametrize("algorithm", ENDLESS)
def test_an_algorithm_that_decides_without_end_is_an_error_that_names_it(
    algorithm: Callable[..., Steps],
) -> None:
    with pytest.raises(UsageError, match=f"{algorithm.__name__}.* has decided twice without a new"):
        generate(algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ENDLESS)
def test_its_neighbours_go_on(algorithm: Callable[..., Steps]) -> None:
    async def go() -> None:
        async with Session(model=FakeEngine(eos=0.0), reward=FakeReward(), **OPTIONS) as opened:
            doomed, result = await asyncio.gather(
                opened.agenerate("Why?", algorithm=algorithm),
                opened.agenerate("Why?"),
                return_exceptions=True,
            )
            assert isinstance(doomed, UsageError)
            assert isinstance(result, Result)
            assert result.text == generate().text

    asyncio.run(go())


def test_an_engine_whose_memory_never_fits_is_an_error() -> None:
    class Greedy(FakeEngine):
        def memory(self, prompt: int) -> Memory:
            return Memory(1, 10**9, 1)

    with pytest.raises(UsageError, match=r"'speculative_rejection' has decided twice") as caught:
        generate(Greedy())
    assert caught.value.hint is not None
    assert "memory()" in caught.value.hint


def test_an_error_names_the_policy() -> None:
    with pytest.raises(UsageError, match="with the policy 'mine' has decided twice"):
        generate(algorithm=waits_for_ever, policy=Policy(never, everyone, None, name="mine"))


# Algorithms that end with candidates live


def ends_at(length: int) -> Callable[..., Steps]:
    def early(search: SearchView, n: int | None, policy: Policy) -> Steps:
        search.start(n or 4)
        search.keep(everyone(search.standing((yield lambda now, last: now == length))))

    return early


def test_who_is_live_when_an_algorithm_ends_is_rejected() -> None:
    result = generate(FakeEngine(eos=0.1), algorithm=ends_at(6), n=12, memory=20_000)
    states = [candidate.state for candidate in result.candidates]
    assert set(states) == {"complete", "rejected"}
    assert result.is_complete
    assert result.best.state == "complete"
    assert result.reward == max(c.reward or 0 for c in result.candidates if c.state == "complete")
    assert result.decisions[-1].rejected == tuple(
        candidate.index for candidate in result.candidates if candidate.state == "rejected"
    )


def test_an_algorithm_that_ends_with_nobody_complete_is_an_error_that_names_it() -> None:
    with pytest.raises(UsageError, match=r"early' has ended with 4 candidates live and none comp"):
        generate(algorithm=ends_at(6))


def test_a_batch_that_is_complete_when_its_algorithm_ends_is_the_answer() -> None:
    def silent(search: SearchView, n: int | None, policy: Policy) -> Steps:
        search.start(4)
        yield never

    assert generate(algorithm=silent).is_complete


def begins_and_ends(search: SearchView, n: int | None, policy: Policy) -> Steps:
    search.start(4)
    yield from ()


def ends(search: SearchView, n: int | None, policy: Policy) -> Steps:
    yield from ()


@pytest.mark.parametrize(("algorithm", "num_live"), [(begins_and_ends, 4), (ends, 0)])
def test_an_algorithm_that_never_waits_is_an_error_that_names_it(
    algorithm: Callable[..., Steps], num_live: int
) -> None:
    said = f"{algorithm.__name__}' has ended with {num_live} candidates live and none complete"
    with pytest.raises(UsageError, match=said):
        generate(algorithm=algorithm)


# A pool that cannot say whether another may begin


def test_a_prompt_of_which_the_pool_cannot_say_fails_once() -> None:
    class Mute(FakeEngine):
        num_asked = 0

        def demand(self, prompt: int) -> Demand:
            self.num_asked += 1
            if self.num_asked == 1:
                raise AttributeError("no demand")
            return super().demand(prompt)

    engine = Mute()
    outcomes = outcomes_of(
        specrej.generate_batch(["Why?", "How?"], model=engine, reward=FakeReward(), **OPTIONS)
    )
    assert "no demand" in str(outcomes[1])
    assert isinstance(outcomes[0], Result)


def outcomes_of(batch: Iterator[tuple[int, specrej.Outcome]]) -> dict[int, specrej.Outcome]:
    """Each comes once."""
    outcomes: dict[int, specrej.Outcome] = {}
    for number, outcome in batch:
        assert number not in outcomes
        outcomes[number] = outcome
    return outcomes
