"""What schedules requests by itself, over a KV cache in pages: the seam between `PagedEngine` and
vLLM, OpenVINO GenAI or others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from specrej.types import FinishReason, SamplingParams, TopLogprobs


class Drawn(NamedTuple):
    """A token that a backend has made for a request."""

    key: int
    token_id: int
    logprob: float | None
    finish_reason: FinishReason | None
    num_cached: int = 0
    """Tokens of the prompt that were found in the prefix cache when the request began; counts
    with the first token."""
    top_logprobs: TopLogprobs | None = None
    """See `specrej.engines.base.Token`."""


class Backend(Protocol):
    """What schedules requests over a paged KV cache."""

    name: str
    page_tokens: int
    """Tokens of a page."""
    num_pages: int
    """Pages for all requests together."""
    most_requests: int
    """Most requests that are computed side by side; others wait."""
    is_on_cpu: bool
    seed_bits: int

    def describe(self) -> Mapping[str, str]:
        """What a figure depends on beside the settings."""

    def versions(self) -> Mapping[str, str]:
        """Versions of what computes."""

    def check_sampling(self, sampling: SamplingParams) -> None:
        """See `specrej.engines.base.Engine`."""

    def submit(
        self, key: int, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int
    ) -> None:
        """Queue a request of its own random stream; nothing is computed yet."""

    def step(self) -> Iterable[Drawn]:
        """Let every request have its next token, those that find no room wait; may give none for
        some.

        Raises:
            EngineError: it failed.
        """

    def abort(self, keys: Sequence[int]) -> None:
        """End requests; their pages are free, and nothing more comes of them."""

    def shutdown(self) -> None:
        """End all requests, and free the model and what computes it. May be called twice."""

    def pages_in_use(self) -> int:
        """As the backend measures it, after its last step."""

    @property
    def num_preemptions(self) -> int:
        """Times that it took pages away from a request, so far."""
