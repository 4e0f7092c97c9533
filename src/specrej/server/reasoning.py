"""What a reasoning model thought, beside its answer in the bodies of chats, as vLLM has it;
`responding` makes an item of it.

thinking = thinking_in(request, detokenizer)
choice = without_thought(choice, thinking)    # message.reasoning_content
num_thought_tokens(answer, thinking, detokenizer)    # usage's reasoning_tokens
"""

from typing import Any

from specrej.hub.thinking import Thinking
from specrej.server.protocol import CompletionRequest
from specrej.types import Candidate, Detokenizer


def thinking_in(request: CompletionRequest, detokenizer: Detokenizer) -> Thinking | None:
    """How thoughts stand in an answer, which a detokenizer reads; None where it is all text."""
    thinking: Thinking | None = getattr(detokenizer, "thinking", None)
    return None if request.kind == "text" else thinking


def without_thought(choice: dict[str, Any], thinking: Thinking) -> dict[str, Any]:
    """A chat's choice with the thought out of its content. Unchanged where nothing was thought."""
    message = choice["message"]
    thought, answer = thinking.split(message["content"] or "")
    if not thought and answer == (message["content"] or ""):
        return choice
    content = answer or (None if message.get("tool_calls") else "")
    return choice | {"message": {**message, "content": content, "reasoning_content": thought}}


def num_thought_tokens(answer: Candidate, thinking: Thinking, detokenizer: Detokenizer) -> int:
    """Tokens of what was thought, without the marks, as `thinking_token_budget` counts them.

    A token that has a part of a mark in its text is none of them. Nor is the token that ends an
    answer, which is cut off inside its thought.

    Args:
        answer: the candidate.
        thinking: how thoughts stand in it.
        detokenizer: reads it, from its beginning.
    """
    thought = thinking.span(answer.text)
    if not thought:
        return 0
    number = start = 0
    for token_id in answer.token_ids[: -1 if answer.finish_reason == "eos" else None]:
        end = start + len(detokenizer.add(token_id).text)
        if end > thought.stop:
            break
        number += start >= thought.start
        start = end
    return number
