"""The KV of one prompt and its candidates, and attention to it.

A group holds the prompt's KV once, its beginning together with other prompts (see `prefixes`), and
a dense block `[rows, kv_heads, slots, dim]` for what its candidates wrote. The block grows some
slots at a time, layer by layer, within the group's budget. Mostly all candidates have the same
length, so there is no page table, and no padding. Forks beside older candidates, and a reward
model's tokens, make rows of different lengths: `length` is the longest then, and who feeds them
knows those of the rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from specrej.attention.layout import Demand, KvLayout
from specrej.attention.prefixes import LEAST_TOKENS, PromptPart, longest_prefix

GRANULE = 32
"""Slots that a block grows by: the whole block is copied once in as many steps."""


class Scoring(NamedTuple):
    """How a layer turns queries and keys into scores."""

    scaling: float
    window: int | None
    """A query sees the last `window` positions, its own included; None sees all."""
    softcap: float | None
    """Scores s become softcap * tanh(s / softcap); None leaves them."""

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scaled, capped scores in float32, `[batch, queries, positions]`, of queries and keys
        `[batch, ..., dim]`.
        """
        # The scaling comes with the product: beta=0 leaves this term out, whatever it holds.
        nothing = query.new_empty(1)
        scores = torch.baddbmm(
            nothing, query, keys.transpose(1, 2), beta=0, alpha=self.scaling
        ).float()
        return (
            scores if self.softcap is None else (scores / self.softcap).tanh_().mul_(self.softcap)
        )


@dataclass
class Group(PromptPart):
    """One prompt with its candidates: the last part of its prompt, and a block. Rows in the
    order of `indices`.
    """

    prompt_ids: list[int]
    budget_bytes: int
    layout: KvLayout
    max_slots: int
    keys: list[Tensor] = field(default_factory=list)
    """`[allocated rows, kv_heads, slots, dim]` a layer."""
    values: list[Tensor] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """The candidate in each row."""
    length: int = 0
    """Slots in use: tokens whose KV every live candidate has written (of rows of different
    lengths, the longest)."""
    peak_bytes: int = 0
    sources: dict[int, int] = field(default_factory=dict)
    """By candidate whose row is not written yet, the candidate whose row it will be a copy of."""
    shared_bytes: int = 0
    """Of the prompt's KV what a group that was opened later holds as well: that one answers for
    it."""

    @property
    def num_rows(self) -> int:
        return len(self.indices)

    @property
    def slots(self) -> int:
        """Slots of every tensor; where memory ran out amid growth, some have more."""
        return min((tensor.shape[2] for tensor in (*self.keys, *self.values)), default=0)

    def allocated_bytes(self) -> int:
        """Bytes of all tensors held, as allocated."""
        return self.prompt_bytes() + sum(
            t.untyped_storage().nbytes() for t in (*self.keys, *self.values)
        )

    def prompt_bytes(self) -> int:
        """Bytes of the prompt's tensors, as allocated, those of shared parts included."""
        tensors = [
            tensor for part in self.parts() for tensor in (*part.prompt_keys, *part.prompt_values)
        ]
        # Parts are views of one storage where memory ran out while they were divided.
        return sum(
            {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
        )

    @property
    def num_allocated(self) -> int:
        """Rows of every tensor."""
        return min((tensor.shape[0] for tensor in (*self.keys, *self.values)), default=0)

    @property
    def is_full(self) -> bool:
        """Whether the block has no room for the next tokens of all live rows."""
        return self.num_rows > 0 and (
            self.length == self.slots or self.num_rows > self.num_allocated
        )

    def next_step_bytes(self) -> int:
        """Most bytes while the next slot of all live rows is made room for."""
        if not self.is_full:
            return self.allocated_bytes()
        return max(
            self.layout.peak_bytes(len(self.prompt_ids), self.num_rows, self.length + 1),
            self.allocated_bytes(),
        )

    def demand(self) -> Demand:
        """What the group takes of memory that groups share."""
        allocated = (
            self.keys[0].shape[0] * max(t.shape[2] for t in (*self.keys, *self.values))
            if self.keys
            else 0
        )
        demands = [
            self.layout.peak_bytes(len(self.prompt_ids), 1, num_places) - self.shared_bytes
            for num_places in (
                allocated,
                self.num_rows * (self.length + 1),
                self.num_rows * self._grown_slots(),
            )
        ]
        now, least, wanted = (
            demands[0],
            *(max(demands[0], demand) if self.is_full else demands[0] for demand in demands[1:]),
        )
        return Demand(now, least, wanted, self.shared_bytes)

    def share(self, others: Iterable["Group"]) -> None:
        """Let a prompt that is not read yet begin with KV of that one of these which it has most in
        common with.

        Its last token is left to be read, since its logits are needed; the other's, so that no part
        is empty.
        """
        begins = self.prompt_ids[:-1]
        common = [(longest_prefix(begins, other.prompt_ids[:-1]), other) for other in others]
        stop, other = max(common, key=lambda pair: pair[0], default=(0, self))
        if stop < LEAST_TOKENS:
            return
        part = next(part for part in other.parts() if part.stop >= stop)
        # While a part is divided, one tensor of it is there twice. There is room for that where
        # this prompt's KV alone would have been.
        copied_bytes = (part.stop - part.start) * self.layout.largest_tensor_bytes
        has_room = copied_bytes <= self.layout.peak_bytes(len(self.prompt_ids), 0, 0)
        if part.stop == stop:
            self.prefix = part
        elif stop - part.start >= LEAST_TOKENS and has_room:
            self.prefix = part.divide(stop)
        else:
            self.prefix = part.prefix
        self.start = 0 if self.prefix is None else self.prefix.stop

    def reserve(self, limit_bytes: int | None = None) -> None:
        """Make room for one more token of every live row: a granule, or as much of it as budget and
        limit hold.

        The limit is on what the group holds, and is at least the least that its demand asks for.
        """
        if self.is_full:
            self.resize(self._grown_slots(limit_bytes))
        if self.sources:
            self._write_forks()

    def fork(self, parent: int, index: int) -> None:
        """Add a row for a candidate, a copy of another's, which is written when there is room."""
        self.indices.append(index)
        self.sources[index] = self.sources.get(parent, parent)

    def _write_forks(self) -> None:
        row_of = {index: row for row, index in enumerate(self.indices)}
        forks = [row_of[index] for index in self.sources]
        parents = [row_of[parent] for parent in self.sources.values()]
        self.sources.clear()
        self._copy(parents, forks)

    def _copy(self, rows: Sequence[int], to: Sequence[int]) -> None:
        """Write what these rows hold into others."""
        if not rows or not self.length:
            return
        copied = len(rows) * self.length * self.layout.largest_tensor_bytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes() + copied)
        for tensor in (*self.keys, *self.values):
            tensor[to, :, : self.length] = tensor[rows, :, : self.length]

    def _grown_slots(self, limit_bytes: int | None = None) -> int:
        limit = (
            self.budget_bytes
            if limit_bytes is None
            else min(self.budget_bytes, limit_bytes + self.shared_bytes)
        )
        sizes = (len(self.prompt_ids), self.num_rows, self.length)
        return self.layout.grown_slots(*sizes, self.max_slots, limit)

    def fit(self) -> None:
        """Give back the memory of rows that are gone."""
        if any(tensor.shape[0] > self.num_rows for tensor in (*self.keys, *self.values)):
            self.resize(self.slots)

    def resize(self, slots: int) -> None:
        """Make the block anew with so many slots, and a row for each of `indices`; what is new
        holds anything.
        """
        rows, length, held = self.num_rows, self.length, self.allocated_bytes()
        if not self.keys:
            keys = [p.new_empty(rows, p.shape[0], slots, p.shape[2]) for p in self.prompt_keys]
            values = [p.new_empty(rows, p.shape[0], slots, p.shape[2]) for p in self.prompt_values]
            self.keys, self.values = keys, values
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes())
            return
        for block in (self.keys, self.values):
            for layer, old in enumerate(block):
                new = old.new_empty(rows, old.shape[1], slots, old.shape[3])
                num_old = min(rows, old.shape[0])
                new[:num_old, :, :length] = old[:num_old, :, :length]
                self.peak_bytes = max(self.peak_bytes, held + new.nbytes)
                held += new.nbytes - old.untyped_storage().nbytes()
                block[layer] = new

    def remove(self, rows: Sequence[int]) -> list[int]:
        """Take rows out: the last rows move into their places. Returns the former row of every
        row that is left.
        """
        gone = self._bequeathed(rows)
        order = list(range(self.num_rows))
        left = self.num_rows - len(rows)
        holes = [row for row in sorted(gone) if row < left]
        movers = [row for row in range(left, self.num_rows) if row not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        order = order[:left]
        moves = [
            (mover, hole)
            for mover, hole in zip(movers, holes, strict=True)
            if mover < self.num_allocated and self.indices[mover] not in self.sources
        ]
        self.indices = [self.indices[row] for row in order]
        if left == 0:
            self.keys, self.values, self.length = [], [], 0
        else:
            self._copy([mover for mover, _ in moves], [hole for _, hole in moves])
        return order

    def _bequeathed(self, rows: Sequence[int]) -> set[int]:
        """The rows to take out so that the candidates in these go.

        A fork that is not written yet takes the row of its parent: it would be a copy of it.
        """
        gone = {self.indices[row] for row in rows}
        for index in gone:
            self.sources.pop(index, None)
        for parent in gone & set(self.sources.values()):
            heir, *others = [fork for fork, source in self.sources.items() if source == parent]
            del self.sources[heir]
            self.sources.update(dict.fromkeys(others, heir))
            old, new = self.indices.index(parent), self.indices.index(heir)
            self.indices[old], self.indices[new] = heir, parent
        return {row for row, index in enumerate(self.indices) if index in gone}
