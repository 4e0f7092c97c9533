"""Prompts that begin alike: read once, held once, and what is drawn from them is what each gives
alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import largest_error
from test_groups import Shortage
from torch import Tensor

from meter import Meter
from specrej.attention import groups
from specrej.attention.prefixes import LEAST_TOKENS, longest_prefix
from specrej.engines.torch import passes
from specrej.engines.torch.engine import TorchEngine
from specrej.errors import DeviceMemoryError
from specrej.types import SamplingParams
from tiny import (
    HONOURED,
    VOCABULARY,
    WINDOW,
    Answers,
    decode,
    make_engine,
    make_ids,
    make_model,
    reference,
)

BUDGET = 2**24
EOS_IDS = list(range(0, VOCABULARY, 40))
SAMPLING = SamplingParams(max_new_tokens=30, top_k=0, seed=3)
HEAD = make_ids(50, seed=9)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PREFILL_CHUNK", 16)
    monkeypatch.setattr(groups, "GRANULE", 8)


@pytest.fixture(scope="module")
def llama() -> TorchEngine:
    """Whoever uses it closes its prompts."""
    return make_engine(make_model("llama"))


def fed_tokens(engine: TorchEngine) -> list[int]:
    """All tokens that go through the model from now on."""
    fed: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Tensor]) -> None:
        fed.extend(given["input_ids"].flatten().tolist())

    engine.model.register_forward_pre_hook(note, with_kwargs=True)
    return fed


def token_bytes(engine: TorchEngine) -> int:
    return engine.layout.bytes_per_token


@pytest.mark.parametrize("name", HONOURED)
def test_logprobs_behind_a_shared_prefix_are_those_of_a_full_pass(name: str) -> None:
    """The first prompt is divided while it is decoded; windows begin in what is shared, behind
    it and in the answer."""
    model = make_model(name)
    expected = reference(model)
    engine = make_engine(model)
    tails = [make_ids(25, seed=1), make_ids(3, seed=2), make_ids(WINDOW + 5, seed=3)]
    prompts = [
        *(HEAD + tail for tail in tails),
        HEAD[:31] + tails[0],
        HEAD + tails[0] + tails[1],
        HEAD + tails[0],
    ]
    fed, answers, handles = fed_tokens(engine), Answers(), []
    for ids in prompts:
        handles.append(engine.open(ids, SAMPLING, BUDGET))
        engine.add(handles[-1], range(3))
        decode(engine, 3, answers)
    decode(engine, None, answers)
    answered = sum(len(tokens) - 1 for tokens in answers.values())
    # What is new of each prompt; a prompt that goes on from the whole of another reads that one's
    # last token again.
    assert len(fed) - answered == 75 + 3 + (WINDOW + 5) + 25 + 4 + 1
    errors = [
        largest_error(expected, prompts[handles.index(key[0])], tokens)
        for key, tokens in answers.items()
    ]
    assert max(errors) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_answers_are_those_of_each_prompt_alone(name: str) -> None:
    """In float64, token by token, whoever is closed on the way."""
    engine = make_engine(make_model(name, dtype=torch.float64), EOS_IDS)
    prompts = [HEAD[:length] + make_ids(20, seed=length) for length in (50, 20, 50, 35)]
    alone = []
    for ids in prompts:
        prompt = engine.open(ids, SAMPLING, BUDGET)
        engine.add(prompt, range(4))
        alone.append(decode(engine).of(prompt))
        engine.close(prompt)
    answers, handles = Answers(), []
    for ids in prompts:
        handles.append(engine.open(ids, SAMPLING, BUDGET))
        engine.add(handles[-1], range(4))
        decode(engine, 3, answers)
    engine.close(handles[0])
    decode(engine, None, answers)
    assert [answers.of(handle) for handle in handles[1:]] == alone[1:]


def test_what_prompts_have_in_common_is_read_once_and_held_once(llama: TorchEngine) -> None:
    prompts = [make_ids(200) + make_ids(20, seed=seed) for seed in (1, 2, 3, 4)]
    fed = fed_tokens(llama)
    with Meter() as meter:
        handles = [llama.open(ids, SAMPLING, BUDGET) for ids in prompts]
        assert fed == [*prompts[0], *prompts[1][200:], *prompts[2][200:], *prompts[3][200:]]
        assert meter.block_bytes() == (200 + 4 * 20) * token_bytes(llama)
        for handle in handles[:-1]:
            llama.close(handle)
        assert meter.block_bytes() == 220 * token_bytes(llama), (
            "no cache beyond the prompts that are open"
        )
        llama.close(handles[-1])
        assert meter.all_bytes() == 0
        fed.clear()
        llama.close(llama.open(prompts[0], SAMPLING, BUDGET))
        assert fed == prompts[0]


@pytest.mark.parametrize(
    ("num_common", "num_read"),
    [(0, 60), (LEAST_TOKENS - 1, 60), (LEAST_TOKENS, 60 - LEAST_TOKENS), (60, 1)],
)
def test_how_much_must_be_common(llama: TorchEngine, num_common: int, num_read: int) -> None:
    first = make_ids(60)
    second = first[:num_common] + [(token_id + 1) % VOCABULARY for token_id in first[num_common:]]
    handle = llama.open(first, SAMPLING, BUDGET)
    fed = fed_tokens(llama)
    other = llama.open(second, SAMPLING, BUDGET)
    assert fed == second[-num_read:]
    llama.close(handle)
    llama.close(other)


def test_a_few_tokens_more_are_read_again(llama: TorchEngine) -> None:
    """A part costs something in every step, so it is not divided for a coincidence."""
    head = make_ids(40)
    first, second, third = (head + [number] * 20 for number in (50, 60, 60))
    third[-10:] = [70] * 10
    handles = [llama.open(ids, SAMPLING, BUDGET) for ids in (first, second)]
    fed = fed_tokens(llama)
    handles.append(llama.open(third, SAMPLING, BUDGET))
    assert fed == third[40:]
    for handle in handles:
        llama.close(handle)


def test_a_long_prompt_is_not_divided_where_the_copy_would_not_fit(llama: TorchEngine) -> None:
    """One of four tensors of the long prompt is copied at a time: as much as the KV of 50
    tokens."""
    handle = llama.open(make_ids(200), SAMPLING, BUDGET)
    fed = fed_tokens(llama)
    for num_tokens, num_read in ((49, 49), (50, 1)):
        before = llama.demand(handle).now
        with Meter() as meter:
            other = llama.open(make_ids(200)[:num_tokens], SAMPLING, BUDGET)
            assert meter.peak_bytes <= before + num_tokens * token_bytes(llama)
            assert len(fed) == num_read
            fed.clear()
        llama.close(other)
    llama.close(handle)


def test_the_younger_answers_for_what_is_shared(llama: TorchEngine) -> None:
    """Decisions see a prompt as if it were alone; a pool sees who answers for what."""
    prompts = [HEAD + make_ids(10, seed=seed) for seed in (1, 2, 3)]
    first = llama.open(prompts[0], SAMPLING, BUDGET)
    alone = llama.memory(first), llama.demand(first)
    second, third = (llama.open(ids, SAMPLING, BUDGET) for ids in prompts[1:])
    shared = 50 * token_bytes(llama)
    own = 10 * token_bytes(llama)
    assert [llama.memory(handle) for handle in (first, second, third)] == [alone[0]] * 3
    assert [llama.demand(handle) for handle in (first, second, third)] == [
        (own, own, own, shared)
    ] * 2 + [alone[1]]
    llama.close(third)
    assert [llama.demand(handle) for handle in (first, second)] == [
        (own, own, own, shared),
        alone[1],
    ]
    llama.close(second)
    assert llama.demand(first) == alone[1]
    llama.close(first)


BLOCKS = {letter: make_ids(20, seed=ord(letter)) for letter in "ab"}


def held_by(engine: TorchEngine, handles: list[int]) -> int:
    """Bytes of all tensors of these prompts, each storage once."""
    held = {}
    for handle in handles:
        group = engine._runs[handle].group
        parts = [
            tensor for part in group.parts() for tensor in (*part.prompt_keys, *part.prompt_values)
        ]
        for tensor in (*parts, *group.keys, *group.values):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(held.values())


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_demands_bound_what_is_measured(name: str, data: st.DataObject) -> None:
    """Prompts of blocks that they often have in common, opened, stepped, dropped from and closed
    in any order."""
    engine = make_engine(make_model(name), EOS_IDS)
    prompts: dict[int, list[int]] = {}
    reserved = 0
    with Meter() as meter:
        for number in range(12):
            meter.peak_bytes = 0
            moves = ["open", "open", *(["step", "step", "drop", "close"] if prompts else [])]
            match data.draw(st.sampled_from(moves)):
                case "open":
                    letters = data.draw(st.lists(st.sampled_from("ab"), min_size=2, max_size=5))
                    ids = [
                        *(token_id for letter in letters for token_id in BLOCKS[letter]),
                        number,
                        number,
                    ]
                    reserved += engine.kv_bytes(
                        len(ids), 1, 2
                    )  # what a pool asks for before it lets a prompt begin
                    handle = engine.open(ids, SAMPLING, engine.kv_bytes(len(ids), 4, 30))
                    engine.add(handle, range(4))
                    prompts[handle] = ids
                case "step":
                    limits = {
                        handle: data.draw(
                            st.integers(engine.demand(handle).least, engine.demand(handle).wanted)
                        )
                        for handle in data.draw(st.sets(st.sampled_from(sorted(prompts))))
                    }
                    reserved += sum(
                        limit - engine.demand(handle).now for handle, limit in limits.items()
                    )
                    engine.step(limits)
                case "drop":
                    engine.drop(data.draw(st.sampled_from(sorted(prompts))), [0, 1])
                case "close":
                    handle = data.draw(st.sampled_from(sorted(prompts)))
                    engine.close(handle)
                    del prompts[handle]
            assert meter.peak_bytes <= reserved
            demands = [engine.demand(handle).now for handle in prompts]
            reserved = sum(demands)
            for oldest in range(len(prompts)):
                assert held_by(engine, list(prompts)[oldest:]) <= sum(demands[oldest:])
            # The KV of prompts is that of their distinct beginnings, each once.
            beginnings = {
                tuple(ids[:stop]) for ids in prompts.values() for stop in range(1, len(ids) + 1)
            }
            rows = sum(
                tensor.nbytes
                for handle in prompts
                for tensor in (*engine._runs[handle].group.keys, *engine._runs[handle].group.values)
            )
            assert meter.block_bytes() == len(beginnings) * token_bytes(engine) + rows
        for handle in data.draw(st.permutations(list(prompts))):
            engine.close(handle)
        assert meter.all_bytes() == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 9, 20])
def test_opening_that_ran_out_of_memory_leaves_the_others_as_they_were(number: int) -> None:
    """Whichever operator fails: the first eight divide a prompt of two layers, keys and values."""
    prompts = [HEAD + make_ids(30, seed=seed) for seed in (1, 2)]

    def run(*, is_disturbed: bool) -> list[dict[int, list[int]]]:
        engine = make_engine(make_model("llama", dtype=torch.float64))
        with Meter() as meter:
            first = engine.open(prompts[0], SAMPLING, BUDGET)
            engine.add(first, range(3))
            answers = decode(engine, 5)
            before = engine.memory(first), engine.demand(first), meter.block_bytes()
            if is_disturbed:
                with (
                    pytest.raises(DeviceMemoryError),
                    Shortage(number, torch.OutOfMemoryError("full")),
                ):
                    engine.open(prompts[1], SAMPLING, BUDGET)
                assert (engine.memory(first), engine.demand(first), meter.block_bytes()) == before
            decode(engine, 1, answers)
            second = engine.open(prompts[1], SAMPLING, BUDGET)
            assert meter.block_bytes() <= engine.demand(first).now + engine.demand(second).now
            engine.add(second, range(3))
            decode(engine, None, answers)
            engine.close(first)
            engine.close(second)
            assert meter.block_bytes() == 0
        return [answers.of(first), answers.of(second)]

    assert run(is_disturbed=True) == run(is_disturbed=False)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_longest_prefix(left: list[int], right: list[int]) -> None:
    length = longest_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
