"""A Llama in plain torch, beside transformers' own: the same modules by the same names, and the
same operations in the same order, so the same logits to the last bit.

    twin = twin_of(model)           # around transformers' weights; None where it is no plain Llama
    again = Llama(twin.config, tensors)        # around those of a checkpoint, by their names

What it is for is a quick opening: transformers' modelling code takes longer to import than torch
itself. `loading` compares its logits with transformers' own before it takes its place.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.attention import Pass, group_attention


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
    """A causal LM whose attention is `group_attention`; float32, on a CPU.

    Args:
        config: its shape.
        tensors: its weights, by their names in a checkpoint. They are taken as they are.
    """

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.model = _Backbone(config, tensors)
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.lm_head = _linear(tensors, head)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_input_embeddings(self) -> nn.Embedding:
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
        hidden = self.model(input_ids, position_ids, kv)
        return SimpleNamespace(logits=self.lm_head(hidden[:, -logits_to_keep:]))


class _Backbone(nn.Module):
    def __init__(self, config: LlamaConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        weight = tensors["model.embed_tokens.weight"]
        self.embed_tokens = nn.Embedding(len(weight), weight.shape[1], _weight=weight, _freeze=True)
        self.layers = nn.ModuleList(
            _Layer(config, number, tensors) for number in range(config.num_hidden_layers)
        )
        self.norm = _Norm(tensors["model.norm.weight"], config.rms_norm_eps)
        places = torch.arange(0, config.head_dim, 2, dtype=torch.float)
        self.inv_freq = 1.0 / (config.rope_theta ** (places / config.head_dim))

    def forward(self, input_ids: Tensor, position_ids: Tensor, kv: Pass) -> Tensor:
        hidden = self.embed_tokens(input_ids)
        half = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat((half, half), dim=-1)[:, None]
        turns = angles.cos(), angles.sin()
        for layer in self.layers:
            hidden = layer(hidden, turns, kv)
        normed: Tensor = self.norm(hidden)
        return normed


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig, number: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        name, eps = f"model.layers.{number}", config.rms_norm_eps
        self.input_layernorm = _Norm(tensors[f"{name}.input_layernorm.weight"], eps)
        self.self_attn = _Attention(config, number, tensors)
        self.post_attention_layernorm = _Norm(
            tensors[f"{name}.post_attention_layernorm.weight"], eps
        )
        self.mlp = _Mlp(f"{name}.mlp", tensors)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], kv: Pass) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), turns, kv)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig, number: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        name = f"model.layers.{number}.self_attn"
        self.layer_idx, self.head_dim = number, config.head_dim
        self.scaling = config.head_dim**-0.5
        self.q_proj = _linear(tensors, f"{name}.q_proj")
        self.k_proj = _linear(tensors, f"{name}.k_proj")
        self.v_proj = _linear(tensors, f"{name}.v_proj")
        self.o_proj = _linear(tensors, f"{name}.o_proj")

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], kv: Pass) -> Tensor:
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden).view(shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended, _ = group_attention(
            self,
            _turned(query, turns),
            _turned(key, turns),
            value,
            None,
            kv=kv,
            scaling=self.scaling,
        )
        out: Tensor = self.o_proj(attended.reshape(*hidden.shape[:-1], -1))
        return out


class _Mlp(nn.Module):
    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.gate_proj = _linear(tensors, f"{name}.gate_proj")
        self.up_proj = _linear(tensors, f"{name}.up_proj")
        self.down_proj = _linear(tensors, f"{name}.down_proj")

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class _Norm(nn.Module):
    """The root mean square of each token's numbers made one, times a weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden * torch.rsqrt(variance + self.eps))


def _linear(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    rows, columns = weight.shape
    # Made without weights of its own, which would be drawn at random only to be thrown away.
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _turned(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on `[rows, heads, tokens, dim]`: pairs are a number of the first half and
    one of the second.
    """
    cos, sin = turns
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def twin_of(model: Any) -> Llama | None:
    """A Llama around the weights of a model of transformers; None where that is no plain Llama in
    float32 on a CPU.
    """
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
    if any(type(one) is not nn.Linear for one in _projections(model)):  # quantized, or adapted
        return None
    own = {name: getattr(config, name) for name in LlamaConfig.__slots__ if name != "rope_theta"}
    shape = LlamaConfig(**own, rope_theta=rope["rope_theta"])
    return Llama(shape, {name: one.detach() for name, one in model.state_dict().items()})


def _projections(model: Any) -> list[nn.Module]:
    return [one for name, one in model.named_modules() if name.endswith(("_proj", "lm_head"))]
