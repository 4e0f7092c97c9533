"""What a reasoning model thought, beside its answer in the bodies of chats, as vLLM has it;
`responding` makes an item of it.

thinking = thinking_in(request, detokenizer)
choice = without_thought(choice, thinking)    # message.reasoning_content
"""

from typing import Any

from specrej.hub.thinking import Thinking
from specrej.server.protocol import CompletionRequest
from specrej.types import Detokenizer


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
