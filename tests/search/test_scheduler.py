"""Many searches over one engine: each as if alone, failures in their place, and everything freed
whatever happens."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import ByteReader, FakeEngine, FakeReward, FakeSession, alike, by_hash, in_thirds
from specrej.api import prepare
from specrej.engines.base import Overhead, Token
from specrej.errors import DeviceMemoryError, EngineError, PromptError, RewardError, SpecrejError
from specrej.search.pool import Pool
from specrej.search.scheduler import Maker, Outcome, Scheduler, Watch
from specrej.search.scheduler import run as run_in
from specrej.search.scoring import Given, score_batches, score_now
from specrej.search.search import Search
from specrej.server.scorer import TimedScorer
from specrej.settings import Settings
from specrej.types import Candidate, Decision, Message, Piece, Prompt, Result, SamplingParams, Usage

PROMPTS = ["Why?", "How so, and since when?", "é", "Who?", "Where to?", "What for?", "Why not?"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "min_tokens": 5, "n": 16, "memory": 4000}


def unobserved(search: Search) -> None:
    pass


def run(
    engine: FakeEngine,
    makers: Iterable[Maker],
    *,
    in_flight: int = 1,
    observe: Watch = unobserved,
) -> Iterator[tuple[int, Outcome]]:
    """With memory for all; `test_pool.py` has what happens when there is less."""
    return run_in(engine, makers, pool=Pool(10**9), in_flight=in_flight, observe=observe)


def makers(
    engine: FakeEngine, reward: FakeReward, prompts: list[str], **options: Any
) -> Iterator[Maker]:
    each = Settings(**{**OPTIONS, **options})
    return (partial(prepare, engine, reward, prompt, each) for prompt in prompts)


def essence(outcome: Outcome) -> tuple[list[Candidate], list[Decision], int, Usage]:
    """All of a result that does not depend on the clock."""
    assert isinstance(outcome, Result)
    usage = replace(outcome.usage, prefill_s=0, decode_s=0, reward_s=0, other_s=0)
    return list(outcome.candidates), list(outcome.decisions), outcome.best.index, usage


def is_freed(engine: FakeEngine, reward: FakeReward) -> bool:
    return not engine.groups and all(session.is_closed for session in reward.sessions)


@given(
    prompts=st.lists(st.sampled_from(PROMPTS), min_size=2, max_size=5),
    in_flight=st.integers(1, 5),
    rate=st.sampled_from([by_hash, in_thirds, alike]),
    options=st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from(["best_of_n", "speculative_rejection"]),
            "seed": st.integers(0, 1000),
            "memory": st.integers(1500, 6000),
            "alpha": st.sampled_from([0.0, 0.2, 0.5, 0.9]),
            "decide": st.sampled_from(["budget", "every:4"]),
            "stop": st.sampled_from([(), ("ab",)]),
        }
    ),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_each_prompt_in_flight_has_the_result_it_has_alone(
    prompts: list[str], in_flight: int, rate: Callable[[str], float], options: dict[str, Any]
) -> None:
    engine, reward = FakeEngine(), FakeReward(rate)
    together = dict(run(engine, makers(engine, reward, prompts, **options), in_flight=in_flight))
    assert sorted(together) == list(range(len(prompts)))
    for number, prompt in enumerate(prompts):
        alone = specrej.generate(
            prompt, model=FakeEngine(), reward=FakeReward(rate), **{**OPTIONS, **options}
        )
        assert essence(together[number]) == essence(alone)
    assert engine.num_prefills == len(prompts)
    assert is_freed(engine, reward)


def test_as_many_searches_as_allowed_are_in_flight_and_the_next_begins_when_one_ends() -> None:
    engine = FakeEngine(eos=0.2)
    in_flight: list[int] = []

    def observe(search: Search) -> None:
        in_flight.append(len(engine.groups))

    outcomes = list(
        run(engine, makers(engine, FakeReward(), PROMPTS, n=3), in_flight=3, observe=observe)
    )
    numbers = [number for number, _ in outcomes]
    assert max(in_flight) == 3
    assert sorted(numbers) == list(range(len(PROMPTS)))
    assert numbers != sorted(numbers), "they come as they end"


def test_searches_in_flight_share_their_steps() -> None:
    together, alone = FakeEngine(eos=0.0), FakeEngine(eos=0.0)
    for engine, in_flight in ((together, 4), (alone, 1)):
        assert (
            len(list(run(engine, makers(engine, FakeReward(), PROMPTS[:4]), in_flight=in_flight)))
            == 4
        )
    assert together.num_drawn == alone.num_drawn
    assert alone.num_steps == 4 * together.num_steps


def test_searches_are_made_only_when_their_turn_comes() -> None:
    engine = FakeEngine()
    made: list[str] = []

    def endless() -> Iterator[Maker]:
        for prompt in PROMPTS * 1000:
            made.append(prompt)
            yield partial(prepare, engine, FakeReward(), prompt, Settings(**OPTIONS))

    outcomes = run(engine, endless(), in_flight=2)
    for _ in range(3):
        next(outcomes)
    assert len(made) <= 5
    outcomes.close()  # type: ignore[attr-defined]
    assert not engine.groups


def test_a_search_that_fails_yields_its_error_in_its_place_and_the_others_go_on() -> None:
    def picky(text: str) -> float:
        if len(text) == 7:
            raise ValueError("seven")
        return 1.0

    engine, reward = FakeEngine(), FakeReward(picky)
    prompts = [*PROMPTS, "", "x" * 500]
    outcomes = dict(run(engine, makers(engine, reward, prompts, decide="every:5"), in_flight=3))
    errors = {
        number: outcome for number, outcome in outcomes.items() if isinstance(outcome, SpecrejError)
    }
    assert sorted(outcomes) == list(range(len(prompts)))
    assert isinstance(errors.pop(len(PROMPTS)), PromptError)
    assert isinstance(errors.pop(len(PROMPTS) + 1), PromptError)
    assert 0 < len(errors) < len(PROMPTS)
    for number, error in errors.items():
        assert isinstance(error, RewardError)
        with pytest.raises(RewardError, match="seven"):
            specrej.generate(
                PROMPTS[number],
                model=FakeEngine(),
                reward=reward,
                **{**OPTIONS, "decide": "every:5"},
            )
    assert is_freed(engine, reward)


def test_a_device_without_memory_takes_candidates_of_the_largest_search_first() -> None:
    engine, reward = FakeEngine(eos=0.0, fail_at={6}), FakeReward()
    each = [Settings(**{**OPTIONS, "n": n, "alpha": 0.0, "memory": 20_000}) for n in (4, 12)]
    both = (partial(prepare, engine, reward, "Why?", one) for one in each)
    outcomes = dict(run(engine, both, in_flight=2))
    small, large = outcomes[0], outcomes[1]
    assert isinstance(small, Result)
    assert isinstance(large, Result)
    assert [decision.cause for decision in small.decisions] == ["complete"]
    assert [(d.cause, len(d.rejected)) for d in large.decisions] == [
        ("out_of_memory", 6),
        ("complete", 0),
    ]


class Full(FakeEngine):
    """Has no memory for a step until candidates were dropped so many times more."""

    num_drops_lacking = 0

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        if self.num_drops_lacking:
            raise DeviceMemoryError("as asked for")
        return super().step(limits)

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        super().drop(prompt, indices)
        self.num_drops_lacking -= bool(self.num_drops_lacking and indices)


class Blocking(FakeReward):
    """Stands still as it scores the first prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there, self.go_on = Event(), Event()

    def open(self, messages: Sequence[Message]) -> FakeSession:
        session = super().open(messages)
        if messages[-1]["content"] == PROMPTS[0]:
            session.rate = self._stand_still
        return session

    def _stand_still(self, text: str) -> float:
        self.is_there.set()
        assert self.go_on.wait(60)
        return by_hash(text)


@pytest.mark.parametrize("num_beside", [1, 4])
@pytest.mark.parametrize("num_drops_lacking", [1, 2])
def test_out_of_memory_scores_that_are_under_way_are_waited_for(
    num_drops_lacking: int, num_beside: int
) -> None:
    """The decision may free what is needed. If it does not, candidates are given up then, and
    none of a batch that a thread is at."""
    engine, reward, scorer = Full(eos=0.0), Blocking(), TimedScorer(60)
    scheduler = Scheduler(engine, Pool(10**9), in_flight=3, observe=unobserved, score=scorer)
    each = [Settings(**{**OPTIONS, "memory": 20_000, "n": 12, "decide": "at:4"})]
    each += [Settings(**{**OPTIONS, "memory": 20_000, "n": num_beside, "alpha": 0.0})] * 2
    for number, one in enumerate(each):
        scheduler.submit(number, partial(prepare, engine, reward, PROMPTS[number], one))
    for _ in range(5):
        assert not list(scheduler.tick())
    assert reward.is_there.wait(60)
    engine.num_drops_lacking = num_drops_lacking
    for _ in range(3):
        assert not list(scheduler.tick())
    assert engine.num_drops_lacking == num_drops_lacking, "somebody was given up"
    reward.go_on.set()
    outcomes: dict[int, Outcome] = {}
    while scheduler.num_active:
        outcomes |= dict(scheduler.tick())
    scorer.close()
    causes: Counter[str] = Counter()
    for outcome in outcomes.values():
        assert isinstance(outcome, Result)
        causes.update(decision.cause for decision in outcome.decisions)
    given_up = {"out_of_memory": 1} if num_drops_lacking == 2 else {}
    assert causes == {"schedule": 1, "complete": 3, **given_up}
    assert is_freed(engine, reward)


def test_a_device_without_memory_for_one_candidate_each_is_an_error_that_frees_all() -> None:
    engine, reward = FakeEngine(eos=0.0, fail_at=range(4, 99)), FakeReward()
    with pytest.raises(DeviceMemoryError):
        list(run(engine, makers(engine, reward, PROMPTS, n=4), in_flight=3))
    assert engine.num_steps == 4 + 3 * 2 + 1
    assert is_freed(engine, reward)


class Stop(BaseException):
    """What nobody catches, like a Ctrl-C."""


def test_what_nobody_catches_frees_all() -> None:
    engine, reward = FakeEngine(fail_at={5}, error=Stop()), FakeReward()  # type: ignore[arg-type]
    with pytest.raises(Stop):
        list(run(engine, makers(engine, reward, PROMPTS), in_flight=3))
    assert len(reward.sessions) == 3
    assert is_freed(engine, reward)


@pytest.mark.parametrize("moment", [0, 1, 7, 30])
def test_an_observer_that_raises_frees_all(moment: int) -> None:
    engine, reward = FakeEngine(), FakeReward()
    seen: list[Search] = []

    def observe(search: Search) -> None:
        seen.append(search)
        if len(seen) > moment:
            raise Stop

    with pytest.raises(Stop):
        list(run(engine, makers(engine, reward, PROMPTS), in_flight=3, observe=observe))
    assert is_freed(engine, reward)


@pytest.mark.parametrize(
    "error", [OSError("no such host"), RewardError("asleep"), SystemExit(), KeyboardInterrupt()]
)
def test_a_reward_that_fails_to_open_frees_the_engine(error: BaseException) -> None:
    class Closed(FakeReward):
        def open(self, messages: object) -> Any:
            raise error

    engine = FakeEngine()
    outcomes = run(engine, makers(engine, Closed(), PROMPTS[:2]), in_flight=2)
    if not isinstance(error, KeyboardInterrupt):
        assert [type(outcome) for _, outcome in outcomes] == [RewardError, RewardError]
    else:
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
    assert not engine.groups


class UnnameableError(ValueError):
    def __repr__(self) -> str:
        raise UnnameableError

    __str__ = __repr__


class UnnameableStop(Stop):
    def __repr__(self) -> str:
        raise SystemExit


KINDS = [
    ValueError,
    SystemExit,
    GeneratorExit,
    StopIteration,
    Stop,
    UnnameableError,
    UnnameableStop,
]


class Faulty(FakeReward):
    """Raises at one prompt: as it is opened, scored, its scores read ("within"), or candidates
    dropped."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        super().__init__()
        self._place, self._kind = place, kind

    def open(self, messages: Sequence[Message]) -> FakeSession:
        is_bad = messages[-1]["content"] == PROMPTS[1]
        if is_bad and self._place == "open":
            raise self._kind
        session = super().open(messages)
        if is_bad and self._place in ("score", "drop"):
            setattr(session, self._place, self._fail)
        if is_bad and self._place == "within":
            session.score = self._give  # type: ignore[method-assign, assignment]
        return session

    def _fail(self, *given: object) -> Any:
        raise self._kind

    def _give(self, candidates: Sequence[Candidate]) -> Iterator[float]:
        yield 1.0
        # A generator that raises this has ended.
        raise ValueError if self._kind is StopIteration else self._kind


@pytest.mark.parametrize("place", ["open", "score", "within", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_reward_raises_fails_that_prompt_alone(
    kind: type[BaseException], place: str
) -> None:
    engine, reward = FakeEngine(), Faulty(place, kind)
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS[:4]), in_flight=3))
    failed = {
        number: outcome for number, outcome in outcomes.items() if isinstance(outcome, SpecrejError)
    }
    assert (sorted(outcomes), [*failed]) == ([0, 1, 2, 3], [1])
    assert isinstance(failed[1], RewardError)
    assert ("ValueError" if (place, kind) == ("within", StopIteration) else kind.__name__) in str(
        failed[1]
    )
    assert is_freed(engine, reward)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_joint_batch_raises_has_prompts_scored_one_by_one(
    kind: type[BaseException],
) -> None:
    class Joint(FakeReward):
        def score_together(self, asked: object) -> Any:
            raise kind

    engine, reward = FakeEngine(), Joint()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS[:4]), in_flight=3))
    assert [type(outcome) for outcome in outcomes.values()] == [Result] * 4


@pytest.mark.parametrize("kind", [UnnameableError, StopIteration])
def test_an_error_that_nobody_foresaw_is_named_as_well_as_it_can_be(kind: type[Exception]) -> None:
    class Closed(FakeEngine):
        def encode(self, prompt: Prompt) -> list[int]:
            raise kind

    engine, reward = Closed(), FakeReward()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS[:2])))
    assert all(
        f"the engine failed: {kind.__name__}" in str(outcome) for outcome in outcomes.values()
    )


def test_a_reward_that_opens_no_session_fails_that_prompt_alone() -> None:
    class Forgetting(FakeReward):
        def open(self, messages: Sequence[Message]) -> Any:
            return None if messages[-1]["content"] == PROMPTS[1] else super().open(messages)

    engine, reward = FakeEngine(), Forgetting()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS[:4]), in_flight=3))
    assert [number for number, outcome in outcomes.items() if isinstance(outcome, RewardError)] == [
        1
    ]
    assert is_freed(engine, reward)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_cannot_tell_its_tokens_fails_its_prompt_alone(
    kind: type[BaseException],
) -> None:
    class Uncounted(FakeSession):
        def __getattribute__(self, name: str) -> Any:
            if name == "num_tokens" and self.scored:
                raise kind
            return super().__getattribute__(name)

        def score(self, candidates: Sequence[Candidate]) -> list[float]:
            self.scored.append([])
            return [1.0] * len(candidates)

    class Silent(FakeReward):
        def open(self, messages: Sequence[Message]) -> FakeSession:
            session = super().open(messages)
            if messages[-1]["content"] == PROMPTS[1]:
                session = self.sessions[-1] = Uncounted(by_hash)
            return session

    engine, reward = FakeEngine(), Silent()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS[:4]), in_flight=3))
    assert [number for number, outcome in outcomes.items() if isinstance(outcome, RewardError)] == [
        1
    ]
    assert is_freed(engine, reward)


def test_a_caller_that_stops_listening_frees_all() -> None:
    engine, reward = FakeEngine(), FakeReward()
    outcomes = run(engine, makers(engine, reward, PROMPTS), in_flight=3)
    next(outcomes)
    assert engine.groups
    del outcomes
    assert is_freed(engine, reward)


def test_the_observer_sees_every_step_and_every_decision() -> None:
    engine = FakeEngine()
    seen: list[tuple[int, int]] = []

    def observe(search: Search) -> None:
        seen.append((search.usage.num_steps, len(search.decisions)))

    ((_, outcome),) = run(engine, makers(engine, FakeReward(), PROMPTS[:1]), observe=observe)
    assert isinstance(outcome, Result)
    assert len(seen) == outcome.usage.num_steps + len(outcome.decisions)
    assert seen == sorted(set(seen))


def test_no_searches_no_outcomes() -> None:
    assert list(run(FakeEngine(), [])) == []


def waiting_room(engine: FakeEngine, reward: FakeReward, in_flight: int = 2) -> Scheduler:
    """All prompts submitted, of which so many run."""
    scheduler = Scheduler(engine, Pool(10**9), in_flight=in_flight, observe=unobserved)
    for number, maker in enumerate(makers(engine, reward, PROMPTS)):
        scheduler.submit(number, maker)
    return scheduler


def test_a_search_can_be_taken_out_at_any_moment_and_the_others_do_not_notice() -> None:
    engine, reward = FakeEngine(), FakeReward()
    scheduler = waiting_room(engine, reward)
    outcomes: dict[int, Outcome] = {}
    for _ in range(4):
        outcomes |= dict(scheduler.tick())
    assert (scheduler.num_active, scheduler.num_waiting) == (2, len(PROMPTS) - 2)
    running = scheduler.remove(0)
    assert running is not None
    assert not running.result().is_complete, "what it had come to can still be asked for"
    assert len(engine.groups) == 1, "its memory is free at once"
    assert scheduler.remove(4) is None, "this one had not begun"
    assert scheduler.remove(99) is None
    while scheduler.num_active + scheduler.num_waiting:
        outcomes |= dict(scheduler.tick())
    assert sorted(outcomes) == [number for number in range(len(PROMPTS)) if number not in (0, 4)]
    for number, outcome in outcomes.items():
        alone = specrej.generate(
            PROMPTS[number], model=FakeEngine(), reward=FakeReward(), **OPTIONS
        )
        assert essence(outcome) == essence(alone)
    assert is_freed(engine, reward)


def test_a_search_that_waits_for_memory_can_be_taken_out() -> None:
    engine, reward = FakeEngine(), FakeReward()
    each = Settings(**OPTIONS)
    scheduler = Scheduler(engine, Pool(OPTIONS["memory"]), in_flight=9, observe=unobserved)
    for number, prompt in enumerate(PROMPTS[:3]):
        scheduler.submit(number, partial(prepare, engine, reward, prompt, replace(each, n="auto")))
    list(scheduler.tick())
    assert (scheduler.num_active, scheduler.num_waiting) == (1, 2)
    assert scheduler.remove(1) is None
    assert scheduler.num_waiting == 1
    scheduler.close()
    assert is_freed(engine, reward)


def test_closing_frees_all_that_is_in_flight() -> None:
    engine, reward = FakeEngine(), FakeReward()
    scheduler = waiting_room(engine, reward, in_flight=3)
    list(scheduler.tick())
    assert len(engine.groups) == 3
    scheduler.close()
    assert scheduler.num_active == 0
    assert is_freed(engine, reward)


class SlowScorer:
    """Scores when it is told to: the batches that wait, in the order in which they came."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sequence[Search], Future[list[Given]]]] = []

    def __call__(self, searches: Sequence[Search]) -> Future[list[Given]]:
        self.waiting.append((searches, Future()))
        return self.waiting[-1][1]

    def finish(self, place: int) -> None:
        searches, future = self.waiting.pop(place)
        future.set_result(score_batches(searches))


def test_while_one_search_is_scored_the_others_go_on_and_results_stay_the_same() -> None:
    engine, reward, scorer = FakeEngine(eos=0.02), FakeReward(), SlowScorer()
    scheduler = Scheduler(engine, Pool(10**9), in_flight=3, observe=unobserved, score=scorer)
    each = [Settings(**{**OPTIONS, "decide": words}) for words in ("at:2", "every:7", "budget")]
    for number, one in enumerate(each):
        scheduler.submit(number, partial(prepare, engine, reward, PROMPTS[number], one))
    outcomes: dict[int, Outcome] = {}
    while len(scorer.waiting) < 2:
        outcomes |= dict(scheduler.tick())
    assert [len(searches) for searches, _ in scorer.waiting] == [1, 1], (
        "the first still waits for its scores"
    )
    while scheduler.num_active:
        if scorer.waiting:
            scorer.finish(-1)
        outcomes |= dict(scheduler.tick())
    for number, one in enumerate(each):
        alone = specrej.generate(
            PROMPTS[number], model=FakeEngine(eos=0.02), reward=FakeReward(), **one.to_dict()
        )
        assert essence(outcomes[number]) == essence(alone)
    assert is_freed(engine, reward)


def test_a_search_that_is_taken_out_while_it_is_scored_leaves_the_others_alone() -> None:
    engine, reward, scorer = FakeEngine(eos=0.0), FakeReward(), SlowScorer()
    scheduler = Scheduler(engine, Pool(10**9), in_flight=2, observe=unobserved, score=scorer)
    for number, maker in enumerate(makers(engine, reward, PROMPTS[:2], decide="every:4")):
        scheduler.submit(number, maker)
    while not scorer.waiting:
        assert not list(scheduler.tick())
    assert len(scorer.waiting[0][0]) == 2, "both decide at the same time"
    searches, future = scorer.waiting.pop()
    given = score_batches(searches)
    assert scheduler.remove(0) is not None
    future.set_result(given)
    scheduler._score = score_now
    outcomes: dict[int, Outcome] = {}
    while scheduler.num_active:
        outcomes |= dict(scheduler.tick())
    assert list(outcomes) == [1]
    alone = specrej.generate(
        PROMPTS[1],
        model=FakeEngine(eos=0.0),
        reward=FakeReward(),
        **{**OPTIONS, "decide": "every:4"},
    )
    assert essence(outcomes[1]) == essence(alone)
    assert is_freed(engine, reward)


class Fragile(FakeEngine):
    """Raises `error` in one of its calls for one prompt."""

    def __init__(self, call: str, prompt: str, error: Exception) -> None:
        super().__init__(eos=0.02)
        self.prompt_ids = self.encode(prompt)
        self.call, self.failure = call, error

    def _check(self, call: str, prompt_ids: Sequence[int]) -> None:
        if call == self.call and list(prompt_ids) == self.prompt_ids:
            raise self.failure

    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        self._check("open", prompt_ids)
        return super().open(prompt_ids, sampling, budget_bytes)

    def add(self, prompt: int, indices: Sequence[int]) -> None:
        self._check("add", self.groups[prompt].prompt_ids)
        super().add(prompt, indices)

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        self._check("drop", self.groups[prompt].prompt_ids)
        super().drop(prompt, indices)

    def overhead(self, prompt: int) -> Overhead:
        self._check("overhead", self.groups[prompt].prompt_ids)
        return super().overhead(prompt)


FRAGILE = PROMPTS[1]
OVERFLOW = OverflowError("int too large to convert to float")


def check_that_it_fails_alone(
    engine: FakeEngine, outcomes: dict[int, Outcome], reward: FakeReward, said: str
) -> None:
    assert sorted(outcomes) == list(range(len(PROMPTS)))
    failed = outcomes[PROMPTS.index(FRAGILE)]
    assert isinstance(failed, SpecrejError)
    assert said in str(failed)
    for number, prompt in enumerate(PROMPTS):
        if prompt != FRAGILE:
            alone = specrej.generate(
                prompt, model=FakeEngine(eos=0.02), reward=FakeReward(), **EARLY
            )
            assert essence(outcomes[number]) == essence(alone)
    assert is_freed(engine, reward)


EARLY = {**OPTIONS, "decide": "every:5"}


@pytest.mark.parametrize("call", ["open", "add", "drop", "overhead"])
@pytest.mark.parametrize(
    "error", [OVERFLOW, RuntimeError("shapes do not match"), EngineError("asleep")]
)
def test_whatever_an_engine_raises_for_one_prompt_fails_it_alone(
    call: str, error: Exception
) -> None:
    engine, reward = Fragile(call, FRAGILE, error), FakeReward()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=3))
    check_that_it_fails_alone(engine, outcomes, reward, str(error))


def test_a_prompt_that_the_engine_cannot_read_fails_alone() -> None:
    class Choosy(FakeEngine):
        def encode(self, prompt: Prompt) -> list[int]:
            if prompt == FRAGILE:
                raise OVERFLOW
            return super().encode(prompt)

    engine, reward = Choosy(eos=0.02), FakeReward()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=3))
    check_that_it_fails_alone(engine, outcomes, reward, "int too large")


@pytest.mark.parametrize("length", [1, 5, 12])
def test_tokens_that_cannot_be_decoded_fail_their_prompt_alone(length: int) -> None:
    class Failing(ByteReader):
        num_left = length - 1

        def add(self, token_id: int) -> Piece:
            if not self.num_left:
                raise OVERFLOW
            self.num_left -= 1
            return super().add(token_id)

    class Illiterate(FakeEngine):
        def detokenizer(self, prompt: Prompt) -> ByteReader:
            return Failing() if prompt == FRAGILE else super().detokenizer(prompt)

    engine, reward = Illiterate(eos=0.02), FakeReward()
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=len(PROMPTS)))
    check_that_it_fails_alone(engine, outcomes, reward, "int too large")


@pytest.mark.parametrize("moment", ["step", "decision"])
def test_an_observer_that_fails_on_one_search_fails_it_alone(moment: str) -> None:
    engine, reward = FakeEngine(eos=0.02), FakeReward()

    def observe(search: Search) -> None:
        is_now = bool(search.decisions) == (moment == "decision")
        if search.prompt_ids == engine.encode(FRAGILE) and is_now:
            raise OVERFLOW

    outcomes = dict(
        run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=3, observe=observe)
    )
    check_that_it_fails_alone(engine, outcomes, reward, "int too large")


class Grudging(FakeReward):
    """Fails for one prompt when candidates are dropped, or when it is closed."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def open(self, messages: Sequence[Message]) -> FakeSession:
        session = super().open(messages)
        if messages[-1]["content"] == FRAGILE:
            setattr(session, self.call, self.fail)
        return session

    def fail(self, *_: object) -> None:
        raise OVERFLOW


def test_a_reward_that_fails_to_drop_candidates_fails_its_prompt_alone() -> None:
    engine, reward = FakeEngine(eos=0.02), Grudging("drop")
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=3))
    check_that_it_fails_alone(engine, outcomes, reward, "int too large")


def test_a_reward_that_fails_to_close_changes_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    engine, reward = FakeEngine(eos=0.02), Grudging("close")
    outcomes = dict(run(engine, makers(engine, reward, PROMPTS, **EARLY), in_flight=3))
    for number, prompt in enumerate(PROMPTS):
        alone = specrej.generate(prompt, model=FakeEngine(eos=0.02), reward=FakeReward(), **EARLY)
        assert essence(outcomes[number]) == essence(alone)
    assert not engine.groups
    assert "failed to close" in caplog.text


def test_out_of_memory_a_reward_that_fails_makes_room_by_its_own_prompt() -> None:
    engine, reward = FakeEngine(eos=0.0, fail_at={6}), Grudging("drop")
    each = [(FRAGILE, 12), (PROMPTS[0], 4)]
    both = (
        partial(prepare, engine, reward, p, Settings(**{**OPTIONS, "n": n, "memory": 20_000}))
        for p, n in each
    )
    outcomes = dict(run(engine, both, in_flight=2))
    assert isinstance(outcomes[0], RewardError)
    assert isinstance(outcomes[1], Result)


def test_what_nobody_foresaw_is_logged_and_quoted(caplog: pytest.LogCaptureFixture) -> None:
    engine = Fragile("open", FRAGILE, OVERFLOW)
    with pytest.raises(EngineError, match="the engine failed: OverflowError") as caught:
        specrej.generate(FRAGILE, model=engine, reward=FakeReward(), **OPTIONS)
    assert caught.value.__cause__ is OVERFLOW
    assert "in _check" in caplog.text
