"""The layers of a Llama, written out: what transformers computes, in a third of the operations.

    decoder = Decoder(model.model, scoring)       # of Llama, Mistral, Qwen 2 or Qwen 3
    model.model = decoder                         # model(input_ids=ids, position_ids=..., kv=kv)

Between its matrix products a step is many short operations, and most take longer to begin than to
compute. So queries, keys and values come from one product, as do gate and up. Residuals are added
in place. Positions are turned by one complex product: the dimensions of a head stand so that the
two that turn together are neighbours. Queries and keys are both ordered so, and scores are sums
over them, so nothing else sees the order.

Whoever puts it in a model compares the two first (`loading`): structure alone is no proof.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.attention import Pass
from specrej.attention.fused import Fused
from specrej.attention.groups import Scoring

_BACKBONE = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_SILUS = {"SiLU", "SiLUActivation"}


def can_be_written_out(backbone: nn.Module) -> bool:
    """Whether these are the parts of a Llama, in a precision that complex numbers have."""
    if _names(backbone) != _BACKBONE or not len(cast("nn.ModuleList", backbone.layers)):
        return False
    layers: Any = backbone.layers
    dtypes = {parameter.dtype for parameter in backbone.parameters()}
    return (
        len(dtypes) == 1
        and dtypes <= {torch.float32, torch.float64}
        and all(
            _names(layer) == _LAYER
            and _names(layer.self_attn) - _HEAD_NORMS == _ATTENTION
            and _names(layer.mlp) == _MLP
            and all(type(part) is nn.Linear for part in _linears(layer))
            for layer in layers
        )
    )


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _linears(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        *(getattr(attention, name) for name in sorted(_ATTENTION)),
        *(getattr(mlp, name) for name in sorted(_MLP - {"act_fn"})),
    ]


class Decoder(nn.Module):
    """Stands in for a backbone of transformers, on the CPU and while nothing is trained.

    Args:
        backbone: its layers are taken over one by one, so that no more than one of them is there
            twice.
        scoring: how each layer turns queries and keys into scores.
        fused: runs what is not a matrix product, in float32; None leaves it to torch.
        is_trial: leave the backbone whole; its layers are there twice then.
    """

    def __init__(
        self,
        backbone: Any,
        scoring: Mapping[int, Scoring],
        fused: Fused | None,
        *,
        is_trial: bool,
    ) -> None:
        super().__init__()
        self.config = backbone.config
        self.embed_tokens, self.norm = backbone.embed_tokens, _Norm(backbone.norm, fused)
        self.rotary_emb = backbone.rotary_emb
        self.layers = nn.ModuleList()
        for number, layer in enumerate(backbone.layers):
            self.layers.append(_Layer(layer, number, scoring[number], fused))
            if not is_trial:
                backbone.layers[number] = nn.Identity()

    def forward(self, input_ids: Tensor, position_ids: Tensor, kv: Pass, **_: Any) -> Any:
        """What a backbone of transformers returns: see `hidden_states`."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        hidden: Any = self.hidden_states(input_ids, position_ids, kv)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor, kv: Pass) -> Tensor:
        """Of tokens `[batch, tokens]`, whose keys and values go where `kv` says."""
        hidden: Tensor = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(hidden, position_ids)
        half = cos.shape[-1] // 2
        turns = torch.complex(cos[..., :half].contiguous(), sin[..., :half].contiguous())
        turns = turns[:, :, None]  # [batch, tokens, heads, pairs]
        added = None
        for layer in self.layers:
            added = layer(hidden, added, turns, kv)
        normed: Tensor = self.norm(hidden, added)
        return normed


class _Layer(nn.Module):
    def __init__(self, layer: Any, number: int, scoring: Scoring, fused: Fused | None) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._number, self._scoring, self._fused = number, scoring, fused
        self._dim = attention.head_dim
        order = torch.arange(self._dim).view(2, -1).t().flatten()
        self.qkv = _joined(
            [attention.q_proj, attention.k_proj, attention.v_proj], [order, order, None]
        )
        self._num_heads = attention.q_proj.out_features // self._dim
        self._num_kv_heads = attention.k_proj.out_features // self._dim
        self.out = attention.o_proj
        has_norms = hasattr(attention, "q_norm")
        self.q_norm = _Norm(attention.q_norm, None, order) if has_norms else None
        self.k_norm = _Norm(attention.k_norm, None, order) if has_norms else None
        self.gate_up = _joined([mlp.gate_proj, mlp.up_proj], [None, None])
        self.down, self.act = mlp.down_proj, mlp.act_fn
        self._is_silu = self.act is functional.silu or type(self.act).__name__ in _SILUS
        self.before, self.between = (
            _Norm(layer.input_layernorm, fused),
            _Norm(layer.post_attention_layernorm, fused),
        )

    def forward(self, hidden: Tensor, added: Tensor | None, turns: Tensor, kv: Pass) -> Tensor:
        """Add to the hidden states, in place, what the layer before returned, then what attention
        gives. What is left to be added is returned: the next norm does it.
        """
        batch, tokens, _ = hidden.shape
        heads = self.qkv(self.before(hidden, added)).view(batch, tokens, -1, self._dim)
        sizes = (self._num_heads, self._num_kv_heads, self._num_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys, values = heads.split(sizes, 2)
            heads = torch.cat((self.q_norm(queries), self.k_norm(keys), values), 2)
        self._turn(heads, turns)
        query, key, value = heads.transpose(1, 2).split(sizes, 1)
        seen = kv.attend(self._number, query, key, value, self._scoring)
        out = self.out(seen.reshape(batch, tokens, -1))
        left: Tensor = self.down(self._gate(self.gate_up(self.between(hidden, out))))
        return left

    def _turn(self, heads: Tensor, turns: Tensor) -> None:
        num_turned = self._num_heads + self._num_kv_heads
        if self._fused is not None:
            self._fused.turn(heads, num_turned, turns)
        else:
            pairs = heads[:, :, :num_turned].view(*heads.shape[:2], num_turned, -1, 2)
            torch.view_as_complex(pairs).mul_(turns)

    def _gate(self, gate_up: Tensor) -> Tensor:
        if self._fused is not None and self._is_silu:
            return self._fused.gate(gate_up)
        gate, up = gate_up.chunk(2, -1)
        gated: Tensor = self.act(gate).mul_(up)
        return gated


class _Norm(nn.Module):
    """The root mean square of each row becomes 1, in half the time of `functional.rms_norm`."""

    def __init__(self, norm: Any, fused: Fused | None, order: Tensor | None = None) -> None:
        super().__init__()
        weight = norm.weight.detach()
        weight = weight if order is None else weight[order]
        # x / sqrt(mean(x^2) + eps) = x * sqrt(dim) / hypot(|x|, sqrt(dim * eps))
        self.weight = nn.Parameter(weight * len(weight) ** 0.5, requires_grad=False)
        least = (len(weight) * norm.variance_epsilon) ** 0.5
        self._least, self._least_number = weight.new_tensor(least), least
        self._fused = fused

    def forward(self, rows: Tensor, added: Tensor | None = None) -> Tensor:
        """Of rows, to which `added` is added in place first."""
        if self._fused is not None:
            return self._fused.norm(rows, self.weight, self._least_number, added)
        if added is not None:
            rows.add_(added)
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).hypot_(self._least)
        return rows.div(lengths).mul_(self.weight)


def _joined(layers: Sequence[Any], orders: Sequence[Tensor | None]) -> nn.Linear:
    """Linear layers of one input as one, the outputs of each head in the order asked for."""
    pairs = list(zip(layers, orders, strict=True))
    weights = [_ordered(layer.weight.detach(), order) for layer, order in pairs]
    joined = nn.Linear(1, 1, bias=False, device="meta")
    joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    joined.out_features, joined.in_features = joined.weight.shape
    if any(layer.bias is not None for layer in layers):
        biases = [
            _ordered(weight.new_zeros(len(weight)) if layer.bias is None else layer.bias, order)
            for weight, (layer, order) in zip(weights, pairs, strict=True)
        ]
        joined.bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    return joined


def _ordered(rows: Tensor, order: Tensor | None) -> Tensor:
    """Rows of heads, those of each in this order."""
    return (
        rows
        if order is None
        else rows.view(-1, len(order), *rows.shape[1:])[:, order].flatten(0, 1)
    )
