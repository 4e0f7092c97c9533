"""A prompt at work in an engine: its handle, its memory, and what its work costs.

    prompt = PromptEngine(engine, prompt_ids, sampling, usage, clock)
    prompt.open(budget_bytes)
    prompt.add([0, 1])
    prompt.fork([0], [2])
    prompt.drop([1])
    prompt.close()

Whatever an engine raises here is an error of the engine's: see `checks.engine_at_work`.
"""

from collections.abc import Sequence

from specrej.attention.layout import Demand
from specrej.engines.base import Engine, Memory
from specrej.search.checks import engine_at_work
from specrej.search.clock import Clock
from specrej.types import Detokenizer, Prompt, SamplingParams, Usage


class PromptEngine:
    """An engine and what it holds of one prompt.

    Args:
        engine: decodes.
        prompt_ids: the prompt.
        sampling: how candidates are drawn.
        usage: takes what the engine's work cost.
        clock: takes how long the prefill took.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        usage: Usage,
        clock: Clock,
    ) -> None:
        self._engine, self._prompt_ids, self._sampling = engine, prompt_ids, sampling
        self._usage, self._clock = usage, clock
        self._handle: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the engine holds something of this prompt."""
        return self._handle is not None

    @property
    def handle(self) -> int:
        """The engine's number for this prompt, while it is open."""
        assert self._handle is not None
        return self._handle

    def open(self, budget_bytes: int) -> None:
        """Prefill the prompt; it and its candidates stay within so many bytes of KV."""
        with self._clock.span("prefill_s"), engine_at_work():
            self._handle = self._engine.open(self._prompt_ids, self._sampling, budget_bytes)
        self._usage.shared_prompt_tokens = self._engine.num_shared(self._handle)

    def close(self) -> None:
        """Free what the engine holds."""
        if self._handle is not None:
            self._engine.close(self._handle)
            self._handle = None

    @engine_at_work()
    def detokenizer(self, prompt: Prompt) -> Detokenizer:
        """What reads one answer."""
        return self._engine.detokenizer(prompt)

    @engine_at_work()
    def add(self, indices: Sequence[int]) -> None:
        """Begin candidates."""
        self._engine.add(self.handle, indices)

    @engine_at_work()
    def fork(self, parents: Sequence[int], indices: Sequence[int]) -> None:
        """Begin copies of candidates that are live."""
        self._engine.fork(self.handle, parents, indices)

    @engine_at_work()
    def hold(self, indices: Sequence[int]) -> None:
        """Let these wait, and all others go on."""
        self._engine.hold(self.handle, indices)

    @engine_at_work()
    def drop(self, indices: Sequence[int]) -> None:
        """End candidates that are live."""
        self._engine.drop(self.handle, indices)

    @engine_at_work()
    def memory(self) -> Memory:
        """KV held for this prompt."""
        return self._engine.memory(self.handle)

    @engine_at_work()
    def demand(self, most_bytes: int) -> Demand:
        """What the prompt takes of memory that prompts share; `most_bytes` is the most that it will
        ever hold.
        """
        if self._engine.can_hold_back:
            return self._engine.demand(self.handle)
        return Demand(most_bytes, most_bytes, most_bytes, 0)

    @engine_at_work()
    def note(self) -> None:
        """Write down what the engine says of its work so far."""
        self._usage.peak_kv_bytes = self.memory().peak
        overhead = self._engine.overhead(self.handle)
        self._usage.unused_tokens = overhead.unused_tokens
        self._usage.reread_tokens = overhead.reread_tokens
        self._usage.num_preemptions = overhead.num_preemptions
