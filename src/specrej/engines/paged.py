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

A fork is a request whose prompt is the prompt and what it began with. So is a candidate that was
held: its request is aborted meanwhile, and a token that it got early is drawn again. Either reads
what of its last page is not in the cache.

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
    refuse_middle,
)
from specrej.engines.streams import seeds
from specrej.flops import ModelFlops
from specrej.hub.tokenizers import TextCodec
from specrej.types import Detokenizer, Prompt, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CANDIDATES_ON_A_CPU = 8


@dataclass
class _Candidate:
    """Its tokens so far, and those in `ahead` that were not asked for yet."""

    index: int
    token_ids: list[int] = field(default_factory=list)
    ahead: deque[Drawn] = field(default_factory=deque)
    num_sent: int = 0
    """Tokens of the answer that its request began with."""

    @property
    def num_received(self) -> int:
        return len(self.token_ids) + len(self.ahead)


@dataclass
class _Prompt:
    """A prompt with its live candidates, by key of their requests."""

    ids: list[int]
    sampling: SamplingParams
    budget_bytes: int
    is_read: bool = False
    reading_key: int = -1
    waiting: list[_Candidate] = field(default_factory=list)
    """Candidates that have no request yet."""
    held: list[_Candidate] = field(default_factory=list)
    """Candidates that shall have none for now."""
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
    def steps(self) -> bool:
        """Whether a candidate waits for a token."""
        return bool(self.live or self.waiting)

    def candidates(self) -> list[_Candidate]:
        """All that are live."""
        return [*self.live.values(), *self.waiting, *self.held]


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
        prompt = _Prompt(list(prompt_ids), sampling, budget_bytes, preemptions_before=before)
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
        if not opened.candidates():
            if opened.num_waves:  # what was cached of it may be gone
                self._read(prompt, opened)
            opened.num_waves += 1
        opened.waiting += map(_Candidate, indices)

    def fork(self, prompt: int, parents: Sequence[int], indices: Sequence[int]) -> None:
        opened = self._prompts[prompt]
        refuse_middle(self.name, opened.sampling)
        token_ids = {one.index: one.token_ids for one in opened.candidates()}
        opened.waiting += [
            _Candidate(index, list(token_ids[parent]))
            for parent, index in zip(parents, indices, strict=True)
        ]

    def hold(self, prompt: int, indices: Sequence[int]) -> None:
        opened, held = self._prompts[prompt], set(indices)
        if held:
            refuse_middle(self.name, opened.sampling)
        stopped = {key: one for key, one in opened.live.items() if one.index in held}
        self._take_out(opened, stopped)
        without = [*opened.waiting, *opened.held, *stopped.values()]
        opened.held = [one for one in without if one.index in held]
        opened.waiting = [one for one in without if one.index not in held]

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        wanted = (
            self._prompts
            if limits is None
            else {handle: self._prompts[handle] for handle in limits}
        )
        live = {handle: prompt for handle, prompt in wanted.items() if prompt.steps}
        has_advanced = False
        while live and not any(prompt.is_ready for prompt in live.values()):
            if has_advanced and any(map(self._is_full, live.values())):
                return []  # one more was announced: before another, whoever asks may decide
            self._submit()
            self._advance()
            has_advanced = True
        return [
            token
            for handle, prompt in live.items()
            if prompt.is_ready
            for token in self._give(handle, prompt)
        ]

    def _is_full(self, prompt: _Prompt) -> bool:
        """Whether the next step of the backend would exceed the prompt's budget."""
        return self._held_bytes(prompt, num_more=1) > prompt.budget_bytes

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
            for candidate in prompt.waiting:
                key = next(self._keys)
                self._owners[key] = handle
                prompt.live[key] = candidate
                self._send(key, prompt, candidate)
            prompt.waiting = []

    def _send(self, key: int, prompt: _Prompt, candidate: _Candidate) -> None:
        """Queue the request that goes on from a candidate's tokens."""
        sampling, num_tokens = prompt.sampling, len(candidate.token_ids)
        candidate.num_sent = num_tokens
        bits = self.backend.seed_bits
        [seed] = seeds(sampling.seed, [candidate.index], num_tokens, bits=bits)
        rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - num_tokens)
        self.backend.submit(key, [*prompt.ids, *candidate.token_ids], rest, seed)

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
            if candidate.num_received == candidate.num_sent:
                num_read = len(prompt.ids) + candidate.num_sent - drawn.num_cached
                # Of what is sent, only an answer's newest token was never read before.
                prompt.reread_tokens += max(num_read - bool(candidate.num_sent), 0)
            candidate.ahead.append(drawn)
        for prompt in self._prompts.values():
            prompt.peak_bytes = max(prompt.peak_bytes, self._held_bytes(prompt))

    def _give(self, handle: int, prompt: _Prompt) -> list[Token]:
        tokens = []
        for key, candidate in list(prompt.live.items()):
            drawn = candidate.ahead.popleft()
            if drawn.logprob is None or math.isfinite(drawn.logprob):
                _, token_id, logprob, reason, _, top = drawn
                candidate.token_ids.append(token_id)
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
        ahead_tokens = max((len(one.ahead) for one in opened.live.values()), default=0)
        return Memory(held, next_step, max(opened.peak_bytes, held), ahead_tokens)

    def demand(self, prompt: int) -> Demand:
        memory = self.memory(prompt)
        return Demand(memory.in_use, memory.next_step, memory.next_step, 0)

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        opened, gone = self._prompts[prompt], set(indices)
        opened.waiting = [one for one in opened.waiting if one.index not in gone]
        opened.held = [one for one in opened.held if one.index not in gone]
        self._take_out(opened, {key: one for key, one in opened.live.items() if one.index in gone})

    def _take_out(self, prompt: _Prompt, candidates: Mapping[int, _Candidate]) -> None:
        """End the requests of these candidates, by key; what they got early is not used."""
        for key, candidate in candidates.items():
            prompt.unused_tokens += len(candidate.ahead)
            candidate.ahead.clear()
            del prompt.live[key]
        self._abort(key for key in candidates if key in self._owners)

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
        if not prompt.candidates():
            return 0 if prompt.is_read else self.layout.peak_bytes(len(prompt.ids), 0, 0)
        stepping = [one for key, one in prompt.live.items() if key in self._owners]
        lengths = [one.num_received + num_more for one in (*stepping, *prompt.waiting)]
        lengths += [one.num_received for one in prompt.held]  # their room is theirs
        drawn = Counter(length for length in lengths if length)
        if not drawn:
            return 0
        longest, num_prompt = max(drawn), len(prompt.ids)
        shorter = sum(
            count * (self.kv_bytes(num_prompt, 2, length) - self.kv_bytes(num_prompt, 1, length))
            for length, count in drawn.items()
            if length < longest
        )
        return self.kv_bytes(num_prompt, drawn[longest], longest) + shorter
