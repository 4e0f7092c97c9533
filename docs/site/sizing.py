"""The table of docs/concepts/memory.md: what models of known shapes hold.

    python docs/site/sizing.py      # writes it anew

KV is counted by the engine's own rule, `KvLayout.peak_bytes`, in 16 bits.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from specrej.attention.layout import KvLayout, kv_numbers_of_config
from specrej.memory import format_bytes

DOCUMENT = Path(__file__).parents[1] / "concepts" / "memory.md"
HEAD = (
    "| model | weights | KV of a token | 1 candidate | Best-of-8 | Best-of-64 | begin in 1 GiB "
    "| begin in 8 GiB |\n|---|---|---|---|---|---|---|---|\n"
)
PROMPT, NEW, FIRST = 512, 512, 16
"""Tokens: of the prompt, of a whole answer, and to the first decision."""
_NUMBER_BYTES = 2


class Shape(NamedTuple):
    """What a model's configuration says."""

    name: str
    billions: float
    layers: int
    heads: int
    kv_heads: int
    hidden: int

    @property
    def layout(self) -> KvLayout:
        config = SimpleNamespace(
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            hidden_size=self.hidden,
        )
        token_bytes = _NUMBER_BYTES * kv_numbers_of_config(config)
        return KvLayout(token_bytes, token_bytes // (2 * self.layers), granule=32)


SHAPES = (
    Shape("Llama-3.2-1B", 1.24, 16, 32, 8, 2048),
    Shape("Llama-3.1-8B", 8.03, 32, 32, 8, 4096),
    Shape("Llama-3.1-70B", 70.6, 80, 64, 8, 8192),
)


def held(layout: KvLayout, num_candidates: int, num_tokens: int = NEW) -> int:
    """Bytes of the prompt and so many candidates of so many tokens, the last one without KV."""
    return layout.peak_bytes(PROMPT, num_candidates, num_tokens - 1)


def beginning(layout: KvLayout, budget: int) -> int:
    """Candidates that a budget carries to the first decision."""
    room = budget - held(layout, 0)
    return max(room, 0) // (held(layout, 1, FIRST) - held(layout, 0))


def make() -> str:
    """The table as the document has it."""
    rows = []
    for shape in SHAPES:
        layout = shape.layout
        weights = f"{shape.billions * _NUMBER_BYTES:.1f} GB"
        amounts = [layout.bytes_per_token, *(held(layout, n) for n in (1, 8, 64))]
        counts = [f"{beginning(layout, n * 2**30):,}" for n in (1, 8)]
        rows.append(" | ".join([shape.name, weights, *map(format_bytes, amounts), *counts]))
    return HEAD + "".join(f"| {row} |\n" for row in rows)


def parts() -> tuple[str, str, str]:
    """The document before its table, the table, and the rest."""
    before, head, after = DOCUMENT.read_text(encoding="utf-8").partition(HEAD)
    table, blank, rest = after.partition("\n\n")
    return before, head + table + "\n", blank[1:] + rest


if __name__ == "__main__":
    before, _, rest = parts()
    DOCUMENT.write_text(before + make() + rest, encoding="utf-8")
