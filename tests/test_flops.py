"""The count of operations: against torch's own counter, against a loop over tokens, and for the
rewards.

The counter knows neither the CPU's fused attention nor grouped experts: what it watches must do
without them.
"""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from fakes import FLOPS, FakeEngine, FakeReward
from real import smollm2
from specrej import generate
from specrej.attention.layout import kv_numbers_of_config
from specrej.engines.torch.loading import wrap
from specrej.flops import AttentionFlops, ModelFlops, flops_of, flops_of_config, linear_flops
from specrej.hub import defaults
from specrej.rewards import as_reward
from specrej.rewards.relevance import FLOPS_PER_TOKEN, RelevanceReward
from specrej.types import SamplingParams
from tiny import (
    HONOURED,
    WINDOW,
    make_config,
    make_engine,
    make_ids,
    make_model,
    make_tokenizer,
    reference,
)

numbers = st.integers(0, 1000)
layers = st.builds(AttentionFlops, st.none() | st.integers(1, 60), st.integers(1, 99).map(float))
shapes = st.builds(
    ModelFlops,
    linear=st.integers(1, 10**9).map(float),
    head=st.integers(1, 10**9).map(float),
    attention=st.lists(layers, min_size=1, max_size=3).map(tuple),
    chunk=st.integers(1, 60),
)


CACHE = (
    "cache"
    if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters
    else "past_key_values"
)
"""What transformers calls its KV cache: renamed in 5.24."""


def plain(model: Any) -> Any:
    """A copy on transformers' own eager attention and eager experts."""
    fresh = reference(model)
    fresh.set_experts_implementation("eager")
    return fresh


def counted(model: Any, **inputs: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        output = model(**inputs)
    return counter.get_total_flops(), output


def transformers_prefill(model: Any, num_tokens: int) -> tuple[int, Any]:
    """Operations of reading a prompt in one pass, as transformers does it, and its output."""
    ids = torch.tensor([make_ids(num_tokens)], device=model.device)
    return counted(model, input_ids=ids, use_cache=True, logits_to_keep=1)


def transformers_decode(model: Any, num_prompt: int, num_answers: int, length: int) -> int:
    """Operations of `num_answers` answers of one length after a prompt, by transformers' KV
    cache."""
    _, output = transformers_prefill(model, num_prompt)
    cache, total = getattr(output, CACHE), 0
    cache.batch_repeat_interleave(num_answers)
    for _ in range(length - 1):
        ids = torch.full((num_answers, 1), 7, device=model.device)
        count, output = counted(model, input_ids=ids, use_cache=True, **{CACHE: cache})
        total += count
    return total


# Against torch's counter


@pytest.mark.parametrize("architecture", HONOURED)
def test_prefill_and_decode_are_what_transformers_computes(architecture: str) -> None:
    model = make_model(architecture)
    own = plain(model)
    flops = make_engine(model).flops
    assert flops.prefill(40) == pytest.approx(transformers_prefill(own, 40)[0], rel=0.005)
    if architecture == "deepseek_v3":
        # transformers caches latents, which every step expands anew; the engine caches keys and
        # values
        return
    # Transformers' masks leave windows to be computed in full as long as the prompt does not exceed
    # them.
    num_prompt = 40 if all(window is None for window, _ in flops.attention) else WINDOW - 6
    expected = transformers_decode(own, num_prompt, 3, 6)
    assert flops.decode(num_prompt, [6, 6, 6]) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "gemma3", "gpt2", "deepseek_v3", "mixtral"]
)
def test_the_engine_executes_what_is_counted(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a long prompt, windows, several answers, one of them rejected: on our own
    attention."""
    monkeypatch.setattr("specrej.engines.torch.passes.PREFILL_CHUNK", 16)
    monkeypatch.setattr("specrej.engines.torch.checking.PREFILL_CHUNK", 16)
    engine = wrap(plain(make_model(architecture, dtype=torch.float64)), make_tokenizer())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        prompt = engine.open(make_ids(37), SamplingParams(max_new_tokens=9, ignore_eos=True), 2**30)
    assert engine.flops.prefill(37) == pytest.approx(counter.get_total_flops(), rel=0.005)
    engine.add(prompt, range(3))
    with FlopCounterMode(display=False) as counter:
        for step in range(9):
            if step == 4:
                engine.drop(prompt, [1])
            engine.step()
    assert engine.flops.decode(37, [9, 4, 9]) == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.slow
def test_the_real_model() -> None:
    """Transformers' own has its shapes alone, which are all that the counter looks at."""
    config = transformers.AutoConfig.from_pretrained(defaults.locate("smollm2"))
    flops = smollm2().flops
    assert flops is not None
    make: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        own = make.from_config(config, attn_implementation="eager").eval()
    for num_tokens in (60, 500):
        assert flops.prefill(num_tokens) == pytest.approx(
            transformers_prefill(own, num_tokens)[0], rel=0.02
        )
    assert flops.decode(60, [8] * 4) == pytest.approx(transformers_decode(own, 60, 4, 8), rel=0.02)
    # A shape that everybody can multiply: 30 layers of 576, three KV heads of nine, 1,536 inside.
    assert flops.linear == 2 * 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert flops.head == 2 * 576 * 49152
    assert flops.attention == ((None, 30 * 4 * 9 * 64),)


def test_packed_weights_cost_what_they_cost_before() -> None:
    exact, packed = make_model("llama"), make_model("llama")
    assert wrap(packed, make_tokenizer(), weights="fp16").flops == make_engine(exact).flops


# Against a loop over tokens


def test_by_hand() -> None:
    flops = ModelFlops(
        linear=100, head=10, attention=(AttentionFlops(None, 1), AttentionFlops(4, 3)), chunk=2
    )
    # Chunks of two and one: two queries see two keys each, one sees three, in every layer; two
    # positions have logits.
    assert flops.prefill(3) == 300 + 2 * 10 + (2 * 2 + 1 * 3) * (1 + 3)
    # The first token was read for another prompt: one chunk of two, with one position that has
    # logits.
    assert flops.prefill(3, 1) == 200 + 10 + (2 * 3) * (1 + 3)
    # Three tokens, two of them fed: they see 4 and 5 positions, through the window 4 and 4.
    assert flops.decode(3, [3]) == 2 * 110 + (4 + 5) * 1 + (4 + 4) * 3


@given(shapes, numbers, st.lists(st.integers(0, 200), max_size=5))
def test_the_closed_form_is_the_sum_over_tokens(
    flops: ModelFlops, num_prompt: int, lengths: list[int]
) -> None:
    def of_token(position: int) -> float:
        return (
            flops.linear
            + flops.head
            + sum(min(w or position, position) * count for w, count in flops.attention)
        )

    each = [sum(of_token(num_prompt + i) for i in range(1, length)) for length in lengths]
    assert flops.decode_each(num_prompt, lengths).tolist() == pytest.approx(each)
    assert flops.decode(num_prompt, np.array(lengths)) == pytest.approx(sum(each))


@given(shapes, numbers)
def test_a_prompt_of_one_chunk_is_a_square(flops: ModelFlops, num_prompt: int) -> None:
    whole = ModelFlops(linear=flops.linear, head=flops.head, attention=flops.attention, chunk=1000)
    per_pair = sum(count for _, count in flops.attention)
    head = flops.head if num_prompt else 0
    assert whole.prefill(num_prompt) == pytest.approx(
        num_prompt * flops.linear + head + num_prompt**2 * per_pair
    )
    chunks = -(-num_prompt // flops.chunk)
    assert flops.prefill(num_prompt) <= whole.prefill(num_prompt) + max(chunks - 1, 0) * flops.head


@given(shapes, numbers)
def test_lengths_may_be_of_any_shape(flops: ModelFlops, num_prompt: int) -> None:
    lengths = np.arange(12).reshape(3, 4)
    each = flops.decode_each(num_prompt, lengths)
    assert each.shape == (3, 4)
    assert each[1, 2] == flops.decode(num_prompt, [6])


@given(shapes)
def test_json_and_back(flops: ModelFlops) -> None:
    assert ModelFlops.from_dict(json.loads(json.dumps(flops.to_dict()))) == flops


# Rows


@given(st.none() | st.floats(0, 1e9), numbers)
def test_a_row_has_the_three_parts(per_token: float | None, num_read: int) -> None:
    row = flops_of(FLOPS, 20, [3, 4], per_token, num_read)
    assert row["prefill"] == FLOPS.prefill(20)
    assert row["decode"] == FLOPS.decode(20, [3, 4])
    assert row["reward"] == (None if per_token is None else per_token * num_read)


def test_a_live_run_is_counted_by_what_the_engine_drew() -> None:
    engine, reward = FakeEngine(), FakeReward()
    result = generate("Hello", model=engine, reward=reward, n=8, max_new_tokens=40)
    lengths = [len(candidate.token_ids) for candidate in result.candidates]
    row = flops_of(
        engine.flops,
        result.usage.prompt_tokens,
        lengths,
        reward.flops_per_token,
        result.usage.reward_tokens,
    )
    assert (row["decode"] or 0) >= 110 * (engine.num_drawn - len(lengths)) > 0
    assert row["reward"] == 7 * result.usage.reward_tokens


def test_a_fork_costs_what_is_fed_behind_its_beginning() -> None:
    """A copy of 5 tokens that draws 3 more is fed the fifth and the next two."""
    row = flops_of(FLOPS, 20, [9, 8], None, 0, inherited=[0, 5])
    fed = [FLOPS.decode(20, [length + 1]) - FLOPS.decode(20, [length]) for length in (5, 6, 7)]
    assert row["decode"] == pytest.approx(FLOPS.decode(20, [9]) + sum(fed))


# Rewards


def tiny_classifier(architecture: str, **changes: Any) -> Any:
    make: Any = transformers.AutoModelForSequenceClassification
    return make.from_config(
        make_config(architecture, num_labels=1, **changes), attn_implementation="eager"
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
def test_a_classifier_costs_its_linear_layers(architecture: str) -> None:
    from specrej.rewards.classifier import ClassifierReward

    model = plain(tiny_classifier(architecture, pad_token_id=1))
    reward = ClassifierReward((model, make_tokenizer()))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(
            input_ids=torch.tensor([make_ids(1)]), attention_mask=torch.ones(1, 1, dtype=torch.long)
        )
    # Of one token, attention is one pair of a query and a key.
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 4 * config.num_attention_heads * head_dim * config.num_hidden_layers
    assert reward.flops_per_token == pytest.approx(counter.get_total_flops() - pair, rel=0.005)


def test_all_experts_count_where_the_config_does_not_say_how_many() -> None:
    class Experts(nn.Module):
        def __init__(self, **config: int) -> None:
            super().__init__()
            self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))
            self.weight = nn.Parameter(torch.zeros(4, 3, 5))

    def cost(experts: Any) -> float:
        return linear_flops(experts)

    assert cost(Experts()) == 2 * 4 * 3 * 5
    assert cost(Experts(num_experts_per_tok=1)) == 2 * 3 * 5


def test_what_rewards_say_of_themselves() -> None:
    assert as_reward("logprob").flops_per_token == 0.0
    assert as_reward(lambda prompt, texts: [0.0 for _ in texts]).flops_per_token is None


@pytest.mark.slow
def test_the_relevance_model_has_the_shape_that_is_told() -> None:
    reward = RelevanceReward()
    assert reward.flops_per_token == FLOPS_PER_TOKEN
    directory = defaults.locate("relevance")
    assert RelevanceReward(directory).flops_per_token is None
    matrices = [
        shape
        for shape in onnx_shapes(directory / "model.onnx")
        if len(shape) == 2 and 1 not in shape
    ]
    # Embeddings of 30,522 words, 512 positions and two segments are looked up; the pooler reads one
    # token.
    multiplied = [rows * columns for rows, columns in matrices if rows not in (30522, 512, 2)]
    assert 2 * (sum(multiplied) - 384 * 384) == FLOPS_PER_TOKEN


def onnx_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of all weights in an ONNX file, by the fields of its protocol buffer."""
    [graph] = [value for number, value in fields(memoryview(path.read_bytes())) if number == 7]
    weights = [value for number, value in fields(graph) if number == 5]
    return [tuple(value for number, value in fields(weight) if number == 1) for weight in weights]


def fields(message: Any) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte: int = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        size = {0: 0, 1: 8, 5: 4}.get(kind, -1)
        if kind == 0:
            found.append((number, varint()))
            continue
        size = varint() if size < 0 else size
        found.append((number, message[place : place + size]))
        place += size
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma2"])
def test_a_configuration_alone_tells_what_the_engine_counts(architecture: str) -> None:
    model = make_model(architecture)
    engine = make_engine(model)
    assert flops_of_config(model.config, engine.flops.chunk) == engine.flops
    assert kv_numbers_of_config(model.config) * 4 == engine.layout.bytes_per_token


def test_an_architecture_that_cannot_be_made_costs_what_nobody_knows() -> None:
    assert flops_of_config(SimpleNamespace(), 16) is None


# Memory


@pytest.mark.parametrize("architecture", [name for name in HONOURED if name != "deepseek_v3"])
def test_the_kv_of_a_token_is_what_transformers_cache_holds(architecture: str) -> None:
    model = make_model(architecture)
    num_tokens = WINDOW - 2  # beyond its window a layer's cache forgets
    _, output = transformers_prefill(plain(model), num_tokens)
    tensors = [
        tensor for layer in getattr(output, CACHE).layers for tensor in (layer.keys, layer.values)
    ]
    assert make_engine(model).layout.bytes_per_token * num_tokens == sum(
        tensor.nbytes for tensor in tensors
    )
