"""Attention over groups, plugged into transformers' own models through its `AttentionInterface`.

A model calls `group_attention` in every layer with the queries, keys and values of the tokens it
was fed. The keyword `kv`, which the engine gives to the model's forward pass and transformers hands
through, says what they belong to. That is one chunk of one prompt (`PrefillPass`), the last token
of every candidate of every group (`DecodePass`), or several new tokens of some rows of one group,
as a reward model reads them (`ExtendPass`). No mask is registered for the implementation, so
transformers builds none: who sees what follows from the group.

What an architecture asks of attention and is not honoured here (sinks, biases, ...) is refused by
name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.fused import Fused
from specrej.attention.groups import Group, Scoring
from specrej.errors import ModelError

IMPLEMENTATION = "specrej_groups"

# What models hand to attention and ours has no use for: positions are in the keys already, nothing
# is trained.
_WITHOUT_EFFECT = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_router_logits",
        "is_causal",
    }
)


class Pass(Protocol):
    """Where a forward pass keeps its keys and values."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Store keys and values, attend. `[batch, heads, tokens, dim]` in, `[batch, tokens,
        heads, dim]` out.
        """


@dataclass
class PrefillPass:
    """Some tokens of one prompt, those before them already in the group. `key[i]` has position
    `start + i`.
    """

    group: Group
    start: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Who sees whom, by window: the same in every layer of the pass."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        group, stop = self.group, self.start + key.shape[2]
        own = slice(self.start - group.start, stop - group.start)
        if len(group.prompt_keys) == layer:
            length = len(group.prompt_ids) - group.start
            group.prompt_keys.append(key.new_empty(key.shape[1], length, key.shape[3]))
            group.prompt_values.append(value.new_empty(value.shape[1], length, value.shape[3]))
        group.prompt_keys[layer][:, own] = key[0]
        group.prompt_values[layer][:, own] = value[0]
        keys, values = (
            _joined(parts, 1)[None, :, :stop] for parts in zip(*group.prompt_kv(layer), strict=True)
        )
        if scoring.window not in self.masks:
            self.masks[scoring.window] = _causal_mask(
                self.start, stop, scoring.window, query.device
            )
        mask = self.masks[scoring.window]
        if scoring.softcap is None:
            gqa = query.shape[1] != keys.shape[1]
            out = functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, scale=scoring.scaling, enable_gqa=gqa
            )
        else:
            shared = query.shape[1] // keys.shape[1]
            scores = scoring.scores(query[0], keys[0].repeat_interleave(shared, 0))
            weights = scores.masked_fill_(~mask, -torch.inf).softmax(-1).to(values.dtype)
            out = torch.bmm(weights, values[0].repeat_interleave(shared, 0))[None]
        return out.transpose(1, 2)


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat`, but one tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _causal_mask(start: int, stop: int, window: int | None, device: torch.device) -> Tensor:
    """`[stop - start, stop]`, True where the query at position start + i sees position j."""
    query = torch.arange(start, stop, device=device)[:, None]
    position = torch.arange(stop, device=device)[None, :]
    mask = position <= query
    return mask if window is None else mask & (position > query - window)


@dataclass
class DecodePass:
    """The newest token of every live candidate; the rows of each group stand together, in the
    order given.

    A group whose rows have different lengths, or of which some are not fed, is in `apart` by its
    place among the groups, with a token for each row that is fed.
    """

    groups: Sequence[Group]
    apart: "Mapping[int, ExtendPass]" = field(default_factory=dict)
    fused: Fused | None = None
    """Attends where it can; None leaves it to torch."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        can_fuse = self.fused is not None and self.fused.can_attend(query, key, value, scoring)
        outputs, start = [], 0
        for place, group in enumerate(self.groups):
            extend = self.apart.get(place)
            num_fed = group.num_rows if extend is None else sum(extend.counts)
            rows = slice(start, start + num_fed)
            given = query[rows], key[rows], value[rows]
            if self.fused is not None and can_fuse:
                seen = self.fused.attend(group, layer, *given, scoring, *self._standing[place])
            elif extend is not None:
                asked, new_key, new_value = (each.transpose(0, 2) for each in given)
                seen = extend.attend(layer, asked, new_key, new_value, scoring).transpose(0, 1)
            else:
                seen = _attend_to_newest(group, layer, *given, scoring)
            outputs.append(seen)
            start = rows.stop
        return _joined(outputs, 0)

    @cached_property
    def _standing(self) -> list[tuple[Tensor, Tensor]]:
        """Which rows of each group are fed, and how many tokens of their own they have: the same in
        every layer of the pass.
        """
        return [
            _standing_of(group, self.apart.get(place)) for place, group in enumerate(self.groups)
        ]


def _standing_of(group: Group, extend: "ExtendPass | None") -> tuple[Tensor, Tensor]:
    if extend is None:
        return torch.arange(group.num_rows), torch.full((group.num_rows,), group.length)
    fed = torch.tensor(extend.counts).nonzero().flatten()
    return fed, torch.tensor(extend.lengths)[fed]


def _attend_to_newest(
    group: Group, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
) -> Tensor:
    """See `Fused.attend`, by torch's operations."""
    rows = len(query)
    group.keys[layer][:rows, :, group.length].copy_(key[:, :, 0])
    group.values[layer][:rows, :, group.length].copy_(value[:, :, 0])
    stop = len(group.prompt_ids) + group.length + 1
    first = 0 if scoring.window is None else max(stop - scoring.window, 0)
    return _attend_to_group(group, layer, query, scoring, slice(first, stop))


@dataclass
class ExtendPass:
    """New tokens of neighbouring rows of one group, a row's tokens one after another: no padding
    reaches the model.

    The row `first_row + i` has `lengths[i]` tokens of its own in the group and is fed `counts[i]`
    more, one of them at least one. For attention alone, the rows are filled up to the longest.
    """

    group: Group
    first_row: int
    lengths: Sequence[int]
    counts: Sequence[int]
    hidden: dict[int | None, Tensor | None] = field(default_factory=dict)
    """Which positions are hidden from whom, by window: the same in every layer of the pass."""

    def __post_init__(self) -> None:
        device = self.group.prompt_keys[0].device
        lengths, counts = (
            torch.tensor(numbers, device=device) for numbers in (self.lengths, self.counts)
        )
        self._row = torch.arange(len(counts), device=device).repeat_interleave(counts)
        self._step = (
            torch.arange(len(self._row), device=device) - (counts.cumsum(0) - counts)[self._row]
        )
        self._slot = lengths[self._row] + self._step
        self._starts = lengths + len(self.group.prompt_ids)
        self._num_slots = max(
            length + count for length, count in zip(self.lengths, self.counts, strict=True)
        )
        slots = torch.arange(self._num_slots, device=device)
        self._unwritten = (slots >= (lengths + counts)[:, None]).nonzero(as_tuple=True)
        self.last = counts.cumsum(0) - 1
        """Where each row's last new token stands among all new tokens."""

    @property
    def positions(self) -> Tensor:
        """`[1, tokens]` position of each new token."""
        return (self._slot + len(self.group.prompt_ids))[None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        rows = slice(self.first_row, self.first_row + len(self.counts))
        keys, values = self.group.keys[layer][rows], self.group.values[layer][rows]
        keys[self._row, :, self._slot] = key[0].transpose(0, 1)
        values[self._row, :, self._slot] = value[0].transpose(0, 1)
        row, slot = self._unwritten
        values[row, :, slot] = (
            0  # what was never written may be NaN, which a weight of 0 does not take out
        )
        queries = query.new_zeros(
            len(self.counts), query.shape[1], max(self.counts), query.shape[3]
        )
        queries[self._row, :, self._step] = query[0].transpose(0, 1)
        stop = len(self.group.prompt_ids) + self._num_slots
        first = 0
        if scoring.window is not None:
            first = max(len(self.group.prompt_ids) + min(self.lengths) + 1 - scoring.window, 0)
        if scoring.window not in self.hidden:
            self.hidden[scoring.window] = self._hidden(first, stop, scoring.window)
        hidden = self.hidden[scoring.window]
        out = _attend_to_group(
            self.group, layer, queries, scoring, slice(first, stop), self.first_row, hidden
        )
        return out[self._row, self._step][None]

    def _hidden(self, first: int, stop: int, window: int | None) -> Tensor | None:
        """`[rows, queries, positions]`, True where a query must not see one of the last positions
        before `stop`.

        Without a window every query sees the whole prompt, so these are the own tokens only.
        """
        if max(self.counts) == 1 and len(set(self.lengths)) == 1:
            return None
        steps = torch.arange(max(self.counts), device=self._starts.device)
        query = (self._starts[:, None] + steps)[:, :, None]
        seen_from = len(self.group.prompt_ids) if window is None else first
        position = torch.arange(seen_from, stop, device=self._starts.device)
        hidden = position > query
        return hidden if window is None else hidden | (position <= query - window)


def _attend_to_group(
    group: Group,
    layer: int,
    query: Tensor,
    scoring: Scoring,
    seen: slice,
    first_row: int = 0,
    hidden: Tensor | None = None,
) -> Tensor:
    """Some queries a row, `[rows, heads, queries, dim]`, to the prompt and to the row's own tokens,
    under one softmax.

    The prompt is the same for all rows: its keys and values are read once, in one matrix product of
    each part for all of them.
    `seen` are the positions that any query sees, `hidden` says which of the last of them some do
    not.
    """
    rows, heads, num_queries, dim = query.shape
    num_prompt = len(group.prompt_ids)
    own = slice(max(seen.start - num_prompt, 0), seen.stop - num_prompt)
    prompt = group.prompt_kv(layer, seen.start)
    own_keys, own_values = (
        block[layer][first_row : first_row + rows].flatten(0, 1)[:, own]
        for block in (group.keys, group.values)
    )
    kv_heads = group.keys[layer].shape[1]
    shared = heads // kv_heads * num_queries

    # Rows of one head stand together for the prompt's matrix product, heads of one row for that of
    # its own tokens.
    by_head = (
        query.reshape(rows, kv_heads, shared, dim)
        .transpose(0, 1)
        .reshape(kv_heads, rows * shared, dim)
    )
    to_parts = [
        scoring.scores(by_head, keys).view(kv_heads, rows, shared, -1) for keys, _ in prompt
    ]
    to_own = scoring.scores(query.reshape(rows * kv_heads, shared, dim), own_keys)
    to_own = to_own.view(rows, kv_heads, shared, -1).transpose(0, 1)
    scores = torch.cat((*to_parts, to_own), -1)
    if hidden is not None:
        by_query = scores.view(kv_heads, rows, -1, num_queries, scores.shape[-1])
        by_query[..., -hidden.shape[-1] :].masked_fill_(hidden[:, None], -torch.inf)
    weights = scores.softmax(-1).to(own_values.dtype)
    *by_part, own_weights = weights.split_with_sizes(
        [part.shape[-1] for part in (*to_parts, to_own)], -1
    )
    out = torch.bmm(own_weights.transpose(0, 1).flatten(0, 1), own_values).view(
        rows, kv_heads, shared, -1
    )
    for part, (_, values) in zip(by_part, prompt, strict=True):
        from_part = torch.bmm(part.reshape(kv_heads, rows * shared, -1), values)
        out = out + from_part.view(kv_heads, rows, shared, -1).transpose(0, 1)
    return out.reshape(rows, heads, num_queries, -1).transpose(1, 2)


def group_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kv: Pass | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer of a model set to
    `specrej_groups`.

    Raises:
        ModelError: the architecture asks for what is not honoured here, or does not hand `kv`
            through.
    """
    unknown = sorted(
        name for name, given in asked.items() if given is not None and name not in _WITHOUT_EFFECT
    )
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise ModelError(
            f"{type(module).__name__} needs what the torch engine does not honour: "
            f"{', '.join(unknown)}"
        )
    if kv is None:
        raise ModelError(
            f"{type(module).__name__} does not receive the keywords of the model's forward pass"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return kv.attend(layer, query, key, value, Scoring(scale, sliding_window, softcap)), None


def use_groups(model: Any) -> None:
    """Set a model of transformers to `group_attention`."""
    # Imported where it is needed: it takes longer to import than torch itself.
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, group_attention)
    model.set_attn_implementation(IMPLEMENTATION)
