"""A Llama from the files of a directory, without transformers' modelling code, which takes longer
to import than torch itself.

    shape = shape_of(model)         # of a model of transformers; None where that is no plain Llama
    again = Llama(shape, tensors)   # around the weights of a checkpoint, by their names

Its layers are those of `specrej.attention.decoder`, as they are in the model that transformers
opened and whose logits were compared. So both give the same, to the last bit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.attention import Pass
from specrej.attention.decoder import Decoder
from specrej.attention.groups import Scoring
from specrej.engines.torch.kernels import fused


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """The shape of a Llama, by transformers' names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool

    def get_text_config(self) -> Self:
        """Itself, as of a configuration of transformers."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return asdict(self)


class Llama(nn.Module):
    """A causal LM in float32, on a CPU.

    Args:
        config: its shape.
        tensors: its weights, by their names in a checkpoint.

    Raises:
        KeyError: one is missing.
    """

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        scoring = Scoring(scaling=config.head_dim**-0.5, window=None, softcap=None)
        layers = range(config.num_hidden_layers)
        self.model = Decoder(
            _parts(config, tensors),
            dict.fromkeys(layers, scoring),
            fused(self.device, self.dtype),
            is_trial=False,
        )
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.lm_head = _linear(tensors, head)

    def get_input_embeddings(self) -> Any:
        """What tokens are looked up in."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """What gives the logits."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        kv: Pass,
        logits_to_keep: int = 0,
        use_cache: bool = False,
    ) -> SimpleNamespace:
        """Logits `[rows, tokens, vocabulary]` of the last `logits_to_keep` tokens of each row; 0 is
        all of them. `use_cache` is for transformers' models; `kv` is where keys and values go.
        """
        hidden = self.model.hidden_states(input_ids, position_ids, kv)
        return SimpleNamespace(logits=self.lm_head(hidden[:, -logits_to_keep:]))


class Rotary(nn.Module):
    """Cosines and sines of positions, in the order of operations that transformers has."""

    def __init__(self, theta: float, dim: int) -> None:
        super().__init__()
        self._frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both `[rows, tokens, dim]`, for positions `[rows, tokens]`."""
        half = position_ids[..., None].float() * self._frequencies
        angles = torch.cat((half, half), dim=-1)
        return angles.cos(), angles.sin()


def shape_of(model: Any) -> LlamaConfig | None:
    """The shape of a model of transformers; None where it is no plain Llama in float32 on a CPU."""
    kind = type(model)
    if (kind.__module__, kind.__qualname__) != (
        "transformers.models.llama.modeling_llama",
        "LlamaForCausalLM",
    ):
        return None
    config, is_plain = model.config, model.device.type == "cpu" and model.dtype == torch.float32
    rope = config.rope_parameters
    if not is_plain or rope["rope_type"] != "default" or config.hidden_act != "silu":
        return None
    own = {name: getattr(config, name) for name in LlamaConfig.__slots__ if name != "rope_theta"}
    return LlamaConfig(**own, rope_theta=rope["rope_theta"])


def _parts(config: LlamaConfig, tensors: Mapping[str, Tensor]) -> SimpleNamespace:
    """What `Decoder` takes over, by transformers' names."""
    embeddings = tensors["model.embed_tokens.weight"]
    return SimpleNamespace(
        config=config,
        embed_tokens=nn.Embedding(
            len(embeddings), embeddings.shape[1], _weight=embeddings, _freeze=True
        ),
        rotary_emb=Rotary(config.rope_theta, config.head_dim),
        norm=_norm(config, tensors, "model.norm"),
        layers=[
            _layer(config, tensors, f"model.layers.{number}")
            for number in range(config.num_hidden_layers)
        ],
    )


def _layer(config: LlamaConfig, tensors: Mapping[str, Tensor], name: str) -> SimpleNamespace:
    attention = {f"{one}_proj": _linear(tensors, f"{name}.self_attn.{one}_proj") for one in "qkvo"}
    mlp = {
        f"{one}_proj": _linear(tensors, f"{name}.mlp.{one}_proj") for one in ("gate", "up", "down")
    }
    return SimpleNamespace(
        self_attn=SimpleNamespace(head_dim=config.head_dim, **attention),
        mlp=SimpleNamespace(act_fn=functional.silu, **mlp),
        input_layernorm=_norm(config, tensors, f"{name}.input_layernorm"),
        post_attention_layernorm=_norm(config, tensors, f"{name}.post_attention_layernorm"),
    )


def _norm(config: LlamaConfig, tensors: Mapping[str, Tensor], name: str) -> SimpleNamespace:
    return SimpleNamespace(weight=tensors[f"{name}.weight"], variance_epsilon=config.rms_norm_eps)


def _linear(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    rows, columns = weight.shape
    # Made without weights of its own, which would be drawn at random only to be thrown away.
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
