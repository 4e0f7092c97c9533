"""Whether what a request asks for fits, while its client can still be told by a status.

prompts = fit(service, asked.request, most_tokens=None)     # their token ids, and their texts
"""

from collections.abc import Sequence
from typing import NamedTuple

from specrej.api import prepare
from specrej.engines.base import Engine
from specrej.engines.reading import refused, spell, tells_prompt_logprobs
from specrej.errors import PromptError, UsageError
from specrej.messages import prompt_bytes
from specrej.search.budget import Total
from specrej.search.pool import Pool
from specrej.server.asked import MOST_AUTO
from specrej.server.protocol import CompletionRequest
from specrej.server.refusals import RefusalError
from specrej.server.service import Service
from specrej.server.texts import in_prompt
from specrej.types import Continuation, Prompt

_PROMPTS = {"chat": "messages", "text": "prompt", "response": "input"}
"""How bodies call the prompt."""


class Fitted(NamedTuple):
    """A prompt that fits."""

    ids: Sequence[int]
    text: str
    """That it is echoed as; empty for a conversation."""


def fit(service: Service, request: CompletionRequest, most_tokens: int | None) -> list[Fitted]:
    """See that each prompt, its answer and one candidate fit.

    Args:
        service: would answer.
        request: what is asked.
        most_tokens: of a prompt; None leaves it to the model's context.

    Raises:
        UsageError: something does not; of several prompts it says which.
    """
    prompts = request.prompts
    most = max(service.max_queue, 1)
    if len(prompts) > most:
        raise UsageError(
            f"prompt must be a list of at most {most} prompts on this server, got {len(prompts)}",
            hint="send the others in another request",
        )
    if request.has_echo and request.has_logprobs and not tells_prompt_logprobs(service.engine):
        raise refused(service.engine.name)
    fitted = []
    for number, prompt in enumerate(prompts):
        try:
            fitted.append(_fit(service, request, prompt, most_tokens))
        except UsageError as error:
            raise in_prompt(error, number, len(prompts)) from error
    return fitted


def _fit(
    service: Service, request: CompletionRequest, prompt: Prompt, most_tokens: int | None
) -> Fitted:
    engine = service.engine
    room = _room(engine, most_tokens)
    # A prompt that cannot fit is not tokenized: that takes its time.
    own_ids = prompt.token_ids if isinstance(prompt, Continuation) else ()
    num_bytes = prompt_bytes(prompt)
    num_bytes += len(prompt.suffix.encode()) if isinstance(prompt, Continuation) else 0
    check_bytes("the prompt", num_bytes, engine, most_tokens)
    if len(own_ids) > room:
        raise PromptError(
            f"the prompt has {len(own_ids):,} tokens; what there is of the model's context holds "
            f"{room:,}"
        )
    if request.decodes:
        search, _ = prepare(
            engine,
            service.reward,
            prompt,
            request.settings,
            Total(service.total_bytes, most_candidates=MOST_AUTO),
        )
        Pool(service.total_bytes).check(search)
        ids: Sequence[int] = search.prompt_ids
    else:
        ids = engine.encode(prompt)
    if len(ids) > room:
        name = _PROMPTS[request.kind]
        raise UsageError(f"{name} must have at most {room} tokens on this server, got {len(ids)}")
    if request.has_echo and request.has_logprobs:
        service.readings.check(ids)
    return Fitted(ids, "".join(spell(engine, ids)) if own_ids else _text(prompt))


def _room(engine: Engine, most_tokens: int | None) -> int:
    """Tokens that there may be; None leaves it to the context."""
    return min(engine.context_tokens, most_tokens or engine.context_tokens)


def check_model(asked: str, served: str) -> None:
    """See that a body names the model that there is.

    Raises:
        RefusalError: another.
    """
    if asked != served:
        message = f"there is no model {asked!r} here; there is {served!r}"
        raise RefusalError("model_not_found", message, param="model")


def check_bytes(what: str, num_bytes: int, engine: Engine, most_tokens: int | None) -> None:
    """See that texts may fit in the context together, before a tokenizer takes its time with them.

    Args:
        what: they are, in the words that the error begins with.
        num_bytes: of a prompt, or of one answer.
        engine: whose context it is.
        most_tokens: that there may be; None leaves it to the context.

    Raises:
        PromptError: they have more bytes than its tokens could stand for.
    """
    tokens, token_bytes = _room(engine, most_tokens), engine.token_bytes
    if num_bytes > tokens * token_bytes:
        raise PromptError(
            f"{what} has {num_bytes:,} bytes; what there is of the model's context holds "
            f"{tokens:,} tokens, each of at most {token_bytes} bytes"
        )


def _text(prompt: Prompt) -> str:
    return str(prompt) if isinstance(prompt, str) else ""
