"""The promises P1 to P7 on chunks that a real server makes: what every engine must do, and runs
drawn at random."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import specrej
from completions_server import PAGE, CompletionsServer, playing
from fakes import FakeReward, by_hash, in_thirds, watched
from specrej.engines.openai import OpenAIEngine
from specrej.search.search import Search
from specrej.testing import EngineSuite, Subject
from specrej.types import Result, SamplingParams
from tiny import save_model

CHUNK = 6
PROMPT = "Why?"

some = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model")
    return save_model(directory)


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    with playing() as server:
        yield server


@pytest.fixture(scope="module")
def engine(model: str, server: CompletionsServer) -> OpenAIEngine:
    opened = specrej.open_engine(
        model, engine=f"openai:{server.base}", engine_args={"chunk_tokens": CHUNK}
    )
    assert isinstance(opened, OpenAIEngine)
    return opened


class TestOpenAI(EngineSuite):
    @pytest.fixture
    def subject(self, engine: OpenAIEngine) -> Subject:
        return Subject(
            engine,
            reread=40,
            unused=CHUNK,
            prompts=(PROMPT, "Give three tips.", "Name a tree. " * 4),
        )


def ids(result: Result) -> list[list[int]]:
    return [candidate.token_ids for candidate in result.candidates]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a run; the memory in candidates of full length."""
    return {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "n": draw(st.integers(1, 8)),
        "max_new_tokens": draw(st.integers(1, 20)),
        "memory": draw(st.integers(1, 5)),
        "min_tokens": draw(st.integers(1, 12)),
        "alpha": draw(st.sampled_from([0.001, 0.25, 0.5, 0.9])),
        "decide": draw(st.sampled_from(["budget", "every:1", "every:4", "at:3,11"])),
        "reward": FakeReward(draw(st.sampled_from([by_hash, in_thirds]))),
    }


def run(engine: OpenAIEngine, case: dict[str, Any], **options: Any) -> Result:
    given = {**case, **options}
    if isinstance(given["memory"], int):
        num_prompt = len(engine.encode(PROMPT))
        given["memory"] = engine.kv_bytes(
            num_prompt, given["memory"], max(given["max_new_tokens"], 2)
        )
    return watched(PROMPT, model=engine, **given)


@given(cases())
@some
def test_p1_p2_tokens_are_those_of_best_of_n_whatever_is_decided(
    engine: OpenAIEngine, case: dict[str, Any]
) -> None:
    expected = run(engine, case, algorithm="best_of_n", memory=9)
    assert ids(run(engine, case, alpha=0.0)) == ids(expected)
    result = run(engine, case)
    for candidate, full in zip(result.candidates, expected.candidates, strict=True):
        num_tokens = len(candidate.token_ids)
        assert candidate.token_ids == full.token_ids[:num_tokens]
        assert candidate.logprobs == full.logprobs[:num_tokens]
    assert result.best.state == "complete"
    assert result.best.token_ids == expected.candidates[result.best.index].token_ids


@given(cases())
@some
def test_p3_p5_p6_memory_is_kept_and_usage_adds_up(
    engine: OpenAIEngine, server: CompletionsServer, case: dict[str, Any]
) -> None:
    before = len(server.parts), server.num_made
    num_decisions = 0

    def observe(search: Search) -> None:
        nonlocal num_decisions
        memory = search.memory()
        assert memory.in_use <= memory.peak <= search.budget_bytes
        if len(search.decisions) > num_decisions:
            num_decisions = len(search.decisions)
            assert memory.next_step <= search.budget_bytes

    result = run(engine, case, observe=observe, n="auto" if case["n"] == 8 else case["n"])
    usage = result.usage
    assert usage.peak_kv_bytes <= result.settings["memory_bytes"]
    assert usage.generated_tokens == sum(map(len, ids(result)))
    for decision in result.decisions:
        if decision.cause == "budget":
            assert decision.rejected
            assert decision.kv_bytes_after < decision.kv_bytes
    # The reading of the prompt makes a token, too.
    assert usage.generated_tokens + usage.unused_tokens + 1 == server.num_made - before[1]


def test_the_grid_does_not_depend_on_decisions(
    engine: OpenAIEngine, server: CompletionsServer
) -> None:
    sampling = SamplingParams(max_new_tokens=20, ignore_eos=True, seed=1)
    prompt_ids = engine.encode(PROMPT)

    def asked(drops: dict[int, list[int]]) -> list[tuple[int, int]]:
        before = len(server.parts)
        prompt = engine.open(prompt_ids, sampling, 2**30)
        engine.add(prompt, range(4))
        for step in range(20):
            engine.drop(prompt, drops.get(step, []))
            engine.step()
        engine.close(prompt)
        return sorted(
            (len(request["prompt"]) - len(prompt_ids), request["max_tokens"])
            for request in server.parts[before:]
        )

    grid = [(0, 6), (6, 6), (12, 6), (18, 2)]
    assert asked({}) == sorted(grid * 4)
    assert asked({1: [0], 5: [1], 6: [2]}) == sorted([(0, 6)] * 3 + grid)


def test_every_chunk_has_a_seed_of_its_own(engine: OpenAIEngine, server: CompletionsServer) -> None:
    before = len(server.parts)
    run(
        engine,
        {"reward": by_hash_text, "n": 8, "max_new_tokens": 20, "memory": 8, "seed": 5},
        algorithm="best_of_n",
    )
    given = [request["seed"] for request in server.parts[before:]]
    assert len(set(given)) == len(given) > 16
    assert all(0 <= seed < 2**31 for seed in given)


def by_hash_text(prompt: str, texts: list[str]) -> list[float]:
    return [by_hash(text) for text in texts]


def test_pages_are_those_of_the_server(engine: OpenAIEngine) -> None:
    assert engine.layout.page == PAGE
    assert engine.capacity_bytes == 5000 * PAGE * engine.layout.bytes_per_token
