"""What an engine tells of a prompt beside its answers: how likely its tokens are, and what they
spell.

    # of every token but the first; the five likeliest beside each
    scored = prompt_logprobs(engine, ids, num_top=5)
    "".join(spell(engine, ids))
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from specrej.engines.base import Engine
from specrej.errors import SamplingError
from specrej.types import Continuation, Prompt

_FROM_THE_START = ({"role": "user", "content": "?"},)
"""A prompt whose answers begin a text of their own."""


class Likelihood(NamedTuple):
    """How likely a token of a prompt is behind those before it, in nats."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place with their log-probabilities, likeliest first."""


class ReadsPrompts(Protocol):
    """What an engine has, beside the members of every engine, that tells how likely prompts are."""

    def prompt_logprobs(self, prompt_ids: Sequence[int], num_top: int) -> list[Likelihood]:
        """Of each token but the first, under the model, before temperature and filters.

        Called between two steps, with prompts open or not, which it leaves as they are. While it
        runs, the prompt's KV is held: at most what `kv_bytes` says of it with one candidate of one
        token.

        Raises:
            SamplingError: the engine is not told.
        """


def tells_prompt_logprobs(engine: Engine) -> bool:
    """Whether it has `ReadsPrompts`."""
    return hasattr(engine, "prompt_logprobs")


def prompt_logprobs(engine: Engine, prompt_ids: Sequence[int], num_top: int) -> list[Likelihood]:
    """See `ReadsPrompts`.

    Raises:
        SamplingError: the engine does not tell; names it.
    """
    if not tells_prompt_logprobs(engine):
        raise refused(engine.name)
    return cast("ReadsPrompts", engine).prompt_logprobs(prompt_ids, num_top)


def refused(name: str, reason: str = "") -> SamplingError:
    """What an engine that does not tell, with this name, is refused with."""
    return SamplingError(
        f"the engine {name!r} gives no log-probabilities of a prompt's tokens{reason}",
        hint="leave out echo or logprobs; the torch engine gives them",
    )


def spell(engine: Engine, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to their text, special ones as they are spelled. A character that takes
    several tokens is the text of the last of them.
    """
    pieces = map(engine.detokenizer(_FROM_THE_START).add, token_ids)
    return [piece.text + piece.special for piece in pieces]


def with_text(engine: Engine, prompt: Prompt) -> Prompt:
    """The prompt; one of token ids alone with the text that they spell.

    Raises:
        PromptError: one of them is none.
    """
    if not isinstance(prompt, Continuation) or prompt or not prompt.token_ids:
        return prompt
    token_ids = engine.encode(prompt)
    return Continuation("".join(spell(engine, token_ids)), token_ids)
