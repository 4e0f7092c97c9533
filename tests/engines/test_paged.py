"""The engine over requests and pages, on a backend that counts every page: arithmetic, places,
waiting prompts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward, watched
from paging import PAGE, FakeBackend, paged_engine
from specrej.engines.backend import Drawn
from specrej.errors import EngineError, UsageError
from specrej.search.search import Search
from specrej.testing.subject import ids
from specrej.types import Result, SamplingParams

some = settings(max_examples=40, deadline=None, derandomize=True)
PROMPTS = [
    "Why?",
    "Tell me about trees.",
    "A",
    "What is the name of the rose?",
    "Name a tree. " * 3,
]


def generate(backend: FakeBackend, prompt: str = PROMPTS[1], **options: Any) -> Result:
    given = {"n": 6, "max_new_tokens": 20, "seed": 3, "memory": "1KiB", **options}
    return watched(
        prompt, model=paged_engine(backend, bytes_per_token=1), reward=FakeReward(), **given
    )


@given(
    prompt=st.sampled_from(PROMPTS),
    n=st.integers(1, 12),
    decide=st.sampled_from(["budget", "every:1", "every:5", "at:3,11"]),
    alpha=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    eos=st.sampled_from([0.0, 0.06, 0.3]),
    num_rows=st.integers(1, 5),
)
@some
def test_what_it_says_it_holds_is_what_the_backend_holds(
    prompt: str, n: int, decide: str, alpha: float, eos: float, num_rows: int
) -> None:
    """P5: at every step, page by page; and what it foresees is what comes."""
    backend = FakeBackend(eos=eos)
    engine = paged_engine(backend)
    budget = engine.kv_bytes(len(engine.encode(prompt)), num_rows, 20)
    foreseen: list[int] = []

    def observe(search: Search) -> None:
        memory = search.memory()
        assert memory.in_use == backend.pages_in_use() * PAGE * 10
        assert memory.in_use <= memory.peak <= budget
        foreseen.append(memory.next_step)

    result = watched(
        prompt, model=engine, reward=FakeReward(), observe=observe, n=n, decide=decide, alpha=alpha,
        max_new_tokens=20, memory=budget, seed=1,
    )  # fmt: skip
    assert backend.most_pages * PAGE * 10 <= max(
        budget, engine.kv_bytes(len(engine.encode(prompt)), 0, 0)
    )
    assert result.usage.peak_kv_bytes <= budget
    assert not backend.requests


@given(
    n=st.integers(2, 12),
    decide=st.sampled_from(["budget", "every:5"]),
    alpha=st.sampled_from([0.0, 0.05, 0.25, 0.5]),
    num_rows=st.integers(1, 5),
    step_tokens=st.integers(1, 20),
    seed=st.integers(0, 20),
)
@example(n=12, decide="every:5", alpha=0.25, num_rows=2, step_tokens=3, seed=1)
@example(n=12, decide="every:5", alpha=0.5, num_rows=5, step_tokens=8, seed=1)
@example(n=12, decide="every:5", alpha=0.05, num_rows=5, step_tokens=8, seed=1)
@some
def test_what_is_decoded_ahead_keeps_within_the_budget(
    n: int, decide: str, alpha: float, num_rows: int, step_tokens: int, seed: int
) -> None:
    """P5: some wait for their first token, others run ahead; a decision comes before memory is
    full, and frees what the next step needs (P3)."""
    backend = FakeBackend(eos=0.0, step_tokens=step_tokens)
    engine = paged_engine(backend)
    budget = engine.kv_bytes(len(engine.encode(PROMPTS[1])), num_rows, 20)
    result = watched(
        PROMPTS[1], model=engine, reward=FakeReward(), n=n, decide=decide, alpha=alpha,
        max_new_tokens=20, memory=budget, seed=seed,
    )  # fmt: skip
    assert result.is_complete
    assert backend.most_pages * PAGE * 10 <= budget
    assert result.usage.peak_kv_bytes <= budget


def test_a_prompt_is_read_once_but_for_what_no_full_page_holds() -> None:
    """P7: as many tokens are fed as there are, and for each candidate the rest of the prompt."""
    backend = FakeBackend()
    result = generate(backend)
    num_prompt = result.usage.prompt_tokens
    rest = num_prompt - (num_prompt - 1) // PAGE * PAGE
    num_fed = sum(len(tokens) - 1 for tokens in ids(result))
    assert backend.num_read == num_prompt + 6 * rest + num_fed
    assert result.usage.reread_tokens == 6 * rest


def test_every_candidate_has_a_seed_of_its_own_and_the_same_one_in_any_wave() -> None:
    backend, waves = FakeBackend(), FakeBackend()
    at_once = generate(backend, algorithm="best_of_n")
    engine = paged_engine(waves, bytes_per_token=1)
    memory = engine.kv_bytes(at_once.usage.prompt_tokens, 2, 20)
    in_waves = generate(waves, algorithm="best_of_n", memory=memory)
    assert len(in_waves.decisions) == 3
    assert ids(in_waves) == ids(at_once)
    own = [seed for _, seed in backend.submitted[1:]]
    assert len(set(own)) == 6
    assert [seed for _, seed in waves.submitted if seed] == own


@given(step_tokens=st.integers(1, 40), eos=st.sampled_from([0.0, 0.1]))
@some
def test_prompts_that_are_read_in_pieces_change_nothing(step_tokens: int, eos: float) -> None:
    """Some candidates have their first token before others: they get it together all the same."""
    pieces = generate(FakeBackend(step_tokens=step_tokens, eos=eos), decide="every:5")
    whole = generate(FakeBackend(eos=eos), decide="every:5")
    assert ids(pieces) == ids(whole)
    assert pieces.decisions[0].rejected == whole.decisions[0].rejected


@given(
    seed=st.integers(0, 100),
    num_memories=st.sampled_from([1.0, 1.5, 2.0, 3.7]),
    in_flight=st.integers(1, 5),
    most_requests=st.integers(6, 20),
    step_tokens=st.sampled_from([7, 10**6]),
)
@some
def test_many_prompts_keep_within_the_cache_and_are_each_as_alone(
    seed: int, num_memories: float, in_flight: int, most_requests: int, step_tokens: int
) -> None:
    """The backend asserts that there are never more pages than it has; some must wait for
    places."""
    options: dict[str, Any] = {"n": 6, "max_new_tokens": 16, "decide": "every:4", "seed": seed}
    plain = paged_engine(FakeBackend())
    memory = max(plain.kv_bytes(len(plain.encode(prompt)), 4, 16) for prompt in PROMPTS)
    total = int(memory * num_memories)
    backend = FakeBackend(
        num_pages=-(-total // (PAGE * 10)), most_requests=most_requests, step_tokens=step_tokens
    )
    outcomes = specrej.generate_batch(
        PROMPTS, model=paged_engine(backend), reward=FakeReward(),
        memory=memory, total_memory=total,
        in_flight=in_flight, **options,
    )  # fmt: skip
    for number, outcome in outcomes:
        assert isinstance(outcome, Result)
        alone = watched(PROMPTS[number], model=plain, reward=FakeReward(), memory=memory, **options)
        assert ids(outcome) == ids(alone)
        assert outcome.best.index == alone.best.index
        assert outcome.usage.num_preemptions == 0
    assert not backend.requests


def test_more_candidates_than_places_come_in_waves() -> None:
    result = generate(FakeBackend(most_requests=4), n=10, algorithm="best_of_n")
    assert [len(decision.scored) for decision in result.decisions] == [4, 4, 2]


def test_candidates_that_were_decoded_ahead_are_counted() -> None:
    """Beside a prompt that is being read, another one's candidates may run ahead: what is
    dropped of that is said."""
    backend = FakeBackend(eos=0.0)
    engine = paged_engine(backend)
    sampling = SamplingParams(max_new_tokens=20)
    first = engine.open([1, 2, 3], sampling, 10_000)
    engine.add(first, range(3))
    engine.step()
    second = engine.open([4, 5, 6], sampling, 10_000)
    engine.add(second, range(2))
    while not (tokens := engine.step({second: 10_000})):
        pass
    assert {token.prompt for token in tokens} == {second}
    engine.drop(first, [0])
    assert engine.overhead(first).unused_tokens > 0
    engine.close(first)
    engine.close(second)
    assert not backend.requests


def test_a_backend_that_fails_ends_the_run() -> None:
    with pytest.raises(EngineError, match="as asked for") as caught:
        generate(FakeBackend(fail_at=3))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_default_budget_is_eight_candidates_on_a_cpu_and_the_cache_elsewhere() -> None:
    on_cpu, elsewhere = (
        paged_engine(FakeBackend(num_pages=1000, is_on_cpu=is_cpu)) for is_cpu in (True, False)
    )
    assert on_cpu.default_budget(10, 20) == on_cpu.kv_bytes(10, 8, 20)
    assert elsewhere.default_budget(10, 20) == elsewhere.capacity_bytes == 1000 * PAGE * 10
    assert elsewhere.default_budget(10, 20, 8000) == 1000
    assert on_cpu.default_total(20) == on_cpu.capacity_bytes


def test_pages_and_blocks_are_counted_by_one_rule() -> None:
    """A page of one token is a block without pages."""
    fake = FakeEngine()
    assert fake.layout.page == 1
    assert fake.layout.peak_bytes(9, 3, 5) == fake.kv_bytes(9, 3, 6)


class Overflowing(FakeBackend):
    """Gives the third token of these requests a log-probability that is no number."""

    def __init__(self, keys: set[int], value: float, **options: Any) -> None:
        super().__init__(**options)
        self.keys, self.value = keys, value

    def step(self) -> Iterator[Drawn]:
        counts = {key: len(request.token_ids) for key, request in self.requests.items()}
        for drawn in super().step():
            is_broken = drawn.key in self.keys and counts[drawn.key] == 2
            yield drawn._replace(logprob=self.value) if is_broken else drawn


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("max_new_tokens", [3, 20])
def test_a_candidate_whose_numbers_are_not_finite_is_lost_and_the_others_go_on(
    value: float, max_new_tokens: int
) -> None:
    options: dict[str, Any] = {"algorithm": "best_of_n", "max_new_tokens": max_new_tokens}
    backend = Overflowing({2, 5}, value, eos=0.0)  # the request that reads the prompt is 0
    expected, result = generate(FakeBackend(eos=0.0), **options), generate(backend, **options)
    assert [c.index for c in result.candidates if c.finish_reason == "lost"] == [1, 4]
    for index, (sound, broken) in enumerate(zip(ids(expected), ids(result), strict=True)):
        assert broken == (sound[:2] if index in (1, 4) else sound)
    assert result.best.state == "complete"
    assert not backend.requests
    with pytest.raises(
        EngineError, match="the engine lost 6 of 6, the last one because the model gave its token"
    ):
        generate(Overflowing(set(range(1, 7)), value, eos=0.0), **options)


def test_a_prompt_that_the_backend_refuses_leaves_nothing_behind() -> None:
    class Choosy(FakeBackend):
        def submit(
            self, key: int, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int
        ) -> None:
            if sampling.temperature > 2:
                raise UsageError("temperature must be at most 2")
            super().submit(key, prompt_ids, sampling, seed)

    engine = paged_engine(Choosy(most_requests=2))
    for _ in range(3):
        with pytest.raises(UsageError, match="temperature"):
            watched("Why?", model=engine, reward=FakeReward(), temperature=3, max_new_tokens=5)
    assert not engine._prompts
    assert not engine._owners
    assert watched("Why?", model=engine, reward=FakeReward(), max_new_tokens=5, n=2).is_complete
