"""What a conversation may be: the one rule for messages, wherever they come from.

as_messages("Why is the sky blue?")     # [{"role": "user", "content": "Why is the sky blue?"}]
"""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from specrej.errors import PromptError
from specrej.files.reading import check_characters
from specrej.types import Continuation, Conversation, Message, Prompt

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""What a message's role may be, and what it is called from there on: "developer" is the newer
name, which no chat template knows."""

_OF_ROLE = {"assistant": ("name", "tool_calls", "prefix"), "tool": ("name", "tool_call_id")}
"""Fields beside role and content that messages of a role may have; the others a name."""
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as a conversation, by the one rule for messages wherever they come from.

    A role is one of `ROLES`. A content is a text, or a list of parts `{"type": "text", "text":
    ...}`, which are joined; beside calls it may be null or left out, and is "" then. An assistant's
    message may have `tool_calls`, with arguments as a JSON object's text. The results that follow
    come in the order of the calls. The last message may have `"prefix": true`, if it is an
    assistant's. Its `reasoning_content` is left out. Other fields of a message are refused unless
    they are null or empty.

    Raises:
        PromptError: the prompt is empty, no text and no conversation, or holds what a message
            cannot; names it.
    """
    if isinstance(prompt, str):
        check_characters(prompt, "the prompt")
        messages = [{"role": "user", "content": str(prompt)}]
    else:
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise PromptError(
                f"a prompt must be a text or a list of messages, got {reprlib.repr(prompt)}"
            )
        messages = [
            _as_message(message, f"messages[{number}]") for number, message in enumerate(prompt)
        ]
    has_ids = isinstance(prompt, Continuation) and prompt.token_ids
    if not messages or not (_says_something(messages[-1]) or has_ids):
        raise PromptError(
            "the prompt is empty", hint="give a text of at least one character that is no space"
        )
    for number, message in enumerate(messages[:-1]):
        if "prefix" in message:
            raise PromptError(
                f"messages[{number}].prefix cannot be honoured: it is not the last message"
            )
    return _in_order_of_calls(messages)


def as_conversation(prompt: Prompt) -> Conversation:
    """Any prompt with its messages, tools and template arguments checked.

    Raises:
        PromptError: see `as_messages` and `as_tools`; or an argument's name is no text.
    """
    messages = as_messages(prompt)
    if not isinstance(prompt, Conversation):
        return Conversation(messages=messages)
    arguments = prompt.template_arguments
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise PromptError(
            f"template_arguments must be values by their names, got {reprlib.repr(arguments)}"
        )
    check_characters(arguments, "template_arguments")
    return Conversation(
        messages=messages, tools=tuple(as_tools(prompt.tools)), template_arguments=dict(arguments)
    )


def _says_something(message: Message) -> bool:
    """Of the last message: a tool may have nothing to say."""
    return bool(message["content"].strip()) or message["role"] == "tool" or "tool_calls" in message


def _as_message(given: object, name: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise PromptError(
            f"{name} must be an object with role and content, got {reprlib.repr(given)}"
        )
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(
            f"{name}.role must be one of {', '.join(ROLES)}, got {reprlib.repr(role)}"
        )
    honoured = _OF_ROLE.get(role, ("name",))
    more: dict[str, Any] = {}
    for field_name, value in given.items():
        check_characters(str(field_name), f"a name in {name}")
        if field_name in ("role", "content") or _asks_nothing(field_name, value):
            continue
        if (role, field_name) == ("assistant", "reasoning_content"):
            continue  # what was thought before is not read again: templates leave it out
        if field_name not in honoured:
            raise PromptError(
                f"{name}.{field_name!s:.40} cannot be honoured, got {reprlib.repr(value)}"
            )
        more[field_name] = _READ[field_name](value, f"{name}.{field_name}")
    content = given.get("content")
    if content is None and "tool_calls" in more:
        content = ""
    text = _text_of(content, f"{name}.content")
    check_characters(text, f"{name}.content")
    return {"role": ROLES[role], "content": text, **more}


def _asks_nothing(field_name: object, value: object) -> bool:
    """Whether a field beside role and content may stand, and is left out: it is null or empty, or
    says what a message is.
    """
    if value is None:
        return True
    # By its type first: what an array of numpy compares to is no truth.
    is_plain = isinstance(value, str | list | dict)
    return (is_plain and (not value or (field_name == "type" and value == "text"))) or (
        field_name == "prefix" and value is False
    )


def _text_of(content: object, name: str) -> str:
    """A content's text, that of its parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PromptError(f"{name} must be a text or a list of parts, got {reprlib.repr(content)}")
    for number, part in enumerate(content):
        is_text = (
            isinstance(part, Mapping)
            and all(isinstance(value, str) for value in part.values())
            and set(part) == {"type", "text"}
            and part["type"] == "text"
        )
        if not is_text:
            raise PromptError(
                f"{name}[{number}] must be a text, got {reprlib.repr(part)}",
                hint='for example {"type": "text", "text": "Hello"}',
            )
    return "".join(part["text"] for part in content)


def _label(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{name} must be a text, got {reprlib.repr(value)}")
    check_characters(value, name)
    return value


def _prefix(value: object, name: str) -> bool:
    if value is not True:
        raise PromptError(f"{name} must be true or false, got {reprlib.repr(value)}")
    return True


def _calls(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise PromptError(f"{name} must be a list of calls, got {reprlib.repr(value)}")
    return [_call(one, f"{name}[{number}]") for number, one in enumerate(value)]


def _call(given: object, name: str) -> dict[str, Any]:
    """One call as OpenAI's bodies have it; its `index`, of a stream's chunks, says nothing more."""
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(function, Mapping):
        raise PromptError(
            f"{name} must be the call of a function, got {reprlib.repr(given)}",
            hint='such as {"id": "1", "type": "function", "function": {"name": "f", '
            '"arguments": "{}"}}',
        )
    if given.get("type") not in (None, "function"):
        raise PromptError(f"{name}.type must be function, got {reprlib.repr(given['type'])}")
    _refuse_others(given, ("id", "type", "index", "function"), name)
    _refuse_others(function, ("name", "arguments"), f"{name}.function")
    called = {
        "name": _label(function.get("name"), f"{name}.function.name"),
        "arguments": _arguments(function.get("arguments"), f"{name}.function.arguments"),
    }
    labelled = {} if given.get("id") is None else {"id": _label(given["id"], f"{name}.id")}
    return {**labelled, "type": "function", "function": called}


def _arguments(value: object, name: str) -> str:
    """The text of a JSON object; an object is written as one."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        is_object = isinstance(json.loads(text, parse_constant=_no_number), dict)
    except (ValueError, TypeError, RecursionError):
        is_object = False
    if not is_object:
        raise PromptError(f"{name} must be the text of a JSON object, got {reprlib.repr(value)}")
    check_characters(json.loads(text), name)
    return text


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


_READ = {"name": _label, "tool_call_id": _label, "tool_calls": _calls, "prefix": _prefix}
"""What reads a field of a message beside role and content."""


def _refuse_others(given: Mapping[Any, Any], known: Sequence[str], name: str) -> None:
    for field_name, value in given.items():
        check_characters(str(field_name), f"a name in {name}")
        if field_name not in known and not _asks_nothing(field_name, value):
            raise PromptError(
                f"{name}.{field_name!s:.40} cannot be honoured, got {reprlib.repr(value)}"
            )


def _in_order_of_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with results in the order of the calls before them: most chat templates leave
    out the ids.
    """
    ordered: list[dict[str, Any]] = []
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        run = list(group)
        if is_result:
            calls = ordered[-1].get("tool_calls") if ordered else None
            places = {call.get("id"): place for place, call in enumerate(calls or ())}
            for number, message in enumerate(run, len(ordered)):
                if calls is None:
                    raise PromptError(f"messages[{number}] is a tool's: no call stands before it")
                if (given := message.get("tool_call_id")) not in (None, *places):
                    raise PromptError(
                        f"messages[{number}].tool_call_id must be that of a call before it, got "
                        f"{reprlib.repr(given)}"
                    )
            if all("tool_call_id" in message for message in run):
                run.sort(key=lambda message: places[message["tool_call_id"]])
        ordered += run
    return ordered


def as_tools(tools: object) -> list[dict[str, Any]]:
    """Functions that a model may call, checked, each with all of a description that it has.

    Raises:
        PromptError: one is no function, or asks for what cannot be honoured; names it.
    """
    if not isinstance(tools, list | tuple):
        raise PromptError(f"tools must be a list of functions, got {reprlib.repr(tools)}")
    checked = [_as_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in checked]
    if len({*names}) < len(names):
        raise PromptError("tools must have names of their own, got one of them twice")
    return checked


def _as_tool(given: object, name: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, Mapping) else None
    if (
        not isinstance(given, Mapping)
        or given.get("type") != "function"
        or not isinstance(function, Mapping)
    ):
        raise PromptError(
            f"{name} must be a function, got {reprlib.repr(given)}",
            hint='such as {"type": "function", "function": {"name": "f", "parameters": {...}}}',
        )
    _refuse_others(given, ("type", "function"), name)
    if function.get("strict") not in (None, False):
        raise PromptError(
            f"{name}.function.strict cannot be honoured, got {reprlib.repr(function['strict'])}",
            hint="leave it out: what the model writes is parsed, and nothing forces its form",
        )
    known = ("name", "description", "parameters", "strict")
    _refuse_others(function, known, f"{name}.function")
    called, words = function.get("name"), function.get("description")
    parameters = function.get("parameters") or _NO_PARAMETERS
    if not isinstance(called, str) or not _FUNCTION_NAME.fullmatch(called):
        raise PromptError(
            f"{name}.function.name must be 1 to 64 of A-Za-z0-9_-, got {reprlib.repr(called)}"
        )
    if words is not None and not isinstance(words, str):
        raise PromptError(f"{name}.function.description must be a text, got {reprlib.repr(words)}")
    if not isinstance(parameters, Mapping):
        raise PromptError(
            f"{name}.function.parameters must be an object, got {reprlib.repr(parameters)}"
        )
    made = {"name": called, "description": words or "", "parameters": dict(parameters)}
    check_characters(made, f"{name}.function")
    return {"type": "function", "function": made}


def as_texts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The conversation in roles and contents alone, for what knows no tools.

    Calls stand behind their message's content, a JSON object a line. Results are a user's message,
    one for all that follow a message.
    """
    turns: list[dict[str, str]] = []
    before = ""
    for message in messages:
        calls = [
            f'{{"name": {json.dumps(call["function"]["name"])}, '
            f'"arguments": {call["function"]["arguments"]}}}'
            for call in message.get("tool_calls", ())
        ]
        text = "\n".join([*filter(None, [message["content"]]), *calls])
        role = str(message["role"])
        if role == before == "tool":
            turns[-1]["content"] += "\n" + text
        else:
            turns.append({"role": "user" if role == "tool" else role, "content": text})
        before = role
    return turns


def uses_tools(messages: Sequence[Message]) -> bool:
    """Whether there are calls or results among the messages."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def prompt_bytes(prompt: Prompt) -> int:
    """Bytes (UTF-8) that a chat template is given to write, at least: contents, calls, tools."""
    asked = as_conversation(prompt)
    calls = [call["function"] for one in asked.messages for call in one.get("tool_calls", ())]
    texts = [one["content"] for one in asked.messages]
    texts += [text for call in calls for text in call.values()]
    texts += [text for tool in asked.tools for text in _words_of(tool["function"])]
    return sum(len(text.encode()) for text in texts)


def _words_of(function: Mapping[str, Any]) -> tuple[str, str, str]:
    parameters = json.dumps(function["parameters"], ensure_ascii=False, separators=(",", ":"))
    return function["name"], function["description"], parameters


def with_answer(messages: Sequence[Message], text: str) -> list[dict[str, Any]]:
    """The conversation with an answer behind it; one that continues an assistant's message is a
    part of that.
    """
    *before, last = (dict(message) for message in messages)
    if last["role"] == "assistant":
        return [*before, {"role": "assistant", "content": last["content"] + text}]
    return [*before, last, {"role": "assistant", "content": text}]
