"""A Llama from files computes what the one that transformers opened does, to the last bit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.attention.attention import PrefillPass
from specrej.attention.groups import Group
from specrej.attention.layout import KvLayout
from specrej.engines.torch.checking import check, set_up
from specrej.engines.torch.llama import Llama, shape_of
from tiny import CHAT_TEMPLATE, full_logits, make_ids, make_model, make_tokenizer


@torch.inference_mode()
def logits_of(model: Any, ids: list[int], start: int = 0) -> torch.Tensor:
    """Of a prompt that is read in two pieces."""
    group = Group(ids, 0, KvLayout(0, 0, 16), 1)
    pieces = []
    for first, last in ((0, start), (start, len(ids))):
        if first < last:
            out = model(
                input_ids=torch.tensor([ids[first:last]]),
                position_ids=torch.arange(first, last)[None],
                use_cache=False,
                kv=PrefillPass(group, first),
            )
            pieces.append(out.logits[0])
    return torch.cat(pieces)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    heads=st.sampled_from([(4, 2), (4, 4), (4, 1), (2, 1)]),
    head_dim=st.sampled_from([8, 16, None]),
    theta=st.sampled_from([10_000.0, 1e6]),
    start=st.integers(0, 11),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_logits_are_those_of_transformers(
    seed: int,
    heads: tuple[int, int],
    head_dim: int | None,
    theta: float,
    start: int,
    flags: tuple[bool, bool, bool],
) -> None:
    model = make_model(
        "llama",
        seed=seed,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=flags[0],
        attention_bias=flags[1],
        mlp_bias=flags[2],
    )
    ids = make_ids(12, seed=seed)
    own = full_logits(model, ids)
    shape = shape_of(model)
    assert shape is not None
    again = Llama(shape, {name: one.clone() for name, one in model.state_dict().items()})
    opened = check(model, make_tokenizer(CHAT_TEMPLATE))
    assert opened.scoring
    set_up(model, opened)
    assert torch.equal(logits_of(again, ids, start), logits_of(model, ids, start))
    torch.testing.assert_close(logits_of(again, ids, start), own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("llama", {"dtype": torch.bfloat16}),
        ("mistral", {}),
        ("qwen3", {}),
    ],
)
def test_what_is_no_plain_llama_has_no_shape(name: str, changes: dict[str, Any]) -> None:
    assert shape_of(make_model(name, **changes)) is None
