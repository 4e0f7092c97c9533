"""The seam between search and engine. An engine sees tokens only; candidates are numbers to it.

prompt = engine.open(ids, sampling, budget_bytes)    # prefilled once, its KV held once
engine.add(prompt, range(8))                         # eight candidates that share it
output = engine.step()  # one token for every live candidate of every prompt
engine.fork(prompt, [0, 0], [8, 9])                  # two more begin as copies of candidate 0
engine.hold(prompt, [3])                             # it waits, the others go on
engine.drop(prompt, [1, 4])                          # their KV is free now
engine.close(prompt)
engine.shutdown()                                    # the model, too
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from specrej.attention.layout import Demand
from specrej.errors import SamplingError, UsageError
from specrej.options import options_of
from specrej.registry import missing
from specrej.types import Detokenizer, FinishReason, Prompt, SamplingParams, TopLogprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from specrej.attention.layout import KvLayout
    from specrej.flops import ModelFlops


EXTRA_WAYS = ("frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs")
"""Fields of SamplingParams that not every engine has; see `refuse_ways`."""
PROMPTS_IN_TOTAL = 8
"""A prompt's default budget on a GPU, or on a server, is one of so many parts of what prompts
share."""


class Token(NamedTuple):
    """What one step gave one candidate."""

    prompt: int
    """Handle of the prompt."""
    candidate: int
    """The candidate's index among the prompt's candidates."""
    token_id: int
    """-1 for a candidate that is lost."""
    logprob: float | None
    """Log-probability under the model, in nats, before temperature and filters; None where the
    engine is not told."""
    finish_reason: FinishReason | None
    """Set when this token ended the candidate; its KV is free already. "lost": no token came,
    and none will."""
    reason: str = ""
    """Why it is lost."""
    top_logprobs: TopLogprobs | None = None
    """The likeliest tokens in its place, as many as `SamplingParams.top_logprobs` asks for; None
    where it asks for none."""
    cause: Exception | None = None
    """What was raised when it was, if anything."""


class Memory(NamedTuple):
    """KV of one prompt and its candidates, in bytes."""

    in_use: int
    """Allocated now."""
    next_step: int
    """The least that the next step needs, at its highest moment. An engine may take more, within
    the budget."""
    peak: int
    """The most that was ever allocated for this prompt."""
    ahead_tokens: int = 0
    """Most tokens that a candidate has had decoded beyond those that it was given."""


class Overhead(NamedTuple):
    """What a prompt has cost so far beside the tokens that its candidates were given."""

    unused_tokens: int = 0
    """Made ahead of a step that never asked for them: of candidates that were dropped before."""
    reread_tokens: int = 0
    """Tokens of prompt and answers that were read more than once, for want of a cache that held
    them."""
    num_preemptions: int = 0
    """Times that the engine took the KV of a candidate away, to make it anew later."""


class Engine(Protocol):
    """Decodes many candidates of many prompts, one token a step."""

    name: str
    context_tokens: int
    """Most tokens of prompt and answer together."""
    most_candidates: int
    """Most candidates that can be live together."""
    can_hold_back: bool
    """Whether `step(limits)` lets prompts wait, and candidates ask for no more than they hold.
    Where it does not, every prompt in flight reserves what it may ever hold, and all of them
    take a step or none does."""
    has_hidden_states: bool
    layout: "KvLayout"

    @property
    def capacity_bytes(self) -> int | None:
        """KV that the engine can hold for all prompts; None where the device alone decides."""

    @property
    def flops(self) -> "ModelFlops | None":
        """What prefilling and decoding cost; None where the model is not known."""

    @property
    def token_bytes(self) -> int:
        """Most bytes of text (UTF-8) that a token stands for, but for text that the tokenizer
        does not know.
        """

    def describe(self) -> Mapping[str, str]:
        """Engine, model, device, precision: what a figure depends on beside the settings."""

    def versions(self) -> Mapping[str, str]:
        """Versions of what computes."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, through the chat template where there is one; BOS at most once."""

    def detokenizer(self, prompt: Prompt) -> Detokenizer:
        """What reads one answer to this prompt. Where the prompt's text is continued, a first
        space is kept.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens without special ones; the bytes of an unfinished last character
        are left out.

        The same as a detokenizer gives for them one by one.
        """

    def kv_bytes(self, num_prompt_tokens: int, num_candidates: int, num_new_tokens: int) -> int:
        """Most bytes of KV at any moment until that many candidates have that many tokens each."""

    def default_budget(
        self, num_prompt_tokens: int, max_new_tokens: int, total_bytes: int | None = None
    ) -> int:
        """The KV budget of one prompt, in bytes, for a user who gave none; total_bytes is shared
        with other prompts.
        """

    def default_total(self, max_new_tokens: int) -> int:
        """KV of all prompts in flight together, in bytes, for a user who gave neither this nor
        the budget of one.
        """

    def check_sampling(self, sampling: SamplingParams) -> None:
        """See that tokens can be drawn like this, before anything is decoded. From any thread.

        Raises:
            SamplingError: the engine lacks a way of drawing that is asked for (see `refuse_ways`
                and `check_bias`), or what answers must obey means nothing.
        """

    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        """Prefill a prompt; its KV and that of its candidates stay within the budget. Returns
        its handle.
        """

    def num_shared(self, prompt: int) -> int:
        """Tokens of a prompt that is just open which were read before, for a prompt that begins
        alike.
        """

    def add(self, prompt: int, indices: Sequence[int]) -> None:
        """Open new candidates of a prompt, without a token, beside those that are live."""

    def fork(self, prompt: int, parents: Sequence[int], indices: Sequence[int]) -> None:
        """Open new candidates, `indices[i]` as a copy of the live `parents[i]` at its length now.

        A fork draws from the stream of its own index, from its first own position on. Its tokens
        depend on the seed, its index and what it began with alone: its parent may be dropped at
        once. KV is made in the next step: until then it shows in `memory` and `demand` as what is
        needed.

        Raises:
            SamplingError: what answers must obey, or the penalties, cannot be followed from the
                middle of an answer by this engine.
        """

    def hold(self, prompt: int, indices: Sequence[int]) -> None:
        """Of the prompt's live candidates these take no step from now on, and all others do.

        Who is held keeps its tokens, and its room in `memory`. With no indices all go on.

        Raises:
            SamplingError: see `fork`.
        """

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        """One token for every live candidate that is not held, of these prompts, or of all.

        Args:
            limits: the most that each prompt may hold, in bytes; at least what its `demand` calls
                the least.

        A prompt may get nothing while its candidates wait for a place in the engine or for a
        server, never a part of them. May raise DeviceMemoryError; then nothing has changed.
        """

    def hidden_states(self, prompt: int) -> "Mapping[int, NDArray[np.float32]]":
        """The last hidden state `[hidden]` that each candidate's newest token was drawn from.

        Of the candidates that took part in this prompt's last step, those that ended in it
        included.

        Raises:
            UsageError: the engine does not give them.
        """

    def overhead(self, prompt: int) -> Overhead:
        """What an open prompt has cost beside its tokens."""

    def memory(self, prompt: int) -> Memory:
        """What a prompt and its candidates hold."""

    def demand(self, prompt: int) -> Demand:
        """What they take of memory that prompts share."""

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        """End these live candidates; their memory is free when this returns."""

    def close(self, prompt: int) -> None:
        """Free a prompt and all its candidates."""

    def shutdown(self) -> None:
        """Free all that the engine holds: prompts, the model, connections, processes. May be called
        twice.

        Whoever opened the engine calls it. Nothing can be decoded any more.
        """


MEMBERS = sorted(
    {*Engine.__annotations__, *(name for name in vars(Engine) if not name.startswith("_"))}
)
"""What every engine has."""


def as_engine(given: Any, role: str) -> Engine:
    """An engine that is open, whoever wrote it.

    Args:
        given: the engine.
        role: what it was given as, for the error: "model".

    Raises:
        UsageError: it is none, or lacks members, which are named.
    """
    if isinstance(given, type):
        raise UsageError(
            f"{role} must be an engine that is open, got the class {given.__name__}",
            hint=f"open one first: {given.__name__}(...)",
        )
    lacking = missing(given, MEMBERS)
    if not any(hasattr(given, name) for name in ("open", "step")):
        raise UsageError(
            f"{role} must be a name or an engine, got {reprlib.repr(given)} "
            f"({type(given).__name__})",
            hint=f"docs/extending.md has an engine; this one lacks: {lacking}",
        )
    if lacking:
        raise UsageError(
            f"{role} must be an engine; {reprlib.repr(given)} ({type(given).__name__}) lacks: "
            f"{lacking}",
            hint="specrej.engines.base.Engine says what they are; a PagedEngine has them all",
        )
    engine: Engine = given
    return engine


def refuse_hidden_states(engine: str) -> NoReturn:
    raise UsageError(
        f"the engine {engine!r} gives no hidden states",
        hint="the torch engine does: give --engine torch",
    )


def refuse_middle(engine: str, sampling: SamplingParams) -> None:
    """Say that an engine cannot go on from the middle of an answer under what is asked for: it
    would take what is there for a prompt.

    Args:
        engine: its name.
        sampling: what is asked for.

    Raises:
        SamplingError: penalties count the answer's tokens, or it must obey something.
    """
    hint = "leave it out, or give --engine torch: algorithms that work step by step fork answers"
    refuse_ways(engine, sampling, ("frequency_penalty", "presence_penalty"), hint)
    if sampling.constraint is not None:
        raise SamplingError(
            f"{sampling.constraint.kind} cannot be honoured by the engine {engine!r} where "
            "answers fork",
            hint=hint,
        )


def refuse_ways(
    engine: str, sampling: SamplingParams, names: Sequence[str], hint: str = ""
) -> None:
    """Say that an engine lacks these ways of drawing tokens.

    Args:
        engine: its name.
        sampling: what is asked for.
        names: fields of it that must be off.
        hint: what to do; else what can.

    Raises:
        SamplingError: one is not off.
    """
    for name in names:
        given, off = getattr(sampling, name), options_of(SamplingParams)[name][0].default
        if given != off:
            raise SamplingError(
                f"{name} cannot be honoured by the engine {engine!r}, got {reprlib.repr(given)}",
                hint=hint or "leave it out, or give --engine torch or vllm",
            )


def check_bias(sampling: SamplingParams, num_known: int) -> None:
    """See that the model has the tokens that a bias is for.

    Args:
        sampling: what is asked for.
        num_known: size of the model's vocabulary.

    Raises:
        SamplingError: it lacks one; names it.
    """
    if sampling.logit_bias and (last := sampling.logit_bias[-1][0]) >= num_known:
        raise SamplingError(
            f"logit_bias must name tokens of the model, which are below {num_known}, got {last}",
            hint="ids are those of the model's tokenizer",
        )
