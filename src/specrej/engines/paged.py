"""An engine over somebody else's: one request a candidate, KV in pages, every request a token at
each step.

vLLM and OpenVINO GenAI (in process) schedule requests by themselves. This engine gives them the
candidates, keeps the tokens, and knows by arithmetic what the next step will hold, so that a
decision comes before their cache is full and nothing is ever preempted. What is theirs stands
behind `Backend`:

    # a candidate, or a prompt that is read ahead of its candidates
    backend.submit(key, prompt_ids, sampling, seed)
    for drawn in backend.step(): ...                      # tokens, by key
    backend.abort([key])                                 # its pages are free

A prompt is read once, as a request of one token: its candidates find its full pages in the
backend's prefix cache, and each reads the rest of it, less than a page, by itself.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

from specrej.attention.layout import Demand, KvLayout
from specrej.engines.backend import Backend, Drawn
from specrej.engines.base import (
    PROMPTS_IN_TOTAL,
    Memory,
    Overhead,
    Token,
    refuse_hidden_states,
)
from specrej.engines.streams import seeds
from specrej.errors import UsageError
from specrej.flops import ModelFlops
from specrej.hub.tokenizers import TextCodec
from specrej.types import Detokenizer, Prompt, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CANDIDATES_ON_A_CPU = 8


@dataclass
class _Candidate:
    """What the backend has given it: `num_received` tokens so far, of which those in `ahead`
    were not asked for yet.
    """

    index: int
    num_received: int = 0
    ahead: deque[Drawn] = field(default_factory=deque)


@dataclass
class _Prompt:
    """A prompt with its live candidates, by key of their requests."""

    ids: list[int]
    sampling: SamplingParams
    is_read: bool = False
    reading_key: int = -1
    waiting: list[int] = field(default_factory=list)
    """Indices of candidates that have no request yet."""
    live: dict[int, _Candidate] = field(default_factory=dict)
    num_waves: int = 0
    peak_bytes: int = 0
    num_shared: int = 0
    unused_tokens: int = 0
    reread_tokens: int = 0
    preemptions_before: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether every live candidate has a token to be given."""
        return self.is_read and not self.waiting and all(one.ahead for one in self.live.values())

    @property
    def has_candidates(self) -> bool:
        return bool(self.live or self.waiting)


class PagedEngine:
    """Implements `specrej.engines.base.Engine` over a backend.

    Args:
        backend: computes.
        codec: the model's tokenizer.
        bytes_per_token: KV of one token, all layers and devices together.
        flops: what the model costs; None where its shape is not known.
        context_tokens: most tokens of prompt and answer together.
    """

    can_hold_back = False
    has_hidden_states = False

    def __init__(
        self,
        backend: Backend,
        codec: TextCodec,
        *,
        bytes_per_token: int,
        flops: ModelFlops | None,
        context_tokens: int,
    ) -> None:
        self.name = backend.name
        self.backend = backend
        self.flops = flops
        self.context_tokens = context_tokens
        self.layout = KvLayout(bytes_per_token, 0, backend.page_tokens, page=backend.page_tokens)
        self.capacity_bytes = backend.num_pages * backend.page_tokens * bytes_per_token
        self.most_candidates = backend.most_requests
        self._codec = codec
        self._prompts: dict[int, _Prompt] = {}
        self._handles, self._keys = count(), count()
        self._owners: dict[int, int] = {}
        """Handle of the prompt of each request that is under way."""

    def describe(self) -> Mapping[str, str]:
        return {
            "engine": self.name,
            **self.backend.describe(),
            "special_tokens": self._codec.special_tokens,
        }

    def versions(self) -> Mapping[str, str]:
        return self.backend.versions()

    @property
    def token_bytes(self) -> int:
        return self._codec.token_bytes

    def encode(self, prompt: Prompt) -> list[int]:
        return self._codec.encode(prompt)

    def detokenizer(self, prompt: Prompt) -> Detokenizer:
        return self._codec.detokenizer(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode(token_ids)

    def kv_bytes(self, num_prompt_tokens: int, num_candidates: int, num_new_tokens: int) -> int:
        # The last token of an answer is never fed back, so its KV is never made.
        return self.layout.peak_bytes(num_prompt_tokens, num_candidates, max(num_new_tokens - 1, 0))

    def default_budget(
        self, num_prompt_tokens: int, max_new_tokens: int, total_bytes: int | None = None
    ) -> int:
        """On a CPU room for 8 full-length candidates; on a GPU the whole cache, or an eighth of
        the total.
        """
        if self.backend.is_on_cpu:
            wanted = self.kv_bytes(num_prompt_tokens, _CANDIDATES_ON_A_CPU, max_new_tokens)
            return min(wanted, self.capacity_bytes)
        return self.capacity_bytes if total_bytes is None else total_bytes // PROMPTS_IN_TOTAL

    def default_total(self, max_new_tokens: int) -> int:
        """The whole cache."""
        return self.capacity_bytes

    def check_sampling(self, sampling: SamplingParams) -> None:
        self.backend.check_sampling(sampling)

    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        handle = next(self._handles)
        before = self.backend.num_preemptions
        prompt = _Prompt(list(prompt_ids), sampling, preemptions_before=before)
        is_alone = not self._owners
        self._prompts[handle] = prompt
        try:
            # Beside others, whose candidates any step takes along, it is read in the next step.
            self._read(handle, prompt)
            while is_alone and not prompt.is_read:
                self._advance()
        except BaseException:
            self.close(handle)
            raise
        return handle

    def _read(self, handle: int, prompt: _Prompt) -> None:
        """Queue the request that brings a prompt's full pages into the prefix cache."""
        prompt.is_read = False
        prompt.reading_key = next(self._keys)
        sampling = replace(prompt.sampling, max_new_tokens=1, ignore_eos=True, constraint=None)
        self.backend.submit(prompt.reading_key, prompt.ids, sampling, seed=0)
        self._owners[prompt.reading_key] = handle

    def num_shared(self, prompt: int) -> int:
        return self._prompts[prompt].num_shared

    def add(self, prompt: int, indices: Sequence[int]) -> None:
        opened = self._prompts[prompt]
        if opened.has_candidates:
            raise UsageError(
                "candidates of a prompt advance together: these begin when those before them have "
                "ended"
            )
        if opened.num_waves:  # what was cached of it may be gone
            self._read(prompt, opened)
        opened.num_waves += 1
        opened.waiting = list(indices)

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        wanted = (
            self._prompts
            if limits is None
            else {handle: self._prompts[handle] for handle in limits}
        )
        live = {handle: prompt for handle, prompt in wanted.items() if prompt.has_candidates}
        while live and not any(prompt.is_ready for prompt in live.values()):
            self._submit()
            self._advance()
        return [
            token
            for handle, prompt in live.items()
            if prompt.is_ready
            for token in self._give(handle, prompt)
        ]

    def _submit(self) -> None:
        """Make requests for candidates of prompts that are read, oldest first, while all of one
        prompt find a place.
        """
        num_free = self.backend.most_requests - len(self._owners)
        for handle, prompt in self._prompts.items():
            if not prompt.is_read or not prompt.waiting:
                continue
            num_free -= len(prompt.waiting)
            if num_free < 0:
                return
            own = seeds(prompt.sampling.seed, prompt.waiting, bits=self.backend.seed_bits)
            for index, seed in zip(prompt.waiting, own, strict=True):
                key = next(self._keys)
                self._owners[key] = handle
                prompt.live[key] = _Candidate(index)
                self.backend.submit(key, prompt.ids, prompt.sampling, seed)
            prompt.waiting = []

    def _advance(self) -> None:
        """One step of the backend: what it gives is kept until it is asked for."""
        for drawn in self.backend.step():
            prompt = self._prompts[self._owners[drawn.key]]
            if drawn.finish_reason:
                del self._owners[drawn.key]
            if drawn.key == prompt.reading_key:
                prompt.is_read = True
                if prompt.num_waves < 2:
                    prompt.num_shared = drawn.num_cached
                else:
                    prompt.reread_tokens += len(prompt.ids) - drawn.num_cached
                continue
            candidate = prompt.live[drawn.key]
            if candidate.num_received == 0:
                prompt.reread_tokens += len(prompt.ids) - drawn.num_cached
            candidate.num_received += 1
            candidate.ahead.append(drawn)
        for prompt in self._prompts.values():
            prompt.peak_bytes = max(prompt.peak_bytes, self._held_bytes(prompt))

    def _give(self, handle: int, prompt: _Prompt) -> list[Token]:
        tokens = []
        for key, candidate in list(prompt.live.items()):
            drawn = candidate.ahead.popleft()
            if drawn.logprob is None or math.isfinite(drawn.logprob):
                _, token_id, logprob, reason, _, top = drawn
                tokens.append(Token(handle, candidate.index, token_id, logprob, reason, "", top))
            else:
                said = f"the model gave its token a log-probability of {drawn.logprob}"
                tokens.append(Token(handle, candidate.index, -1, None, "lost", said))
                prompt.unused_tokens += 1 + len(candidate.ahead)
                self._abort([key] if key in self._owners else [])
            if tokens[-1].finish_reason:
                del prompt.live[key]
        return tokens

    def hidden_states(self, prompt: int) -> "Mapping[int, NDArray[np.float32]]":
        refuse_hidden_states(self.name)

    def overhead(self, prompt: int) -> Overhead:
        opened = self._prompts[prompt]
        num_preemptions = self.backend.num_preemptions - opened.preemptions_before
        return Overhead(opened.unused_tokens, opened.reread_tokens, num_preemptions)

    def memory(self, prompt: int) -> Memory:
        opened = self._prompts[prompt]
        held = self._held_bytes(opened)
        needs_step = not opened.is_ready
        next_step = max(held, self._held_bytes(opened, num_more=1)) if needs_step else held
        return Memory(held, next_step, max(opened.peak_bytes, held))

    def demand(self, prompt: int) -> Demand:
        memory = self.memory(prompt)
        return Demand(memory.in_use, memory.next_step, memory.next_step, 0)

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        opened, gone = self._prompts[prompt], set(indices)
        opened.waiting = [index for index in opened.waiting if index not in gone]
        dropped = {key: one for key, one in opened.live.items() if one.index in gone}
        for key, candidate in dropped.items():
            opened.unused_tokens += len(candidate.ahead)
            del opened.live[key]
        self._abort(key for key in dropped if key in self._owners)

    def close(self, prompt: int) -> None:
        opened = self._prompts[prompt]
        self._abort(key for key in (opened.reading_key, *opened.live) if key in self._owners)
        del self._prompts[prompt]

    def shutdown(self) -> None:
        """Forget the prompts, and end the backend with its requests."""
        self._prompts.clear()
        self._owners.clear()
        self.backend.shutdown()

    def _abort(self, keys: Iterable[int]) -> None:
        aborted = list(keys)
        for key in aborted:
            del self._owners[key]
        if aborted:
            self.backend.abort(aborted)

    def _held_bytes(self, prompt: _Prompt, num_more: int = 0) -> int:
        """KV of a prompt's requests, in whole pages, when each has drawn so many more tokens."""
        if not prompt.has_candidates:
            return 0 if prompt.is_read else self.layout.peak_bytes(len(prompt.ids), 0, 0)
        num_received = [one.num_received for key, one in prompt.live.items() if key in self._owners]
        lengths = [*num_received, *(0 for _ in prompt.waiting)]
        # All of a prompt's candidates have the same length, but for a step or two while long
        # prompts are read: what has not drawn yet is not as long as what has.
        drawn = Counter(length + num_more for length in lengths if length + num_more)
        if not drawn:
            return 0
        longest, num_prompt = max(drawn), len(prompt.ids)
        shorter = sum(
            count * (self.kv_bytes(num_prompt, 2, length) - self.kv_bytes(num_prompt, 1, length))
            for length, count in drawn.items()
            if length < longest
        )
        return self.kv_bytes(num_prompt, drawn[longest], longest) + shorter
