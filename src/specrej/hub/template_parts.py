"""Whether a chat template takes what it is given: nothing of a conversation is left out in silence.

check_arguments(tokenizer, conversation)     # {"enable_thinking": False}: the template names it
left_out(chat, conversation, how)            # "messages[2].content", or None
readable(chat, messages)                     # without tools for a template that has none
"""

import inspect
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from specrej.errors import PromptError
from specrej.hub.contents import ChatTokenizer
from specrej.messages import as_texts, uses_tools
from specrej.types import Conversation, Message


def check_arguments(tokenizer: Any, conversation: Conversation) -> None:
    """See that the chat template names every argument that it is to be given, and that none is the
    renderer's own.

    Raises:
        PromptError: names the first that is not so.
    """
    if not conversation.template_arguments:
        return
    named = _names_in(tokenizer.get_chat_template(tools=list(conversation.tools) or None))
    owned = {*inspect.signature(tokenizer.apply_chat_template).parameters} - {"documents"}
    owned |= {"messages", "raise_exception", "strftime_now", *tokenizer.special_tokens_map}
    for name in conversation.template_arguments:
        if name in owned:
            raise PromptError(f"{name!s:.40} cannot be given to the chat template: it has its own")
        if name not in named:
            raise PromptError(
                f"{name!s:.40} cannot be honoured: this model's chat template does not name it",
                hint="leave it out",
            )


@lru_cache(maxsize=8)
def _names_in(template: str) -> frozenset[str]:
    """Names in the code of a template that are no attributes of something."""
    from jinja2 import Environment

    code = [
        (kind, value)
        for _, kind, value in Environment().lex(template)
        if kind not in ("whitespace", "data", "comment")
    ]
    pairs = zip([("", ""), *code], code, strict=False)
    return frozenset(
        value for before, (kind, value) in pairs if kind == "name" and before[1] != "."
    )


def left_out(
    chat: ChatTokenizer, conversation: Conversation, how: Mapping[str, bool]
) -> str | None:
    """What a chat template does not write of tools, calls and results, by the name of its field;
    None if nothing.

    The conversation is written with marks in their place, which nobody can guess.

    Raises:
        Exception: whatever the template raises.
    """
    marks: dict[str, str] = {}

    def mark(name: str) -> str:
        marks[name] = f"m{secrets.token_hex(8)}m"
        return marks[name]

    messages = [
        _marked(message, f"messages[{number}]", mark)
        for number, message in enumerate(conversation.messages)
    ]
    tools = [
        {**tool, "function": {**tool["function"], "name": mark(f"tools[{number}]")}}
        for number, tool in enumerate(conversation.tools)
    ]
    if not marks:
        return None
    written = chat.write(messages, tools=tools, arguments=conversation.template_arguments, **how)
    return next((name for name, given in marks.items() if given not in written), None)


def _marked(message: Message, name: str, mark: Any) -> dict[str, Any]:
    """A message with marks for what a tool said, or what calls are made of."""
    turn = dict(message)
    if turn["role"] == "tool":
        turn["content"] = mark(f"{name}.content")
    if "tool_calls" in turn:
        turn["tool_calls"] = [
            {**call, "function": _marked_call(f"{name}.tool_calls[{number}].function", mark)}
            for number, call in enumerate(turn["tool_calls"])
        ]
    return turn


def _marked_call(name: str, mark: Any) -> dict[str, str]:
    arguments = f'{{"a": "{mark(f"{name}.arguments")}"}}'
    return {"name": mark(f"{name}.name"), "arguments": arguments}


def readable(chat: ChatTokenizer, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages as a chat template takes them: in texts alone if it does not write calls and
    results.
    """
    if not uses_tools(messages):
        return messages
    try:
        is_written = left_out(chat, Conversation(messages=messages), {}) is None
    except Exception:  # whatever the template raises
        is_written = False
    return messages if is_written else as_texts(messages)
