"""OpenVINO GenAI's continuous batching as a backend: a candidate is a chain of requests, each for
one page of KV.

    backend = OpenVinoBackend(pipeline, measure(pipeline, filler_id), filler_id=filler_id, **limits)
    backend.submit(key, prompt_ids, sampling, seed)
    for drawn in backend.step(): ...

A request ends where its page is full, and the next one goes on from its prompt and tokens, whose
pages it finds in the prefix cache: nothing is read twice. The reason is when pages are free.
OpenVINO frees those of a request that is cancelled at the end of the next step, those of one that
has ended at once. A full budget decides where pages are full, so whom it rejects has no request any
more. Who is dropped within a page keeps it through one more step, in which those that stay need no
new one. Each request of a chain draws from a seed of its own, a function of the candidate's seed
and the number of tokens it has.

OpenVINO lets two requests write to a page that they share, where both are begun in one step and go
on differently from what a page holds in part. Prompts that could meet like this are begun in steps
one after the other.

A row alone is computed by other kernels than a row among others, and OpenVINO draws from a heap,
whose order turns with the last bits. So no row is ever alone, a filler is computed beside it (in
the same time), and tokens are sorted before one is drawn.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from specrej.engines.backend import Drawn
from specrej.engines.base import EXTRA_WAYS, refuse_ways
from specrej.engines.constraints import refuse_constraint
from specrej.engines.openvino_prompts import KnownPrompts
from specrej.engines.streams import seeds
from specrej.errors import EngineError
from specrej.types import FinishReason, SamplingParams

MOST_PAGE_TOKENS = 128
"""No device has larger pages."""
_REQUEST_SEED_BITS = 32
"""Of the seed of OpenVINO's generator, a Mersenne Twister."""
_NEARLY_ALL = 1 - 2**-24
"""The largest top_p that OpenVINO sorts for. What it leaves out has a probability of 1e-7 at
most."""
_NEARLY_NONE = 1e-6
"""A top_p that keeps the likeliest token alone."""


class Cache(NamedTuple):
    """KV of a pipeline, as measured."""

    page_tokens: int
    num_pages: int
    bytes_per_token: int


def measure(pipeline: Any, filler_id: int, num_pages: int | None = None) -> Cache:
    """The cache of a new pipeline: what two requests of known length take of it.

    Args:
        pipeline: not used so far.
        filler_id: a token that no prompt begins with.
        num_pages: where it was asked for; else the first request, of one page, tells.
    """
    shares = []
    for num_tokens in (1, MOST_PAGE_TOKENS):
        handle = pipeline.add_request(
            num_tokens, _tensor([filler_id] * num_tokens), _filler_config()
        )
        pipeline.step()
        handle.read()
        shares.append(pipeline.get_metrics().cache_usage / 100)
    num_pages = num_pages or round(1 / shares[0])
    page_tokens = MOST_PAGE_TOKENS // round(shares[1] * num_pages)
    page_bytes = pipeline.get_metrics().cache_size_in_bytes / num_pages
    return Cache(page_tokens, num_pages, round(page_bytes / page_tokens))


@dataclass
class _Candidate:
    """What has a key: a chain of requests, of which at most one is under way."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    token_ids: list[int] = field(default_factory=list)
    num_cached: int = 0
    """Tokens of the prompt that were in the cache when it began."""

    @property
    def num_drawn(self) -> int:
        return len(self.token_ids)

    @property
    def num_left(self) -> int:
        return self.sampling.max_new_tokens - self.num_drawn


class OpenVinoBackend:
    """Implements `specrej.engines.backend.Backend` with a `ContinuousBatchingPipeline`, which
    belongs to it from here on.

    Args:
        pipeline: with prefix caching, and with steps that hold every prompt whole: a page of a
            prompt that is read in pieces counts as cached before all of it is there.
        cache: of the pipeline.
        filler_id: a token that no prompt begins with; the one it was measured with.
        most_requests: most requests that are computed side by side.
        step_tokens: most tokens of different prompts that are read in one step.
        eos_ids: tokens that end an answer.
        is_on_cpu: whether it computes there.
        description: see `describe`.
        versions: of what computes.
    """

    name = "openvino"
    seed_bits = 63
    num_preemptions = 0
    """OpenVINO does not tell; it has no cause, since requests never need more pages than there
    are."""

    def __init__(
        self,
        pipeline: Any,
        cache: Cache,
        *,
        filler_id: int,
        most_requests: int,
        step_tokens: int,
        eos_ids: frozenset[int],
        is_on_cpu: bool,
        description: Mapping[str, str],
        versions: Mapping[str, str],
    ) -> None:
        self.page_tokens, self.num_pages = (
            cache.page_tokens,
            cache.num_pages - 1,
        )  # one is the filler's
        self.most_requests, self.is_on_cpu = most_requests, is_on_cpu
        self._pipeline, self._cache, self._filler_id = pipeline, cache, filler_id
        self._step_tokens, self._eos_ids = step_tokens, eos_ids
        self._description, self._versions = description, versions
        self._candidates: dict[int, _Candidate] = {}
        self._waiting: dict[int, None] = {}
        """Keys that have had no request yet, in order."""
        self._between: dict[int, None] = {}
        """Keys whose last request has filled its page."""
        self._running: dict[int, Any] = {}
        """Handle of the request that is under way, by key."""
        self._num_requests = 0
        self._has_filler = False
        self._known = KnownPrompts(cache.page_tokens, cache.num_pages)
        for num_tokens in (1, MOST_PAGE_TOKENS):
            self._known.add((filler_id,) * num_tokens)
        self._end = weakref.finalize(self, _cancel_all, pipeline, self._running)

    def describe(self) -> Mapping[str, str]:
        return self._description

    def versions(self) -> Mapping[str, str]:
        return self._versions

    def check_sampling(self, sampling: SamplingParams) -> None:
        check_drawing(sampling)

    def submit(
        self, key: int, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int
    ) -> None:
        self._candidates[key] = _Candidate(tuple(prompt_ids), sampling, seed)
        self._waiting[key] = None

    def step(self) -> Iterator[Drawn]:
        self._begin()
        self._has_filler = len(self._running) == 1
        filler = self._add([self._filler_id], _filler_config()) if self._has_filler else None
        self._advance()
        del filler  # a request ends where nobody has its handle
        for key, handle in list(self._running.items()):
            if handle.get_status().name == "IGNORED":
                raise EngineError(
                    "OpenVINO ran out of KV cache", hint="give engine_args a larger cache_size"
                )
            if handle.can_read():
                yield from self._draw(key, handle)

    def _advance(self) -> None:
        try:
            self._pipeline.step()
        except Exception as error:  # the pipeline is not to be used any more
            raise EngineError(f"OpenVINO failed in a step: {last_line(error)}") from error

    def _begin(self) -> None:
        """Make requests for all that go on or begin with this step; OpenVINO lets those wait
        that find no page.
        """
        for key in [*self._between, *self._next_prompts()]:
            self._between.pop(key, None)
            self._waiting.pop(key, None)
            candidate = self._candidates[key]
            ids = [*candidate.prompt, *candidate.token_ids]
            to_page_end = (
                -len(ids) % self.page_tokens + 1
            )  # what a request draws last is not in the cache when it ends
            num_tokens = min(candidate.num_left, to_page_end)
            self._running[key] = self._add(
                ids, _generation_config(candidate, num_tokens, self._eos_ids)
            )

    def _next_prompts(self) -> list[int]:
        """Keys of the prompts that may be read in one step, and of their candidates; the oldest
        is among them.
        """
        chosen: set[tuple[int, ...]] = set()
        keys, room = [], self._step_tokens
        for key in self._waiting:
            candidate = self._candidates[key]
            prompt = candidate.prompt
            if prompt not in chosen:
                if chosen and (
                    len(prompt) > room
                    or any(self._known.may_clash(prompt, other) for other in chosen)
                ):
                    continue
                chosen.add(prompt)
                room -= len(prompt)
            candidate.num_cached = self._known.count(prompt)
            keys.append(key)
        return keys

    def _add(self, ids: Sequence[int], config: Any) -> Any:
        self._num_requests += 1
        try:
            return self._pipeline.add_request(self._num_requests, _tensor(ids), config)
        except Exception as error:
            raise EngineError(f"OpenVINO refuses a request: {last_line(error)}") from error

    def _draw(self, key: int, handle: Any) -> Iterator[Drawn]:
        """What a request was given in the last step: a token, or none while it waits."""
        candidate = self._candidates[key]
        (output,) = handle.read().values()
        has_ended = output.finish_reason.name != "NONE"
        for token_id, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
            is_first = not candidate.num_drawn
            if is_first:
                self._known.add(candidate.prompt)
            candidate.token_ids.append(token_id)
            reason: FinishReason | None = None if candidate.num_left else "length"
            if output.finish_reason.name == "STOP":
                reason = "eos"
            if has_ended:
                del self._running[key]
                if reason is None:
                    self._between[key] = None
                else:
                    del self._candidates[key]
            # Its sum over the vocabulary is off by up to 1e-4, which shows where a token is
            # certain.
            yield Drawn(
                key, token_id, min(logprob, 0.0), reason, candidate.num_cached if is_first else 0
            )

    def abort(self, keys: Sequence[int]) -> None:
        """See `specrej.engines.backend.Backend`. Pages of who is dropped within one are free after
        the next step.
        """
        for key in keys:
            del self._candidates[key]
            self._waiting.pop(key, None)
            self._between.pop(key, None)
            if key in self._running:
                self._running.pop(key).cancel()
        if not self._running:
            self._has_filler = False
            self._advance()  # with nothing to compute

    def shutdown(self) -> None:
        """Cancel what is under way, and let the pipeline go."""
        self._end()
        self._pipeline = None

    def pages_in_use(self) -> int:
        if not self._candidates:
            self._has_filler = False
            # what is measured is how a step begins, and the last requests may have ended in one
            self._advance()
        share: float = self._pipeline.get_metrics().cache_usage / 100
        return round(share * self._cache.num_pages) - self._has_filler


def check_drawing(sampling: SamplingParams) -> None:
    """See that OpenVINO can draw tokens in this way. It has the two penalties, but it counts the
    tokens of one request, which are those of a page here.

    Raises:
        SamplingError: it cannot; says why.
    """
    refuse_ways(OpenVinoBackend.name, sampling, EXTRA_WAYS)
    refuse_constraint(
        sampling,
        OpenVinoBackend.name,
        "a candidate is a chain of requests, and OpenVINO begins a constraint anew with each",
    )


def _tensor(ids: Sequence[int]) -> Any:
    import numpy as np
    import openvino

    return openvino.Tensor(np.array([ids], dtype=np.int64))


def _generation_config(candidate: _Candidate, num_tokens: int, eos_ids: frozenset[int]) -> Any:
    """How a request draws its tokens, so many at most."""
    import openvino_genai

    sampling = candidate.sampling
    (seed,) = seeds(candidate.seed, [0], candidate.num_drawn, bits=_REQUEST_SEED_BITS)
    return openvino_genai.GenerationConfig(
        **_drawing(sampling),
        max_new_tokens=num_tokens,
        repetition_penalty=sampling.repetition_penalty,
        ignore_eos=sampling.ignore_eos or not eos_ids,
        stop_token_ids=set(eos_ids) or {0},  # where there are none it would look for its own
        eos_token_id=min(eos_ids, default=0),
        logprobs=1,
        rng_seed=seed,
    )


def _drawing(sampling: SamplingParams) -> dict[str, Any]:
    """Whether and how tokens are drawn."""
    if sampling.is_greedy:
        return {"do_sample": False}
    # What is 0 or 1 in float32 is refused there.
    top_p, min_p = max(sampling.top_p, _NEARLY_NONE), min(sampling.min_p, _NEARLY_ALL)
    return {
        "do_sample": True,
        "temperature": sampling.divisor,
        "top_k": sampling.top_k,  # 0 is all there too
        "top_p": min(top_p, _NEARLY_ALL) if sampling.top_k else top_p,
        "min_p": min_p,
    }


def _filler_config() -> Any:
    import openvino_genai

    return openvino_genai.GenerationConfig(
        max_new_tokens=1, ignore_eos=True, stop_token_ids={0}, eos_token_id=0
    )


def last_line(error: BaseException) -> str:
    """Of an error of OpenVINO, which begins with where it comes from and ends with what it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _cancel_all(pipeline: Any, running: dict[int, Any]) -> None:
    """End what is under way when the backend is gone: OpenVINO complains on the terminal of
    pages that are in use.
    """
    if running:
        for handle in running.values():
            handle.cancel()
        running.clear()
        with suppress(Exception):
            pipeline.step()
