"""Whether what a request asks for fits, while its client can still be told by a status.

prompts = fit(service, asked.request, most_tokens=None)     # their token ids, and their texts
"""

from collections.abc import Sequence
from typing import NamedTuple

from specrej.api import prepare
from specrej.engines.reading import refused, spell, tells_prompt_logprobs
from specrej.errors import PromptError, UsageError
from specrej.messages import as_messages
from specrej.search.pool import Pool
from specrej.server.protocol import CompletionRequest
from specrej.server.service import Service
from specrej.server.texts import in_prompt
from specrej.types import Continuation, Prompt


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
    if len(prompts) > service.max_queue:
        raise UsageError(
            f"prompt must be a list of at most {service.max_queue} prompts on this server, got "
            f"{len(prompts)}",
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
    context, token_bytes = engine.context_tokens, engine.token_bytes
    room = context if most_tokens is None else min(most_tokens, context)
    # A prompt that cannot fit is not tokenized: that takes its time.
    own_ids = prompt.token_ids if isinstance(prompt, Continuation) else ()
    num_bytes = sum(len(message["content"].encode()) for message in as_messages(prompt))
    num_bytes += len(prompt.suffix.encode()) if isinstance(prompt, Continuation) else 0
    if num_bytes > room * token_bytes:
        raise PromptError(
            f"the prompt has {num_bytes:,} bytes; what there is of the model's context holds "
            f"{room:,} tokens, each of at most {token_bytes} bytes"
        )
    if len(own_ids) > room:
        raise PromptError(
            f"the prompt has {len(own_ids):,} tokens; what there is of the model's context holds "
            f"{room:,}"
        )
    if request.decodes:
        search, _ = prepare(engine, service.reward, prompt, request.settings, service.total_bytes)
        Pool(service.total_bytes).check(search)
        ids: Sequence[int] = search.prompt_ids
    else:
        ids = engine.encode(prompt)
    if len(ids) > room:
        name = "messages" if request.kind == "chat" else "prompt"
        raise UsageError(f"{name} must have at most {room} tokens on this server, got {len(ids)}")
    if request.has_echo and request.has_logprobs:
        service.readings.check(ids)
    return Fitted(ids, "".join(spell(engine, ids)) if own_ids else _text(prompt))


def _text(prompt: Prompt) -> str:
    return str(prompt) if isinstance(prompt, str) else ""
