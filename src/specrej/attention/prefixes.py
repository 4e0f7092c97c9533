"""The KV of prompts that begin alike: what they have in common is held once.

A prompt's KV is a chain of parts. The last one is the prompt's own; one before it belongs to every
prompt that begins with the same tokens, and goes with the last of them. A part knows what stands
before it, not who goes on from it, so it can be divided without a word to those who hold it:

    A = [0, 300)                          # alone
    A = [0, 200) + [200, 300)             # B begins with the same 200 tokens
    B = [0, 200) + [200, 240)             # of which [0, 200) is one part, held by both
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

LEAST_TOKENS = 16
"""A part is not divided for fewer: reading them again costs less than one more part in every
step."""


@dataclass(kw_only=True, eq=False)
class PromptPart:
    """KV of neighbouring tokens of a prompt, by layer."""

    prompt_keys: list[Tensor] = field(default_factory=list)
    """`[kv_heads, tokens, dim]` a layer."""
    prompt_values: list[Tensor] = field(default_factory=list)
    prefix: "PromptPart | None" = None
    """The part before it."""
    start: int = 0
    """Position of its first token."""

    @property
    def stop(self) -> int:
        """Position behind its last token."""
        return self.start + self.prompt_keys[0].shape[1]

    def parts(self) -> "Iterator[PromptPart | Self]":
        """All parts from the prompt's beginning to this one."""
        if self.prefix is not None:
            yield from self.prefix.parts()
        yield self

    def prompt_kv(self, layer: int, first: int = 0) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a layer from position `first` on, part by part."""
        seen = [(part, max(first - part.start, 0)) for part in self.parts() if part.stop > first]
        return [
            (part.prompt_keys[layer][:, at:], part.prompt_values[layer][:, at:])
            for part, at in seen
        ]

    def part_bytes(self) -> int:
        """Bytes of its tokens' KV."""
        return sum(tensor.nbytes for tensor in (*self.prompt_keys, *self.prompt_values))

    def divide(self, position: int) -> "PromptPart":
        """Make what stands before this position, within the part, a part that others may go on
        from.

        The two are copied tensor by tensor, so that the bytes of either go when nobody holds it.
        Until then they are
        views of what there was: where memory runs out, both are whole.
        """
        num_tokens = position - self.start
        head = PromptPart(
            prompt_keys=[keys[:, :num_tokens] for keys in self.prompt_keys],
            prompt_values=[values[:, :num_tokens] for values in self.prompt_values],
            prefix=self.prefix,
            start=self.start,
        )
        self.prompt_keys = [keys[:, num_tokens:] for keys in self.prompt_keys]
        self.prompt_values = [values[:, num_tokens:] for values in self.prompt_values]
        self.prefix, self.start = head, position
        for heads, tails in (
            (head.prompt_keys, self.prompt_keys),
            (head.prompt_values, self.prompt_values),
        ):
            for layer in range(len(heads)):
                heads[layer], tails[layer] = heads[layer].clone(), tails[layer].clone()
        return head


def longest_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(i for i in range(shorter) if left[i] != right[i])
