"""A session: what is opened once, its calls one by one, and asynchronous ones that share the
engine."""

import asyncio
import threading
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import (
    Decided,
    Ended,
    Event,
    Result,
    Session,
    Settings,
    SpecrejError,
    Started,
    Step,
    Text,
)
from specrej.search.search import Search

OPTIONS: dict[str, Any] = {
    "max_new_tokens": 20,
    "n": 6,
    "memory": 4000,
    "decide": "every:5",
    "seed": 3,
}
PROMPTS = ["Why?", "", "How is that?", "Who?"]


def ids(result: object) -> list[list[int]]:
    assert isinstance(result, Result)
    return [candidate.token_ids for candidate in result.candidates]


def session(**how: Any) -> Session:
    return Session(model=FakeEngine(), reward=FakeReward(), **{**OPTIONS, **how})


def alone(prompt: str, **how: Any) -> Result:
    return specrej.generate(prompt, model=FakeEngine(), reward=FakeReward(), **{**OPTIONS, **how})


def test_calls_have_the_options_of_the_session_but_for_their_own() -> None:
    with session() as opened:
        assert ids(opened.generate("Why?")) == ids(alone("Why?"))
        assert ids(opened.generate("Why?", seed=9)) == ids(alone("Why?", seed=9))
        own = Settings(**{**OPTIONS, "n": 2})
        assert ids(opened.generate("Why?", settings=own, seed=4)) == ids(alone("Why?", n=2, seed=4))
        assert opened.compare("Why?").keys() == {
            "best_of_n",
            "speculative_rejection",
            "best_of_n_same_start",
        }
        with pytest.raises(specrej.UsageError, match="takes no 'algorithm'"):
            opened.compare("Why?", algorithm="best_of_n")


def test_settings_are_accepted_wherever_options_are() -> None:
    own = Settings(**OPTIONS)
    expected = alone("Why?")
    how: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward(), "settings": own}
    assert ids(specrej.generate("Why?", **how)) == ids(expected)
    assert ids(dict(specrej.generate_batch(["Why?"], **how))[0]) == ids(expected)
    assert ids(specrej.compare("Why?", **how)["speculative_rejection"]) == ids(expected)
    assert ids(Session(**how).generate("Why?")) == ids(expected)


def test_a_batch_is_a_list_in_order_with_errors_where_they_are_asked_for() -> None:
    with session() as opened:
        outcomes = opened.generate_batch(PROMPTS, errors="return")
        assert [isinstance(outcome, SpecrejError) for outcome in outcomes] == [
            False,
            True,
            False,
            False,
        ]
        for prompt, outcome in zip(PROMPTS, outcomes, strict=True):
            if prompt:
                assert ids(outcome) == ids(alone(prompt))
        assert len(opened.generate_batch(PROMPTS[2:])) == 2
        with pytest.raises(specrej.PromptError, match="empty"):
            opened.generate_batch(PROMPTS)
        assert dict(opened.iter_batch(PROMPTS[:1])).keys() == {0}
        with pytest.raises(specrej.UsageError, match="errors must be"):
            opened.generate_batch(PROMPTS, errors="ignore")  # type: ignore[arg-type]


def test_asynchronous_calls_share_the_engine_and_give_what_each_gives_alone() -> None:
    async def go() -> None:
        async with session(total_memory=20_000) as opened:
            results = await asyncio.gather(
                *(opened.agenerate(prompt, seed=2) for prompt in PROMPTS if prompt)
            )
            engine = opened.engine
            assert isinstance(engine, FakeEngine)
            assert engine.num_steps < sum(result.usage.num_steps for result in results)
            for prompt, result in zip(
                [prompt for prompt in PROMPTS if prompt], results, strict=True
            ):
                assert ids(result) == ids(alone(prompt, seed=2))
            with pytest.raises(specrej.PromptError):
                await opened.agenerate("")
            outcomes = {number: outcome async for number, outcome in opened.aiter_batch(PROMPTS)}
            assert sorted(outcomes) == [0, 1, 2, 3]
            assert isinstance(outcomes[1], specrej.PromptError)
            assert ids(outcomes[3]) == ids(alone(PROMPTS[3]))

    asyncio.run(go())


def test_what_is_cancelled_frees_its_memory_and_the_others_go_on() -> None:
    async def go() -> None:
        async with session(
            max_new_tokens=200, memory=100_000, total_memory=400_000, decide="budget"
        ) as opened:
            begun = asyncio.Event()
            doomed = asyncio.ensure_future(
                opened.agenerate("Why?", observe=lambda event: begun.set())
            )
            other = asyncio.ensure_future(opened.agenerate("How?"))
            await begun.wait()
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            assert ids(await other) == ids(
                alone("How?", max_new_tokens=200, memory=100_000, decide="budget")
            )
            assert isinstance(opened.engine, FakeEngine)
            assert not opened.engine.groups

    asyncio.run(go())


def test_closing_an_iteration_in_its_middle_ends_what_is_under_way() -> None:
    async def go() -> None:
        async with session(total_memory=20_000, in_flight=2) as opened:
            batch = opened.aiter_batch(["a", "b", "c", "d"] * 5)
            async for _ in batch:
                break
            await batch.aclose()  # type: ignore[attr-defined]
            result = await opened.agenerate("Why?")
            assert ids(result) == ids(alone("Why?"))

    asyncio.run(go())
    assert not [thread for thread in threading.enumerate() if thread.name == "specrej-driver"]


def test_a_closed_session_says_so_and_sync_calls_wait_for_async_ones() -> None:
    opened = session()
    opened.close()
    opened.close()
    with pytest.raises(specrej.UsageError, match="the session is closed"):
        opened.generate("Why?")
    with pytest.raises(specrej.UsageError, match="the session is closed"), opened:
        pass

    async def again() -> None:
        async with opened:
            pass

    with pytest.raises(specrej.UsageError, match="the session is closed"):
        asyncio.run(again())

    async def go() -> None:
        async with session() as opened:
            running = asyncio.ensure_future(opened.agenerate("Why?"))
            await asyncio.sleep(0)
            with pytest.raises(specrej.UsageError, match="under way"):
                opened.generate("Why?")
            await running
            assert ids(opened.generate("Why?")) == ids(alone("Why?"))

    asyncio.run(go())


class Broken(FakeEngine):
    """Every step but those of the first prompts fails."""

    def step(self, limits: Any = None) -> Any:
        if self.num_steps == 3:
            self.num_steps += 1
            raise RuntimeError("a fault of the device")
        return super().step(limits)


def test_a_step_that_fails_fails_those_in_flight_and_the_next_are_served() -> None:
    async def go() -> None:
        async with Session(model=Broken(), reward=FakeReward(), **OPTIONS) as opened:
            with pytest.raises(specrej.EngineError, match="a fault of the device"):
                await opened.agenerate("Why?")
            assert ids(await opened.agenerate("Why?")) == ids(alone("Why?"))

    asyncio.run(go())


# Events


def test_events_tell_the_run_and_do_not_change() -> None:
    events: list[Event] = []
    result = specrej.generate(
        "Why?", model=FakeEngine(), reward=FakeReward(), observe=events.append, **OPTIONS
    )
    started, *middle, ended = events
    assert isinstance(started, Started)
    assert (started.num_candidates, started.memory_bytes) == (6, 4000)
    assert isinstance(ended, Ended)
    assert ended.outcome is result
    decided = [event for event in middle if isinstance(event, Decided)]
    assert [event.num_rejected for event in decided] == [
        len(decision.rejected) for decision in result.decisions
    ]
    assert [event.cause for event in decided] == [decision.cause for decision in result.decisions]
    assert decided[-1].best == result.best.index
    steps = [event for event in middle if isinstance(event, Step)]
    assert [step.num_tokens for step in steps] == sorted(step.num_tokens for step in steps)
    assert all(step.kv_bytes <= 4000 for step in steps)
    text = "".join(event.delta for event in middle if isinstance(event, Text))
    assert result.text.startswith(text)
    with pytest.raises(AttributeError):
        started.num_candidates = 1  # type: ignore[misc]


def test_events_of_a_batch_say_which_prompt_they_are_of() -> None:
    events: list[Event] = []
    how: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward(), "observe": events.append}
    outcomes = dict(specrej.generate_batch(PROMPTS, **how, **OPTIONS))
    assert {event.prompt for event in events} == {0, 1, 2, 3}
    ends = {event.prompt: event.outcome for event in events if isinstance(event, Ended)}
    assert ends == outcomes
    with session() as opened:
        events.clear()
        opened.compare("Why?", observe=events.append)
        assert [event.prompt for event in events if isinstance(event, Ended)] == [0, 1, 2]


def test_a_policy_and_an_algorithm_may_be_objects() -> None:
    def first_come(search: Search, n: int | None, policy: specrej.Policy) -> Any:
        for wave in search.waves(n, policy.first_tokens):
            search.start(wave)
            while search.live:
                scores = yield policy.when
                search.keep([True, *[False] * (len(scores) - 1)])

    with session() as opened:
        result = opened.generate("Why?", algorithm=first_come)
        assert result.best.index == 0
        assert result.settings["algorithm"].endswith("first_come")
        policy = specrej.Policy(
            when=lambda length, last: length - last >= 4,
            keep=lambda standing: [True] * len(standing.scores),
            first_tokens=4,
        )
        kept = opened.generate("Why?", policy=policy, decide="budget", memory=100_000)
        assert not any(decision.rejected for decision in kept.decisions)
        assert kept.decisions[0].num_tokens == 4
        with pytest.raises(specrej.UsageError, match="alpha must be left out"):
            opened.generate("Why?", policy=policy, decide="budget", alpha=0.3)


@pytest.mark.parametrize(
    "option", [{"weights": "fp32"}, {"special_tokens": "allow"}, {"engine_args": {"a": 1}}]
)
def test_an_engine_that_is_open_takes_no_options(option: dict[str, Any]) -> None:
    for how in ({"model": FakeEngine()}, {"engine": FakeEngine()}):
        with pytest.raises(
            specrej.UsageError, match="must be left out for an engine that is open already"
        ):
            specrej.generate("Why?", reward=FakeReward(), **how, **option)  # type: ignore[arg-type]
