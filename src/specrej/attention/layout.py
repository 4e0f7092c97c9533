"""How much KV a prompt and its candidates hold, and by what rule it grows: numbers alone, no
tensor.

layout = KvLayout(bytes_per_token=46_080, largest_tensor_bytes=768, granule=16)
layout.peak_bytes(num_prompt_tokens=60, num_rows=8, num_slots=128)
"""

from typing import Any, NamedTuple

PREFILL_CHUNK = 512
"""Prompt tokens per forward pass: bounds what prefilling a long prompt needs beside its KV."""


class KvLayout(NamedTuple):
    """How much KV there is, and by what rule the block of a prompt's candidates grows.

    The KV of a prompt's candidates is one block of rows (live candidates) by slots (tokens). It is
    made anew when it has to grow or when rows are given back; while it is, one tensor of one layer
    is there twice.
    """

    bytes_per_token: int
    """Of all layers together."""
    largest_tensor_bytes: int
    """Of one token in the largest single tensor of a layer."""
    granule: int
    """Slots that a block grows by, where the budget carries them."""
    page: int = 1
    """Tokens of the pages that KV comes in. In pages, candidates share those that the prompt
    fills but for its last token, which each reads by itself, since its logits are needed."""

    def peak_bytes(self, num_prompt_tokens: int, num_rows: int, num_slots: int) -> int:
        """Most bytes while a block of this size is made."""
        num_shared = num_prompt_tokens
        if self.page > 1 and num_rows:
            num_shared = self.shared_tokens(num_prompt_tokens)
            num_slots += num_prompt_tokens - num_shared
        per_slot = self.bytes_per_token + self.largest_tensor_bytes
        return (
            self._in_pages(num_shared) * self.bytes_per_token
            + num_rows * self._in_pages(num_slots) * per_slot
        )

    def shared_tokens(self, num_prompt_tokens: int) -> int:
        """Tokens of a prompt whose KV its candidates share."""
        return (
            num_prompt_tokens
            if self.page == 1
            else (num_prompt_tokens - 1) // self.page * self.page
        )

    def _in_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page) * self.page

    def grown_slots(
        self,
        num_prompt_tokens: int,
        num_rows: int,
        num_slots: int,
        max_slots: int,
        budget_bytes: int,
    ) -> int:
        """Slots after a full block of `num_slots` has grown: a granule more, or what the budget
        carries of it.
        """
        if self.page > 1:
            begun = num_prompt_tokens - self.shared_tokens(num_prompt_tokens)
            return min(self._in_pages(begun + num_slots + 1) - begun, max(max_slots, num_slots + 1))
        room = budget_bytes - self.peak_bytes(num_prompt_tokens, 0, 0)
        affordable = room // max(self.peak_bytes(0, num_rows, 1), 1)
        return max(min(num_slots + self.granule, max_slots, affordable), num_slots + 1)


class Demand(NamedTuple):
    """What a prompt and its candidates take of memory that other prompts use as well, in bytes.

    A block of KV counts with one tensor of it twice, since that is how much there is while rows
    move.
    """

    now: int
    least: int
    """While and after the next step, if the block grows no more than it must."""
    wanted: int
    """If the block grows as it likes to."""
    shared: int
    """Bytes of the prompt that are left out above: a prompt that was opened later holds them as
    well."""


def kv_numbers_of_config(config: Any) -> int:
    """Numbers of KV that a token holds, in all layers together, keys and values for themselves."""
    from specrej.flops import head_dim  # brings numpy along

    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * num_heads * head_dim(config))
