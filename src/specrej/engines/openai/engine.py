"""Candidates over a server's completions: chunk by chunk on a fixed grid of positions, a token a
step.

engine = OpenAIEngine(server, codec, vocabulary, shape)
# read once: candidates find it in the server's prefix cache
prompt = engine.open(ids, sampling, budget_bytes)
engine.add(prompt, range(8))
engine.step()  # a token for each; a chunk is asked for when there are none left

A chunk ends at a multiple of `chunk_tokens`, whenever decisions are made, and its seed is that of
its candidate and its position, so that a candidate's tokens depend on nobody else's fate. The
chunks of all prompts are asked for side by side. KV is known by arithmetic alone: before a chunk is
asked for, all of it counts.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING

from specrej.attention.layout import Demand
from specrej.engines.base import (
    PROMPTS_IN_TOTAL,
    Memory,
    Overhead,
    Token,
    refuse_hidden_states,
    refuse_middle,
)
from specrej.engines.openai.answers import PartialAnswer, Vocabulary
from specrej.engines.openai.prompts import OpenPrompt
from specrej.engines.openai.replies import Chunk, UnreadableReplyError
from specrej.engines.openai.server import CompletionsServer
from specrej.engines.openai.shape import Shape
from specrej.engines.streams import seeds
from specrej.errors import EngineError, SamplingError, SpecrejError, UsageError
from specrej.hub.tokenizers import TextCodec
from specrej.remote.client import Remote, RemoteError
from specrej.types import Detokenizer, Prompt, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SEED_BITS = 31
"""llama.cpp takes 32, of which one value stands for a random seed."""
_LEAST_BY_TEXT = 4
"""Tokens to ask for at least where only text comes: a character may take so many."""


class OpenAIEngine:
    """Implements `specrej.engines.base.Engine` over a `CompletionsServer` that has been probed."""

    name = "openai"
    can_hold_back = True
    has_hidden_states = False
    most_candidates = 1 << 20

    def __init__(
        self,
        server: CompletionsServer,
        codec: TextCodec,
        vocabulary: Vocabulary,
        shape: Shape,
        version: str = "",
    ) -> None:
        self.context_tokens = shape.context_tokens
        self.flops = shape.flops
        self.layout = shape.layout
        self.capacity_bytes = shape.capacity_bytes
        self._server, self._codec, self._vocabulary, self._shape = server, codec, vocabulary, shape
        self._version = version
        self._prompts: dict[int, OpenPrompt] = {}
        self._handles, self._numbers = count(), count(1)
        self._remote: Remote | None = None
        self._arrived: SimpleQueue[tuple[int, int]] = SimpleQueue()
        """Prompt and number of requests that are over."""
        self._accepted: set[str] = set()
        """Sampling options beyond the standard that the server did not refuse."""

    def describe(self) -> Mapping[str, str]:
        server = self._server
        return {
            "engine": self.name,
            "model": self._shape.name,
            "served_model": server.model,
            "url": server.place.shown,
            "special_tokens": self._codec.special_tokens,
            "continued_by": "token ids" if server.gives_ids else "text",
            "chunk_tokens": str(self._shape.chunk_tokens),
            "logprobs": "reported" if server.gives_logprobs else "not reported",
            "cached_tokens": "reported" if server.gives_cached else "not reported",
            "kv_bytes": "16 bits a number, assumed"
            if self._shape.bytes_per_token > 1
            else "counted in tokens",
        }

    def versions(self) -> Mapping[str, str]:
        import transformers

        given = {"server": self._version} if self._version else {}
        return {**given, "transformers": transformers.__version__}

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
        # A chunk is asked for as a whole. The KV of its last token is made when the next one is.
        num_slots = max(self._shape.on_grid(num_new_tokens) - 1, 0)
        return self.layout.peak_bytes(num_prompt_tokens, num_candidates, num_slots)

    def default_budget(
        self, num_prompt_tokens: int, max_new_tokens: int, total_bytes: int | None = None
    ) -> int:
        """All that is free now, or an eighth of the total."""
        return (
            self.default_total(max_new_tokens)
            if total_bytes is None
            else total_bytes // PROMPTS_IN_TOTAL
        )

    def default_total(self, max_new_tokens: int) -> int:
        """What the server's KV cache has free now, or `kv_tokens`.

        Raises:
            UsageError: neither is known.
        """
        capacity = self._server.capacity() if self._shape.kv_tokens is None else None
        if self._shape.kv_tokens is not None:
            num_tokens = self._shape.kv_tokens
        elif capacity is not None:
            num_tokens = int(capacity.tokens * (1 - capacity.used))
        else:
            raise UsageError(
                f"{self._server.place.shown} does not say how much KV it holds, so there is no "
                "default budget",
                hint="give --memory, or --engine-args '{\"kv_tokens\": N}', the tokens that its "
                "cache holds",
            )
        wanted = num_tokens * self.layout.bytes_per_token
        return wanted if self.capacity_bytes is None else min(wanted, self.capacity_bytes)

    def check_sampling(self, sampling: SamplingParams) -> None:
        self._server.check(sampling, self._shape.chunk_tokens, self._vocabulary.size)

    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        handle, ids = next(self._handles), list(prompt_ids)
        prompt = OpenPrompt(
            ids, sampling, ids if self._server.gives_ids else self._vocabulary.prompt_text(ids)
        )
        # Beside others, whose tokens come meanwhile, it is read before its first chunk.
        waits = not self._prompts or not self._accepted.issuperset(self._server.extras(sampling))
        self._remote = self._remote or self._server.connect()
        self._prompts[handle] = prompt
        prompt.peak_bytes = self._held(prompt)
        try:
            if waits:
                self._ask(handle, prompt)
            while prompt.running:
                self._take()
            if prompt.failure is not None:
                raise prompt.failure
        except BaseException:
            self.close(handle)
            raise
        if waits:
            self._accepted.update(self._server.extras(sampling))
        return handle

    def num_shared(self, prompt: int) -> int:
        return self._prompts[prompt].num_shared

    def add(self, prompt: int, indices: Sequence[int]) -> None:
        self._prompts[prompt].live.update({index: PartialAnswer(index) for index in indices})

    def fork(self, prompt: int, parents: Sequence[int], indices: Sequence[int]) -> None:
        opened = self._prompts[prompt]
        refuse_middle(self.name, opened.sampling)
        for parent, index in zip(parents, indices, strict=True):
            opened.live[index] = opened.live[parent].fork(index, self._vocabulary)

    def hold(self, prompt: int, indices: Sequence[int]) -> None:
        self._prompts[prompt].held = set(indices)

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        wanted = (
            self._prompts
            if limits is None
            else {handle: self._prompts[handle] for handle in limits}
        )
        live = {handle: prompt for handle, prompt in wanted.items() if prompt.stepping}
        self._ask_all(live)
        while live and not (
            self._arrived.empty() and any(prompt.is_ready for prompt in live.values())
        ):
            self._take()
            self._ask_all(live)
        return [
            token
            for handle, prompt in live.items()
            if prompt.is_ready
            for token in prompt.give(handle)
        ]

    def _ask_all(self, prompts: Mapping[int, OpenPrompt]) -> None:
        for handle, prompt in prompts.items():
            if not prompt.running and not prompt.is_ready:
                self._ask(handle, prompt)

    def _ask(self, handle: int, prompt: OpenPrompt) -> None:
        """Begin what a prompt needs next: to be read, or a chunk for each of its candidates."""
        if not prompt.is_read:
            self._send(handle, prompt, None, prompt.sent, num_tokens=1, position=0)
            return
        for answer in prompt.stepping:
            if answer.position == answer.target:
                end = self._shape.on_grid(answer.position + 1)
                answer.target = min(end, prompt.sampling.max_new_tokens)
        prompt.peak_bytes = max(prompt.peak_bytes, self._held(prompt))
        for answer in prompt.stepping:
            if prompt.failure is not None:
                answer.fail(prompt.failure)
            self._go_on(handle, prompt, answer)

    def _go_on(self, handle: int, prompt: OpenPrompt, answer: PartialAnswer) -> None:
        """Ask for the rest of an answer's chunk, if there is a rest."""
        missing = answer.target - len(answer.ids)
        if answer.is_done or missing <= 0:
            return
        if answer.ids and (prompt.sampling.frequency_penalty or prompt.sampling.presence_penalty):
            answer.lost = "the server gave a part of the answer, and would count its tokens anew"
            return
        sent = (
            prompt.sent + answer.text if isinstance(prompt.sent, str) else prompt.sent + answer.ids
        )
        self._send(handle, prompt, answer, sent, num_tokens=missing, position=len(answer.ids))

    def _send(
        self,
        handle: int,
        prompt: OpenPrompt,
        answer: PartialAnswer | None,
        sent: str | list[int],
        *,
        num_tokens: int,
        position: int,
    ) -> None:
        assert self._remote is not None
        number = next(self._numbers)
        # The reading of a prompt makes a token that nobody uses: any seed will do.
        index = 0 if answer is None else answer.index
        [seed] = seeds(prompt.sampling.seed, [index], position, bits=_SEED_BITS)
        asked = self._server.ask(
            self._remote,
            sent,
            num_tokens=self._num_asked(num_tokens),
            seed=seed,
            sampling=prompt.sampling,
        )
        future = self._remote.start(asked)
        prompt.running[number] = (answer, future)
        if answer is not None:
            answer.request = number
        future.add_done_callback(lambda _: self._arrived.put((handle, number)))

    def _num_asked(self, missing: int) -> int:
        return missing if self._server.gives_ids else max(missing, _LEAST_BY_TEXT)

    def _take(self) -> None:
        """Wait for a request to be over, and take what came of it.

        Raises:
            EngineError: every other request will fail like it.
        """
        handle, number = self._arrived.get()
        prompt = self._prompts.get(handle)
        answer, future = (prompt.running.pop(number, None) if prompt else None) or (None, None)
        if prompt is None or future is None:
            return  # nobody wants it any more
        try:
            chunk = future.result()
        except (RemoteError, UnreadableReplyError) as error:
            self._fail(prompt, answer, error)
            return
        if prompt.sampling.top_logprobs and not all(chunk.top_logprobs or [()]):
            self._lose(
                prompt,
                answer,
                SamplingError(
                    f"{self._server.place.shown} does not name the likeliest tokens by id",
                    hint="leave out top_logprobs, or give --engine torch or vllm",
                ),
            )
            return
        if answer is None:
            prompt.is_read = True
            prompt.num_shared = chunk.num_cached or 0
            return
        answer.request = 0
        self._count(prompt, answer, chunk)
        answer.take(
            chunk,
            num_asked=self._num_asked(answer.target - len(answer.ids)),
            vocabulary=self._vocabulary,
            by_text=not self._server.gives_ids,
            prompt=prompt.sent if isinstance(prompt.sent, str) else "",
        )
        prompt.unused_tokens += answer.cut(prompt.sampling.max_new_tokens)
        self._go_on(handle, prompt, answer)

    def _fail(
        self,
        prompt: OpenPrompt,
        answer: PartialAnswer | None,
        error: RemoteError | UnreadableReplyError,
    ) -> None:
        """Take note of a request that failed."""
        if isinstance(error, RemoteError):
            failure = self._server.failure(error, prompt.sampling)
            if error.is_common:
                raise EngineError(str(failure), hint=failure.hint) from error
        else:
            failure = EngineError(
                f"{self._server.place.shown} replied what cannot be read: {error}"
            )
        failure.__cause__ = error
        self._lose(prompt, answer, failure)

    @staticmethod
    def _lose(prompt: OpenPrompt, answer: PartialAnswer | None, failure: SpecrejError) -> None:
        """A candidate is lost, or all of a prompt that could not be read."""
        if answer is None:
            prompt.is_read, prompt.failure = True, failure
        else:
            answer.fail(failure)

    def _count(self, prompt: OpenPrompt, answer: PartialAnswer, chunk: Chunk) -> None:
        """Count what was read again, as far as the server tells."""
        if chunk.num_cached is None:
            return
        self._server.gives_cached = True
        num_read = len(prompt.ids) + len(answer.ids) if chunk.num_read is None else chunk.num_read
        # Of what is sent, only an answer's newest token was never read before.
        prompt.reread_tokens += max(num_read - chunk.num_cached - bool(answer.ids), 0)

    def hidden_states(self, prompt: int) -> "Mapping[int, NDArray[np.float32]]":
        refuse_hidden_states(self.name)

    def overhead(self, prompt: int) -> Overhead:
        opened = self._prompts[prompt]
        return Overhead(unused_tokens=opened.unused_tokens, reread_tokens=opened.reread_tokens)

    def memory(self, prompt: int) -> Memory:
        opened = self._prompts[prompt]
        held, grown = self._held(opened), self._held(opened, num_more=1)
        return Memory(held, max(held, grown), max(opened.peak_bytes, held))

    def _held(self, prompt: OpenPrompt, num_more: int = 0) -> int:
        """KV of a prompt and its candidates with all that was asked for, or so many tokens more."""
        ends = [max(one.target, one.position + num_more) for one in prompt.live.values()]
        longest = max(ends, default=0)
        return self.kv_bytes(len(prompt.ids), len(prompt.live) if longest else 0, longest)

    def demand(self, prompt: int) -> Demand:
        memory = self.memory(prompt)
        return Demand(memory.in_use, memory.next_step, memory.next_step, 0)

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        opened = self._prompts[prompt]
        for index in indices:
            answer = opened.live.pop(index, None)
            if answer is None:
                continue
            opened.unused_tokens += max(len(answer.ids) - answer.position, 0)
            if answer.request in opened.running:
                opened.running.pop(answer.request)[1].cancel()

    def close(self, prompt: int) -> None:
        for _, future in self._prompts.pop(prompt).running.values():
            future.cancel()
        if not self._prompts and self._remote is not None:
            self._remote.close()
            self._remote = None

    def shutdown(self) -> None:
        """Close the prompts and the connections."""
        for prompt in list(self._prompts):
            self.close(prompt)
        self._server.close()
