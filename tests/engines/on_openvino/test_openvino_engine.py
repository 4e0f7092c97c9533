"""OpenVINO's own: pages and when they are free, prompts that share them, draws, and
log-probabilities."""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

import specrej
from extremes import EXTREME
from fakes import FakeReward
from specrej.engines.backend import Drawn
from specrej.engines.openvino_requests import _Candidate, _generation_config
from specrej.engines.paged import PagedEngine
from specrej.errors import EngineError
from specrej.testing import EngineSuite, Subject
from specrej.types import SamplingParams
from tiny import full_logits, make_ids

pytest.importorskip("openvino_genai")

from opened import ENDS, PAGE, logprobs, run, tiny_engine, tiny_model


@pytest.fixture
def engine() -> Iterator[PagedEngine]:
    """The one that all tests share, with nothing open."""
    engine = tiny_engine()
    yield engine
    for prompt in list(engine._prompts):
        engine.close(prompt)


def pages_of(engine: PagedEngine, num_bytes: int) -> int:
    return num_bytes // (PAGE * engine.layout.bytes_per_token)


def in_use(engine: PagedEngine) -> int:
    pages: int = engine.backend.pages_in_use()
    return pages


def finish(engine: PagedEngine, *keys: int) -> dict[int, list[Drawn]]:
    """What the backend draws for these requests, to their end."""
    drawn: dict[int, list[Drawn]] = {key: [] for key in keys}
    while any(not tokens or tokens[-1].finish_reason is None for tokens in drawn.values()):
        for token in engine.backend.step():
            drawn[token.key].append(token)
    return drawn


class TestOpenVINO(EngineSuite):
    @pytest.fixture
    def subject(self, engine: PagedEngine) -> Subject:
        page_bytes = PAGE * engine.layout.bytes_per_token
        return Subject(
            engine, reread=1, reread_later=PAGE, measured=lambda: in_use(engine) * page_bytes
        )


def test_the_cache_is_as_measured(engine: PagedEngine) -> None:
    assert engine.layout.page == PAGE
    assert (
        engine.layout.bytes_per_token == 2 * 2 * 2 * 8 * 4
    )  # layers, keys and values, heads, numbers of float32
    assert (
        engine.capacity_bytes == 199 * PAGE * engine.layout.bytes_per_token
    )  # one of 200 pages is the filler's


@pytest.mark.parametrize("num_prompt", [3, 31, 33, 60, 95])
def test_pages_held_are_those_that_arithmetic_says(engine: PagedEngine, num_prompt: int) -> None:
    """At each step but the first: candidates share the page that the prompt ends in until they
    write to it.

    Some are dropped where pages are full, and some within a page, whose pages are free a step
    later. Candidates that have drawn the same tokens up to a page's end share that page, which
    arithmetic does not know.
    """
    to_page_end = -num_prompt % PAGE + 1
    drops = {to_page_end: [1, 2], to_page_end + 3: [3], to_page_end + PAGE: [4]}
    ids = {index: make_ids(num_prompt, seed=1) for index in range(8)}
    sampling = SamplingParams(max_new_tokens=to_page_end + PAGE + 4, ignore_eos=True, seed=3)
    prompt = engine.open(ids[0], sampling, engine.capacity_bytes or 0)
    engine.add(prompt, range(8))
    for step in range(sampling.max_new_tokens - 1):
        for index in drops.get(step, ()):
            del ids[index]
        engine.drop(prompt, drops.get(step, ()))
        announced = pages_of(engine, engine.memory(prompt).next_step)
        for token in engine.step():
            ids[token.candidate].append(token.token_id)
        num_full = (num_prompt + step - 1) // PAGE  # pages before those that are written to
        shared = {
            tuple(one[: (page + 1) * PAGE]) for one in ids.values() for page in range(num_full)
        }
        if step == 0 or step == to_page_end + 3:
            assert in_use(engine) <= 1 + 8 * 3
        else:
            assert in_use(engine) == len(shared) + len(ids), f"after {step + 1}"
            num_alike = (
                len(ids) * (num_full - (num_prompt - 1) // PAGE)
                + (num_prompt - 1) // PAGE
                - len(shared)
            )
            assert announced - in_use(engine) == num_alike
            assert announced == pages_of(engine, engine.memory(prompt).in_use)
    engine.close(prompt)
    assert in_use(engine) == 0


def test_a_prompt_of_whole_pages_is_shared_whole(engine: PagedEngine) -> None:
    """Arithmetic has each candidate read the last one of them again, which is more than is held."""
    sampling = SamplingParams(max_new_tokens=4, ignore_eos=True)
    prompt = engine.open(make_ids(2 * PAGE, seed=2), sampling, engine.capacity_bytes or 0)
    engine.add(prompt, range(5))
    for _ in range(3):
        engine.step()
        assert 2 <= in_use(engine) <= pages_of(engine, engine.memory(prompt).in_use)
    assert in_use(engine) == 2 + 5
    engine.close(prompt)


def test_pages_are_free_when_a_prompt_is_closed(engine: PagedEngine) -> None:
    sampling = SamplingParams(max_new_tokens=40, ignore_eos=True)
    some, other = (engine.open(make_ids(50, seed=seed), sampling, 10**6) for seed in (3, 4))
    engine.add(some, range(6))
    engine.add(other, range(2))
    for _ in range(3):
        engine.step()
    assert in_use(engine) == 2 * 1 + 6 + 2
    engine.close(some)
    engine.step()
    engine.step()
    assert in_use(engine) == 1 + 2
    engine.close(other)
    assert in_use(engine) == 0


def test_a_full_cache_never_holds_more_than_there_is() -> None:
    """Who needs a new page while those of others are not free yet gets it a step later."""
    engine, sampling = tiny_engine(20), SamplingParams(max_new_tokens=30, ignore_eos=True)
    room, ids = 15 * PAGE * engine.layout.bytes_per_token, make_ids(31, seed=6)
    some = engine.open(make_ids(40, seed=5), sampling, room)
    other = engine.open(ids, sampling, room)
    engine.add(some, range(7))
    engine.add(other, range(7))
    found: dict[int, list[tuple[int, float | None]]] = {index: [] for index in range(7)}
    for step in range(31):
        if (
            step == 2
        ):  # the others have filled a page, and need seven new ones of the four that are free
            assert in_use(engine) == 1 + 7 + 7
            engine.close(some)
        for token in engine.step():
            if token.prompt == other:
                found[token.candidate].append((token.token_id, token.logprob))
        assert in_use(engine) <= 20
    for pairs in found.values():
        token_ids, values = zip(*pairs, strict=True)
        assert len(token_ids) == 30
        assert list(values) == pytest.approx(logprobs(tiny_model(), ids, token_ids), abs=2e-3)
    engine.close(other)


def test_a_cache_that_is_too_small_fails_and_does_not_hang() -> None:
    engine = tiny_engine(4)
    engine.backend.submit(1, make_ids(150), SamplingParams(max_new_tokens=4), 0)
    with pytest.raises(EngineError, match="ran out of KV cache"):
        _ = [list(engine.backend.step()) for _ in range(10)]
    engine.backend.abort([1])
    assert in_use(engine) == 0


def test_log_probabilities_are_the_models_before_temperature_and_filters(
    engine: PagedEngine,
) -> None:
    sampling = SamplingParams(max_new_tokens=70, temperature=0.7, top_k=50, ignore_eos=True, seed=4)
    prompt = make_ids(60, seed=7)
    for token_ids, found in run(engine, prompt, sampling, range(4), {20: [3]}).values():
        assert found == pytest.approx(logprobs(tiny_model(), prompt, token_ids), abs=2e-3)


def test_tokens_go_on_over_pages_as_in_one_pass(engine: PagedEngine) -> None:
    """The most likely tokens, drawn one by one over three pages, are those of transformers."""
    prompt = make_ids(50, seed=8)
    answers = run(
        engine, prompt, SamplingParams(max_new_tokens=80, top_k=1, ignore_eos=True), range(2)
    )
    logits = full_logits(tiny_model(), [*prompt, *answers[0][0]])[len(prompt) - 1 : -1]
    assert answers[0] == answers[1]
    assert answers[0][0] == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 0}, {"temperature": 0.6}, {"top_p": 0.9}, {"min_p": 0.02}]
)
def test_a_candidates_tokens_are_the_same_in_any_company(
    engine: PagedEngine, options: dict[str, Any]
) -> None:
    sampling = SamplingParams(max_new_tokens=50, ignore_eos=True, seed=5, **options)
    prompt = make_ids(45, seed=9)
    together = run(engine, prompt, sampling, range(12))
    assert run(engine, prompt, sampling, range(12)) == together
    halved = run(
        engine, prompt, sampling, range(12), {7: range(0, 12, 2), 20: [1, 3], 25: [5, 7, 9]}
    )
    assert halved[11] == together[11]
    for index in range(11):
        assert halved[index][0] == together[index][0][: len(halved[index][0])]
    alone = run(engine, prompt, sampling, [4])
    assert alone[4] == together[4]
    assert len({tuple(token_ids) for token_ids, _ in together.values()}) == 12
    assert (
        run(engine, prompt, SamplingParams(**{**options, "max_new_tokens": 8, "seed": 6}), [4])[4][
            0
        ]
        != alone[4][0][:8]
    )


def test_prompts_that_begin_alike_are_not_mixed_up(engine: PagedEngine) -> None:
    """OpenVINO would let both write to the page that the prompt before them has filled in part."""
    start = make_ids(40, seed=10)
    continued = [[*start, *make_ids(5, seed=seed)] for seed in (11, 12)]
    sampling = SamplingParams(max_new_tokens=4, ignore_eos=True)
    engine.backend.submit(1, start, SamplingParams(max_new_tokens=1), 1)
    finish(engine, 1)
    for round_ in (0, 10):  # as prompts, and as their candidates
        for number, prompt in enumerate(continued):
            engine.backend.submit(2 + round_ + number, prompt, sampling, 2)
            engine.backend.submit(4 + round_ + number, prompt, sampling, 3)
        for key, drawn in finish(engine, *range(2 + round_, 6 + round_)).items():
            token_ids = [token.token_id for token in drawn]
            expected = logprobs(tiny_model(), continued[key % 2], token_ids)
            assert [token.logprob for token in drawn] == pytest.approx(expected, abs=2e-3)


def test_other_prompts_begin_together(engine: PagedEngine) -> None:
    for key in (1, 2, 3):
        engine.backend.submit(key, make_ids(20, seed=20 + key), SamplingParams(max_new_tokens=1), 0)
    assert sorted(token.key for token in engine.backend.step()) == [1, 2, 3]


def test_what_is_found_in_the_cache_is_said(engine: PagedEngine) -> None:
    first, sampling = make_ids(70, seed=30), SamplingParams(max_new_tokens=1, ignore_eos=True)
    num_cached = {}
    prompts = (first, first, [*first[:64], *make_ids(9, seed=31)], first[:40], make_ids(5, seed=32))
    for key, prompt in enumerate(prompts):
        engine.backend.submit(key, prompt, sampling, 0)
        num_cached[key] = finish(engine, key)[key][0].num_cached
    assert num_cached == {0: 0, 1: 69, 2: 64, 3: 32, 4: 0}


def test_the_token_that_ends_an_answer_is_its_last(engine: PagedEngine) -> None:
    sampling = SamplingParams(max_new_tokens=40, temperature=3.0, top_k=0, seed=2)
    prompt = engine.open(make_ids(30, seed=13), sampling, 10**6)
    engine.add(prompt, range(16))
    last: dict[int, Any] = {}
    while tokens := engine.step():
        for token in tokens:
            assert last.get(token.candidate) is None or last[token.candidate].finish_reason is None
            assert (token.token_id in ENDS) == (token.finish_reason == "eos")
            last[token.candidate] = token
    assert Counter(token.finish_reason for token in last.values())["eos"] >= 4
    assert in_use(engine) == 0
    engine.close(prompt)


def allowed(logits: torch.Tensor, sampling: SamplingParams, seen: Sequence[int]) -> torch.Tensor:
    """Probabilities of the next token, in transformers' order of filters."""
    scores = logits.clone()
    ids = torch.tensor(sorted(set(seen)))
    penalty = sampling.repetition_penalty
    scores[ids] = torch.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
    scores /= sampling.temperature
    if sampling.top_k:
        scores[scores < scores.topk(sampling.top_k).values[-1]] = -torch.inf
    shares = scores.softmax(dim=-1)
    ordered, order = shares.sort(descending=True)
    shares[order[ordered.cumsum(dim=0) - ordered >= sampling.top_p]] = 0
    shares[shares < sampling.min_p * shares.max()] = 0
    return shares / shares.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 0, "temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.1},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
        {"repetition_penalty": 1.5, "top_k": 20},
    ],
)
def test_tokens_are_drawn_with_the_probabilities_that_were_asked_for(
    engine: PagedEngine, options: dict[str, Any]
) -> None:
    sampling, prompt = (
        SamplingParams(max_new_tokens=1, ignore_eos=True, seed=9, **options),
        make_ids(40, seed=14),
    )
    shares = allowed(full_logits(tiny_model(), prompt)[-1], sampling, prompt).numpy()
    num_draws = 2000
    engine.backend.submit(num_draws, prompt, sampling, 0)
    finish(engine, num_draws)  # what follows finds the prompt in the cache
    for key in range(num_draws):
        engine.backend.submit(key, prompt, sampling, key)
    drawn = finish(engine, *range(num_draws)).values()
    counts = np.bincount([tokens[0].token_id for tokens in drawn], minlength=len(shares))
    assert counts[shares == 0].sum() == 0
    likely = shares * num_draws >= 5
    expected = shares[likely] * num_draws
    chi_squared = ((counts[likely] - expected) ** 2 / expected).sum()
    assert chi_squared < len(expected) + 5 * np.sqrt(2 * len(expected))


def test_generate_gives_a_result_with_its_cost(engine: PagedEngine) -> None:
    result = specrej.generate(
        "Give three tips.",
        model=engine,
        reward=FakeReward(),
        n=8,
        decide="every:6",
        max_new_tokens=24,
        seed=1,
    )
    assert result.usage.reread_tokens == 8  # each candidate reads the prompt's last token
    assert result.usage.unused_tokens == result.usage.num_preemptions == 0
    assert result.versions["openvino-genai"].startswith("2026.4")
    assert all(
        len(candidate.logprobs) == len(candidate.token_ids) for candidate in result.candidates
    )


def test_an_engine_that_is_gone_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    engine = tiny_engine.__wrapped__(30)
    prompt = engine.open(make_ids(40), SamplingParams(max_new_tokens=30, ignore_eos=True), 10**6)
    engine.add(prompt, range(3))
    engine.step()
    capfd.readouterr()
    del engine
    gc.collect()
    assert capfd.readouterr() == ("", "")


@given(params=EXTREME)
def test_every_value_that_is_allowed_is_taken(params: SamplingParams) -> None:
    """OpenVINO refuses what is 0 or 1 in float32, and that in a step which others share."""
    _generation_config(_Candidate((5,), params, seed=1), 3, frozenset({0})).validate()
