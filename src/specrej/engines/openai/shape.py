"""What arithmetic needs of a model and its server.

shape = Shape(name="smollm2", chunk_tokens=32, bytes_per_token=1, context_tokens=8192, **figures)
shape.layout, shape.on_grid(33)
"""

from dataclasses import dataclass

from specrej.attention.layout import KvLayout
from specrej.engines.openai.replies import Capacity
from specrej.flops import ModelFlops


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What arithmetic needs of a model and its server.

    Attributes:
        name: what the user calls the model.
        chunk_tokens: the grid.
        bytes_per_token: KV of one; 1 where the model's configuration is not known.
        context_tokens: most tokens of prompt and answer together.
        flops: what the model costs, where that is known.
        capacity: the server's KV cache, where it says.
        kv_tokens: how much of it is ours by the user's word.
    """

    name: str
    chunk_tokens: int
    bytes_per_token: int
    context_tokens: int
    flops: ModelFlops | None
    capacity: Capacity | None
    kv_tokens: int | None

    @property
    def layout(self) -> KvLayout:
        """In pages, where the server has pages of several tokens; else chunk by chunk."""
        page = 1 if self.capacity is None else self.capacity.page
        grain = page if page > 1 else self.chunk_tokens
        return KvLayout(self.bytes_per_token, 0, grain, page=page)

    @property
    def capacity_bytes(self) -> int | None:
        """What the server's KV cache holds, where it says."""
        return None if self.capacity is None else self.capacity.tokens * self.bytes_per_token

    def on_grid(self, length: int) -> int:
        """Tokens of an answer when the chunk that this length falls in is whole."""
        return -(-length // self.chunk_tokens) * self.chunk_tokens
