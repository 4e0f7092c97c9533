"""A backend without a model for `specrej.engines.paged`: requests, pages, a prefix cache, and a
limit on each step.

Its tokens are those of `fakes`: a pure function of prompt, tokens so far, and a random number of
the request's seed. Pages are counted one by one: full ones are shared by whoever has the same
tokens up to their end, as in vLLM. It asserts what a backend may take for granted: no key twice,
nothing aborted twice, never more pages than there are.

    engine = paged_engine(FakeBackend(num_pages=100))
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fakes import BOS, EOS, FLOPS, ByteReader, next_token, text_of
from specrej.engines.backend import Drawn
from specrej.engines.base import EXTRA_WAYS, refuse_ways
from specrej.engines.constraints import refuse_constraint
from specrej.engines.paged import PagedEngine
from specrej.engines.streams import uniforms
from specrej.messages import as_messages
from specrej.types import Prompt, SamplingParams

PAGE = 4


@dataclass
class Request:
    """A request: its tokens, how many of them have KV, and how many were found in the cache."""

    prompt_ids: list[int]
    sampling: SamplingParams
    seed: int
    token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None

    @property
    def ids(self) -> list[int]:
        return [*self.prompt_ids, *self.token_ids]


class FakeBackend:
    """Implements `specrej.engines.backend.Backend`.

    Attributes:
        submitted: (prompt, seed) of every request so far.
        num_read: tokens fed to the model so far.
    """

    name = "paged"
    page_tokens = PAGE
    seed_bits = 63

    def __init__(
        self,
        *,
        num_pages: int = 10_000,
        most_requests: int = 1000,
        step_tokens: int = 10**6,
        eos: float = 0.06,
        is_on_cpu: bool = True,
        fail_at: int | None = None,
    ) -> None:
        """A step feeds at most `step_tokens` tokens, oldest request first; step number `fail_at`
        raises."""
        self.num_pages, self.most_requests, self.is_on_cpu = num_pages, most_requests, is_on_cpu
        self.requests: dict[int, Request] = {}
        self.submitted: list[tuple[list[int], int]] = []
        self.num_read = self.num_steps = self.most_pages = 0
        self.num_preemptions = 0
        self._step_tokens, self._eos, self._fail_at = step_tokens, eos, fail_at
        self._cached: set[tuple[int, ...]] = set()
        """Full pages that are cached, by all tokens up to their end."""

    def describe(self) -> Mapping[str, str]:
        return {"model": "bytes"}

    def versions(self) -> Mapping[str, str]:
        return {"fake": "1"}

    def check_sampling(self, sampling: SamplingParams) -> None:
        refuse_ways(self.name, sampling, EXTRA_WAYS)
        refuse_constraint(sampling, self.name, "it draws bytes from a hash")

    def submit(
        self, key: int, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int
    ) -> None:
        assert key not in self.requests, "submitted twice"
        self.requests[key] = Request(list(prompt_ids), sampling, seed)
        self.submitted.append((list(prompt_ids), seed))

    def step(self) -> Iterator[Drawn]:
        if self.num_steps == self._fail_at:
            raise RuntimeError("as asked for")
        assert self.requests, "a step without requests"
        self.num_steps += 1
        left, drawn = self._step_tokens, []
        for key, request in list(self.requests.items())[: self.most_requests]:
            if request.num_cached is None:
                request.num_cached = request.num_computed = self._num_cached(request)
            fed = min(len(request.ids) - request.num_computed, left)
            left -= fed
            self.num_read += fed
            request.num_computed += fed
            if fed and request.num_computed == len(request.ids):
                drawn.append(self._draw(key, request))
        self._count()
        for key, _, _, reason, *_ in drawn:
            if reason:
                del self.requests[key]
        return iter(drawn)

    def _num_cached(self, request: Request) -> int:
        """All but the last token of a prompt can be found there, in full pages."""
        ids, found = request.ids, 0
        while found + PAGE < len(ids) and tuple(ids[: found + PAGE]) in self._cached:
            found += PAGE
        return found

    def _draw(self, key: int, request: Request) -> Drawn:
        (number,) = uniforms(request.seed, [0], len(request.token_ids)).tolist()
        number = 0.5 if request.sampling.is_greedy else number
        token_id = next_token(request.prompt_ids, request.token_ids, number, self._eos)
        num_cached = (request.num_cached or 0) if not request.token_ids else 0
        request.token_ids.append(token_id)
        is_full = len(request.token_ids) == request.sampling.max_new_tokens
        ended = (
            "eos"
            if token_id == EOS and not request.sampling.ignore_eos
            else "length"
            if is_full
            else None
        )
        return Drawn(key, token_id, -1.0 - token_id % 3, ended, num_cached)  # type: ignore[arg-type]

    def _count(self) -> None:
        """What was computed is cached from now on."""
        for request in self.requests.values():
            for end in range(PAGE, request.num_computed + 1, PAGE):
                self._cached.add(tuple(request.ids[:end]))
        self.most_pages = max(self.most_pages, self.pages_in_use())
        assert self.pages_in_use() <= self.num_pages, "more pages than there are"

    def pages_in_use(self) -> int:
        shared: set[tuple[int, ...]] = set()
        num_own = 0
        for request in self.requests.values():
            cached = request.num_cached or 0
            shared.update(tuple(request.ids[:end]) for end in range(PAGE, cached + 1, PAGE))
            num_own += -(-(request.num_computed - cached) // PAGE)
        return len(shared) + num_own

    def abort(self, keys: Sequence[int]) -> None:
        for key in keys:
            del self.requests[key]

    def shutdown(self) -> None:
        self.requests.clear()


class Bytes:
    """The codec of `fakes`."""

    special_tokens = "text"
    token_bytes = 1

    def encode(self, prompt: Prompt) -> list[int]:
        return [BOS, *"\n".join(message["content"] for message in as_messages(prompt)).encode()]

    def detokenizer(self, prompt: Prompt) -> ByteReader:
        return ByteReader()

    def decode(self, token_ids: Sequence[int]) -> str:
        return text_of(token_ids)


def paged_engine(backend: FakeBackend, **options: Any) -> PagedEngine:
    """An engine over it, with ten bytes a token."""
    codec: Any = Bytes()
    return PagedEngine(
        backend, codec, **{"bytes_per_token": 10, "flops": FLOPS, "context_tokens": 400, **options}
    )
