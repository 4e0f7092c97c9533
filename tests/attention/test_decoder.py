"""The layers of a Llama, written out, against transformers' own pass over the whole text."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from specrej.attention.attention import PrefillPass
from specrej.attention.decoder import Decoder, can_be_written_out
from specrej.attention.groups import Group
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.passes import forward
from tiny import WINDOW, full_logits, make_engine, make_ids, make_model, reference

WRITTEN_OUT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "another epsilon": ("llama", {"rms_norm_eps": 0.3}),
    "another activation": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "wide heads": ("llama", {"head_dim": 24}),
    "long texts": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, half of it in windows": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
}


def written(engine: TorchEngine, ids: list[int], num_first: int) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of a text in two chunks, the second with all positions."""
    group = Group(ids, 0, engine.layout, 1)
    device = torch.device("cpu")
    logits = []
    with torch.inference_mode():
        for start, stop in ((0, num_first), (num_first, len(ids))):
            positions = torch.arange(start, stop, device=device)[None]
            output = engine.model(
                input_ids=torch.tensor([ids[start:stop]]),
                position_ids=positions,
                use_cache=False,
                kv=PrefillPass(group, start),
            )
            logits.append(output.logits[0])
    return torch.cat(logits)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_logits_are_those_of_transformers(name: str) -> None:
    architecture, changes = WRITTEN_OUT[name]
    model = make_model(architecture, dtype=torch.float64, **changes)
    expected = reference(model)
    engine = make_engine(model)
    assert isinstance(engine.model.base_model, Decoder)
    ids = make_ids(3 * WINDOW)
    difference = written(engine, ids, WINDOW + 5) - full_logits(expected, ids)
    # Norms are float32 inside transformers, whatever the model is in.
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gemma2", "olmo3", "phi", "gpt2", "gpt_neox", "mixtral"])
def test_other_architectures_keep_their_own_layers(name: str) -> None:
    model = make_model(name)
    assert type(make_engine(model).model.base_model) is type(model.base_model)


# They have the parts of a Llama and compute something else: in every layer, in the last one only,
# at far positions only.
_ALIKE: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "granite": (
        transformers.GraniteConfig,
        transformers.GraniteForCausalLM,
        {"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "smollm3": (
        transformers.SmolLM3Config,
        transformers.SmolLM3ForCausalLM,
        {"no_rope_layers": [1, 0], "pad_token_id": None},
    ),
    "ministral3": (
        transformers.Ministral3Config,
        transformers.Ministral3ForCausalLM,
        {
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 16,
            },
        },
    ),
}


@pytest.mark.parametrize("name", _ALIKE)
def test_what_has_the_parts_of_a_llama_and_computes_something_else_keeps_its_layers(
    name: str,
) -> None:
    make_alike_config, make, changes = _ALIKE[name]
    common = {
        field: getattr(make_model("llama").config, field)
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    config = make_alike_config(
        **{**common, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1},
        **{"initializer_range": 0.25, "max_position_embeddings": 512, **changes},
    )
    torch.manual_seed(0)
    model = make(config).eval()
    assert can_be_written_out(model.base_model)
    expected = reference(model)
    engine = make_engine(model)
    assert not isinstance(engine.model.base_model, Decoder)
    ids = make_ids(40)
    assert torch.allclose(written(engine, ids, 4), full_logits(expected, ids), atol=1e-3)


def test_no_weight_is_there_twice() -> None:
    model = make_model("qwen3", dtype=torch.float64)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    backbone = model.base_model
    engine = make_engine(model)
    assert sum(parameter.numel() for parameter in engine.model.parameters()) == numbers
    assert not [module for module in backbone.modules() if isinstance(module, nn.Linear)]


def test_hidden_states_are_what_the_head_reads() -> None:
    engine = make_engine(make_model("llama", dtype=torch.float64))
    ids = make_ids(7)
    with torch.inference_mode():
        logits, hidden = forward(
            engine.model,
            torch.tensor([ids]),
            torch.arange(len(ids))[None],
            PrefillPass(Group(ids, 0, engine.layout, 1), 0),
        )
        assert torch.equal(engine.model.get_output_embeddings()(hidden), logits)
