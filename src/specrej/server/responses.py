"""OpenAI's body for /v1/responses, read as the chat that it means.

    body = {"model": "smollm2", "input": "Hello", "instructions": "Be brief."}
    asked = parse_response(body, Settings())

Each field has its counterpart in a chat's body, and what a value may be is decided by `protocol`
alone. So whatever a chat learns, a response can; what is wrong is said by the names of this body.
`responding` writes the answer.
"""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specrej.errors import PromptError, UsageError
from specrej.server.protocol import LENGTHS, SAMPLING, Beside, CompletionRequest, parse_chat
from specrej.settings import Settings

RESPONSE_SAMPLING = tuple(name for name in SAMPLING if name not in LENGTHS)
"""Fields that stand for a setting and are called as in a chat."""
HONOURED = {
    *("model", "input", "instructions", "max_output_tokens", "text", "reasoning", "include"),
    *("top_logprobs", "specrej"),
    *RESPONSE_SAMPLING,
}
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
REPEATED = ("instructions", "max_output_tokens", "text", "reasoning", *_LABELS)
"""Fields that a response says again as they were given."""
_NOTHING: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "store": (False,),
    "background": (False,),
    "truncation": ("disabled",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
}
"""Values that ask for nothing. `store` left out asks for nothing either: OpenAI would store then,
and a client that wants it says so."""
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (
    _LOGPROBS,
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""What `include` may name. The others are parts of items that no answer here has."""
_STORED = ("store", "background", "previous_response_id", "conversation", "prompt")
_ITEM_LABELS = ("type", "id", "status")
"""Of a message, as answers have them: they say nothing to a model."""
_OF_THOUGHTS = ("id", "type", "status", "summary", "content")
"""Of an item that says what was thought before an answer."""
_TEXTS = ("input_text", "output_text", "text")
_PART_LABELS = ("annotations", "logprobs")
"""Of a text, as answers have them."""
_NOTHING_BESIDE = Beside()
_CHAT_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}
"""How this body calls what a chat's body calls otherwise."""


def parse_response(
    body: object, defaults: Settings, beside: Beside = _NOTHING_BESIDE
) -> CompletionRequest:
    """What a body for /v1/responses asks for.

    Raises:
        UsageError: a field that cannot be honoured, or a value outside its range; names it.
        PromptError: no input, an empty one, or an item of it that is no message of texts.
    """
    if not isinstance(body, Mapping):
        raise UsageError(f"a body must be an object, got {reprlib.repr(body)}")
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(given, beside)
    instructions, messages = _instructions(given), _messages(given.get("input"))
    chat = {
        **{name: given[name] for name in given if name in _SAME or name in beside.fields},
        **_of_text(given.get("text", {})),
        **_of_reasoning(given.get("reasoning", {})),
        **_of_include(given),
        "messages": [*instructions, *messages.values()],
        "max_completion_tokens": given.get("max_output_tokens"),
    }
    try:
        request = parse_chat(chat, defaults, beside)
    except UsageError as error:
        error.args = (_in_words_of_response(str(error), len(instructions), [*messages]),)
        if "cannot be honoured" in str(error):
            error.hint = _honoured(beside)
        raise
    repeated = {name: given[name] for name in REPEATED if name in given}
    _check_repeated(repeated)
    return replace(request, kind="response", repeated=repeated)


def _check_repeated(repeated: Mapping[str, Any]) -> None:
    """See that what is said again can be: 1e999 is read as a number that JSON has not."""
    for name, value in repeated.items():
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{name} cannot be said again: {error}") from error


_SAME = {"model", "specrej", *RESPONSE_SAMPLING, *_LABELS}
"""Fields that a chat's body has by the same name, for the same."""


def _check_names(given: Mapping[str, Any], beside: Beside) -> None:
    known = HONOURED | {*_LABELS, *beside.fields}
    for name, value in given.items():
        if name not in known and value not in _NOTHING.get(name, ()):
            is_stored = name in _STORED
            raise UsageError(
                f"{name} cannot be honoured, got {reprlib.repr(value)}",
                hint="nothing is stored here: leave it out, and send the whole conversation as "
                "input"
                if is_stored
                else _honoured(beside),
            )


def _honoured(beside: Beside) -> str:
    return f"leave it out; honoured are {', '.join(sorted({*HONOURED, *beside.fields}))}"


def _instructions(given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The message that goes before the input; none where there are no instructions."""
    words = given.get("instructions", "")
    if not isinstance(words, str):
        raise PromptError(f"instructions must be a text, got {reprlib.repr(words)}")
    return [{"role": "system", "content": words}] if words else []


def _messages(given: object) -> dict[int, Any]:
    """By their numbers in the input. Thoughts are left out, as `reasoning_content` is in a chat."""
    if isinstance(given, str):
        return {0: {"role": "user", "content": given}}
    if not isinstance(given, list):
        raise PromptError(f"input must be a text or a list of messages, got {reprlib.repr(given)}")
    return {
        number: _message(item, f"input[{number}]")
        for number, item in enumerate(given)
        if not _is_thought(item, f"input[{number}]")
    }


def _is_thought(item: object, name: str) -> bool:
    if not isinstance(item, Mapping) or item.get("type") != "reasoning":
        return False
    for key, value in item.items():
        if key not in _OF_THOUGHTS and value is not None:
            raise PromptError(f"{name}.{key:.40} cannot be honoured, got {reprlib.repr(value)}")
    return True


def _message(item: object, name: str) -> object:
    """An item as a chat's message. What is no text in it stays, and is refused there."""
    if not isinstance(item, Mapping):
        return item
    if (kind := item.get("type", "message")) != "message":
        raise PromptError(
            f"{name}.type must be message, got {reprlib.repr(kind)}",
            hint="this server answers texts with texts",
        )
    message = {key: value for key, value in item.items() if key not in _ITEM_LABELS}
    if isinstance(item.get("content"), list):
        message["content"] = [_part(part) for part in item["content"]]
    return message


def _part(part: object) -> object:
    if not isinstance(part, Mapping) or part.get("type") not in _TEXTS:
        return part
    said = {key: value for key, value in part.items() if key not in _PART_LABELS}
    return {**said, "type": "text"}


def _of_text(given: object) -> dict[str, Any]:
    """`text` holds the format and the verbosity that a chat has as fields of their own."""
    fields = _object("text", given, ("format", "verbosity"))
    return {
        "response_format": _response_format(fields.get("format")),
        "verbosity": fields.get("verbosity"),
    }


def _response_format(given: object) -> object:
    """A chat nests what the format of a response has beside its type: this is the one place where
    they differ.
    """
    if not isinstance(given, Mapping) or given.get("type") != "json_schema":
        return given
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in given.items() if name != "type"},
    }


def _of_reasoning(given: object) -> dict[str, Any]:
    return {"reasoning_effort": _object("reasoning", given, ("effort",)).get("effort")}


def _of_include(given: Mapping[str, Any]) -> dict[str, Any]:
    """Log-probabilities are what may be included; `top_logprobs` says how many."""
    names = given.get("include", [])
    if not isinstance(names, list) or not all(name in _INCLUDABLE for name in names):
        raise UsageError(
            f"include must be a list of names, got {reprlib.repr(names)}",
            hint=f"known: {', '.join(_INCLUDABLE)}",
        )
    number = {"top_logprobs": given.get("top_logprobs")}
    return {**number, "logprobs": True} if _LOGPROBS in names else number


def _object(name: str, given: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"{name} must be an object, got {reprlib.repr(given)}")
    for key, value in given.items():
        if key not in known and value is not None:
            raise UsageError(
                f"{name}.{key:.40} cannot be honoured, got {reprlib.repr(value)}",
                hint=f"honoured are {', '.join(known)}",
            )
    return given


def _in_words_of_response(message: str, num_before: int, numbers: Sequence[int]) -> str:
    """What is wrong with the chat, by the names of the response.

    Args:
        message: that begins with the name of what is wrong.
        num_before: messages before those of the input.
        numbers: of these in the input.
    """

    def item(found: re.Match[str]) -> str:
        if found[1] is None:
            return "input"
        number = int(found[1]) - num_before
        return "instructions" if number < 0 else f"input[{numbers[number]}]"

    message = re.sub(r"^messages(?:\[(\d+)\])?", item, message)
    for theirs, ours in _CHAT_NAMES.items():
        message = re.sub(rf"\b{theirs}\b", ours, message)
    return message
