"""The conversation that a body for /v1/chat/completions gives, with its tools.

    prompt = prompt_of(messages, body)

What a `tool_choice` other than "auto" and "none" has called is in `forcing`.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specrej.errors import UsageError
from specrej.messages import as_conversation
from specrej.server.forcing import forced, without_strict
from specrej.types import Conversation, Prompt

FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort")
"""What a body says of tools, and gives the chat template beside its messages."""


def prompt_of(messages: list[Any], body: Mapping[str, Any]) -> Prompt:
    """The prompt of a chat's body: its messages, with its tools unless none is to be called, and
    what it gives the chat template.

    Raises:
        UsageError: a field that cannot be honoured; names it.
        PromptError: see `as_conversation`.
    """
    choice, is_parallel = body.get("tool_choice"), body.get("parallel_tool_calls")
    tools = body.get("tools", ())
    if choice == "none" or forced(body):
        tools = without_strict(tools)
    asked = as_conversation(
        Conversation(
            messages=messages,
            tools=tools,
            template_arguments=_template_arguments(body),
        )
    )
    if not isinstance(is_parallel, bool | None):
        raise UsageError(
            f"parallel_tool_calls cannot be honoured, got {reprlib.repr(is_parallel)}",
            hint="give true or false",
        )
    tools = () if choice == "none" else asked.tools
    if not tools and not asked.template_arguments:
        return asked.messages
    return replace(asked, tools=tools)


def _template_arguments(body: Mapping[str, Any]) -> dict[str, Any]:
    arguments = body.get("chat_template_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise UsageError(f"chat_template_kwargs must be an object, got {reprlib.repr(arguments)}")
    if (effort := body.get("reasoning_effort")) is None:
        return dict(arguments)
    if not isinstance(effort, str):
        raise UsageError(f"reasoning_effort must be a text, got {reprlib.repr(effort)}")
    if arguments.get("reasoning_effort", effort) != effort:
        raise UsageError(
            f"reasoning_effort is given twice, as {reprlib.repr(effort)} and as "
            f"{reprlib.repr(arguments['reasoning_effort'])} in chat_template_kwargs"
        )
    return {**arguments, "reasoning_effort": effort}


def is_begun(body: Mapping[str, Any]) -> bool:
    """Whether a body has its last message continued."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return body.get("continue_final_message") is True or (
        isinstance(last, Mapping) and last.get("prefix") is True
    )


def calls_one(prompt: Prompt, body: Mapping[str, Any]) -> bool:
    """Whether a body with tools asks for one call at most."""
    has_tools = isinstance(prompt, Conversation) and bool(prompt.tools)
    return has_tools and body.get("parallel_tool_calls") is False
