"""The engine's log-probabilities against transformers' own eager attention over whole sequences, by
architecture.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from specrej.attention import groups
from specrej.attention.fused import Fused
from specrej.attention.layout import PREFILL_CHUNK
from specrej.engines.base import Token
from specrej.engines.torch import passes
from specrej.engines.torch.kernels import fused
from specrej.engines.torch.loading import wrap
from specrej.errors import ModelError
from specrej.types import SamplingParams
from tiny import (
    HONOURED,
    VOCABULARY,
    WINDOW,
    decode,
    full_logits,
    make_engine,
    make_ids,
    make_model,
    make_tokenizer,
    reference,
)

TOLERANCE = 1e-4
BUDGET = 2**24
EOS_IDS = list(range(0, VOCABULARY, 20))
"""A row ends with odds of roughly one in twenty at every token."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts take several chunks, answers several growths of their block."""
    monkeypatch.setattr(passes, "PREFILL_CHUNK", 16)
    monkeypatch.setattr(groups, "GRANULE", 8)


def largest_error(model: Any, prompt_ids: Sequence[int], tokens: Sequence[Token]) -> float:
    """Largest difference of one candidate's log-probabilities from those of one full pass."""
    ids = [token.token_id for token in tokens]
    logits = full_logits(model, [*prompt_ids, *ids])[len(prompt_ids) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    return (expected - torch.tensor([token.logprob for token in tokens])).abs().max().item()


# Heads of a size that the compiled attention takes.
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama of 16": ("llama", {"head_dim": 16}),
    "llama of 64, with biases": ("llama", {"head_dim": 64, "attention_bias": True}),
    "mistral of 32, in a window": ("mistral", {"head_dim": 32}),
    "mistral of 16, a window of 3": ("mistral", {"head_dim": 16, "sliding_window": 3}),
    "qwen3 of 64": ("qwen3", {"head_dim": 64}),
    "gemma2 of 32": ("gemma2", {"head_dim": 32}),
    "gemma2 of 32, without a softcap": ("gemma2", {"head_dim": 32, "attn_logit_softcapping": None}),
    "gpt2 of 16": ("gpt2", {"hidden_size": 64}),
    "phi of 16": ("phi", {"hidden_size": 64}),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_heads_are_attended_to_by_what_is_compiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused(torch.device("cpu"), torch.float32) is None:
        pytest.skip("nothing compiles it here")
    calls: list[int] = []
    attend = Fused.attend

    def note(self: Fused, group: groups.Group, layer: int, *given: Any) -> torch.Tensor:
        calls.append(layer)
        return attend(self, group, layer, *given)

    monkeypatch.setattr(Fused, "attend", note)
    architecture, changes = WIDE[name]
    model = make_model(architecture, **changes)
    check_logprobs(name, model)
    num_layers = 0 if name == "gemma2 of 32" else model.config.num_hidden_layers
    assert set(calls) == {*range(num_layers)}


@pytest.mark.parametrize("name", HONOURED)
def test_logprobs_of_drawn_tokens_are_those_of_a_full_pass(name: str) -> None:
    check_logprobs(name, make_model(name))


def check_logprobs(name: str, model: Any) -> None:
    expected = reference(model)
    engine = make_engine(model, EOS_IDS)
    prompts = [make_ids(41, seed=1), make_ids(2 * WINDOW + 3, seed=2)]
    sampling = SamplingParams(max_new_tokens=40, top_k=0, seed=5)
    first, second = (engine.open(ids, sampling, BUDGET) for ids in prompts)

    # One prompt alone, then both at different lengths; two rows are dropped in the middle.
    engine.add(first, range(10))
    answers = decode(engine, 3)
    engine.add(second, range(12))
    decode(engine, 4, answers)
    live = [
        key
        for key, tokens in answers.items()
        if key[0] == second and tokens[-1].finish_reason is None
    ]
    dropped = live[1:3]
    engine.drop(second, [index for _, index in dropped])
    decode(engine, None, answers)
    # A second wave of the first prompt, now that all of its first have ended.
    engine.add(first, range(10, 14))
    decode(engine, None, answers)

    assert len(answers) == 26
    errors = {
        key: largest_error(expected, prompts[key[0] == second], tokens)
        for key, tokens in answers.items()
    }
    print(
        f"{name}: largest error {max(errors.values()):.1e} nats over "
        f"{sum(map(len, answers.values()))} tokens"
    )
    assert max(errors.values()) < TOLERANCE, errors
    # The run did exercise what it is meant to.
    lengths = {key: len(tokens) for key, tokens in answers.items()}
    assert [lengths[key] for key in dropped] == [4, 4]
    assert len(set(lengths.values())) >= 5
    assert max(lengths.values()) > 2 * groups.GRANULE
    assert sum(tokens[-1].finish_reason == "eos" for tokens in answers.values()) >= 5
    for token in itertools.chain.from_iterable(answers.values()):
        assert (token.token_id in EOS_IDS) == (token.finish_reason == "eos")


@pytest.mark.parametrize("name", HONOURED)
def test_the_most_likely_token_is_that_of_a_full_pass(name: str) -> None:
    model = make_model(name)
    expected = reference(model)
    engine = make_engine(model)
    prompt_ids = make_ids(33)
    handle = engine.open(prompt_ids, SamplingParams(max_new_tokens=30, top_k=1), BUDGET)
    engine.add(handle, range(2))
    answers = decode(engine)
    ids = answers.ids(handle, 0)
    assert ids == answers.ids(handle, 1)
    assert len(ids) == 30
    logits = full_logits(expected, prompt_ids + ids)[len(prompt_ids) - 1 : -1]
    # Where the two best tokens are as close as rounding, either is right.
    margin = logits.amax(-1) - logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert margin.max() < TOLERANCE


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 15, 16, 17, 32, 33])
def test_prompts_of_every_length_around_the_chunk(num_prompt_tokens: int) -> None:
    model = make_model("mistral", sliding_window=5)
    expected = reference(model)
    engine = make_engine(model)
    prompt_ids = make_ids(num_prompt_tokens)
    handle = engine.open(prompt_ids, SamplingParams(max_new_tokens=20), BUDGET)
    engine.add(handle, [3, 4])
    answers = decode(engine)
    assert (
        max(largest_error(expected, prompt_ids, tokens) for tokens in answers.values()) < TOLERANCE
    )


def test_chunks_and_granules_of_the_default_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = make_model("gemma2", max_position_embeddings=2048)
    expected = reference(model)
    engine = make_engine(model)
    prompt_ids = make_ids(PREFILL_CHUNK + 30)
    handle = engine.open(prompt_ids, SamplingParams(max_new_tokens=groups.GRANULE + 10), BUDGET)
    engine.add(handle, range(2))
    answers = decode(engine)
    assert (
        max(largest_error(expected, prompt_ids, tokens) for tokens in answers.values()) < TOLERANCE
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_wrong_attention_would_show(name: str) -> None:
    """The comparison above has teeth: one earlier token moves these logits by a thousand
    tolerances."""
    model = make_model(name)
    prompt_ids = make_ids(40)
    changed = [*prompt_ids]
    changed[-6] = (changed[-6] + 1) % VOCABULARY
    difference = full_logits(model, prompt_ids)[-1] - full_logits(model, changed)[-1]
    assert difference.abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gpt_oss", "GptOssAttention .*s_aux"),
        ("llama4", "Llama4ForCausalLM .*'chunked_attention'"),
        ("qwen3_next", "Qwen3NextForCausalLM .*'linear_attention'"),
        ("mamba", "MambaForCausalLM .*'linear_attention'"),
        ("bloom", "BloomForCausalLM"),
        ("mpt", "MptForCausalLM"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    name: str, missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(name)
    capfd.readouterr()
    with pytest.raises(ModelError, match=missing):
        wrap(model, make_tokenizer(), weights="fp32")
    assert capfd.readouterr() == ("", "")


def test_an_encoder_is_refused() -> None:
    model = BertLMHeadModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )
    with pytest.raises(ModelError, match="BertLMHeadModel is not causal"):
        wrap(model, make_tokenizer())


def test_a_model_that_ignores_the_position_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason, logits other than transformers' own are refused before an engine is
    handed out."""
    model = make_model("llama")
    original = model.model.rotary_emb.forward
    monkeypatch.setattr(
        model.model.rotary_emb,
        "forward",
        lambda x, position_ids: original(x, position_ids - position_ids.min()),
    )
    with pytest.raises(ModelError, match=r"LlamaForCausalLM .*differ from transformers' own"):
        wrap(model, make_tokenizer())


def test_an_attention_that_asks_for_more_is_refused_by_the_name_of_what_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("llama")
    attention = model.model.layers[1].self_attn
    original = attention.forward
    monkeypatch.setattr(
        attention, "forward", lambda *args, **given: original(*args, position_bias=1.0, **given)
    )
    with pytest.raises(ModelError, match=r"LlamaAttention .*position_bias"):
        wrap(model, make_tokenizer())


def test_a_window_that_attention_is_not_told_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is shorter than real windows, so its logits cannot tell."""
    model = make_model("gemma3", sliding_window=256)
    for layer in model.model.layers:
        monkeypatch.setattr(layer.self_attn, "sliding_window", None)
    with pytest.raises(ModelError, match=r"layer 0 of Gemma3ForCausalLM .*window"):
        wrap(model, make_tokenizer())
