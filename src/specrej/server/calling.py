"""Calls of functions in OpenAI's bodies that answer, parsed from what a model wrote.

choice = with_calls(choice, request, answer, detokenizer, "c-1")    # message.tool_calls
certain = CertainText(form_of(request, detokenizer))
certain.add(text)                # what of a stream's text is no call, whatever comes behind it
"""

import hashlib
from functools import cached_property
from typing import Any

from specrej.hub.thinking import Thinking
from specrej.hub.tool_formats import Call, ToolForm
from specrej.server.forcing import FORM
from specrej.server.protocol import CompletionRequest
from specrej.types import Candidate, Conversation, Detokenizer


def form_of(request: CompletionRequest, detokenizer: Detokenizer) -> ToolForm | None:
    """How calls stand in an answer, which a detokenizer reads; None where it is text."""
    if request.must_call:
        return FORM
    form: ToolForm | None = getattr(detokenizer, "tool_form", None)
    return form


def with_calls(
    choice: dict[str, Any],
    request: CompletionRequest,
    answer: Candidate,
    detokenizer: Detokenizer,
    completion_id: str,
) -> dict[str, Any]:
    """A chat's choice, with the functions that its answer calls.

    Args:
        choice: of an answer that is text.
        request: what was asked.
        answer: the candidate.
        detokenizer: reads it.
        completion_id: the body's `id`; with the choice's number it decides the ids of calls.
    """
    form = form_of(request, detokenizer)
    if not isinstance(request.prompt, Conversation) or form is None:
        return choice
    spelled = form.spelled(answer.text, answer.token_ids, detokenizer)
    found = form.parse(spelled, {tool["function"]["name"] for tool in request.prompt.tools})
    if found is None:
        return choice
    calls = found.calls[:1] if request.calls_one else found.calls
    name = f"{completion_id}/{choice['index']}"
    called = {
        "content": found.text or None,
        "tool_calls": [_body_of(call, f"{name}/{number}") for number, call in enumerate(calls)],
    }
    is_cut = choice["finish_reason"] == "length"
    return choice | {
        "message": choice["message"] | called,
        "finish_reason": "length" if is_cut else "tool_calls",
    }


def _body_of(call: Call, name: str) -> dict[str, Any]:
    """A call in OpenAI's form. Its id has nine characters, as Mistral's chat templates want it."""
    return {
        "id": hashlib.sha256(name.encode()).hexdigest()[:9],
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


class CertainText:
    """What of a streamed answer may be sent as text, while it may turn out to be a call.

    Args:
        form: how calls stand in it; None where there are none.
        thinking: how thoughts do, which are no text; None where there are none.
    """

    def __init__(self, form: ToolForm | None, thinking: Thinking | None = None) -> None:
        self.sent = ""
        self._form = form
        self._thinking = thinking
        self._text = ""

    @cached_property
    def thought(self) -> str:
        """What was thought before the text that may be sent; it is over once there is some."""
        return "" if self._thinking is None else self._thinking.split(self._text).thought

    def add(self, text: str) -> str:
        """What can be sent now that this has come."""
        self._text += text
        told = self._text if self._thinking is None else self._thinking.answer(self._text)
        certain = told if self._form is None else self._form.certain(told)
        new = certain[len(self.sent) :]
        self.sent += new
        return new
