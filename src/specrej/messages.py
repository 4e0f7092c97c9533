"""What a conversation may be: the one rule for messages, wherever they come from.

as_messages("Why is the sky blue?")     # [{"role": "user", "content": "Why is the sky blue?"}]
"""

import reprlib
from collections.abc import Mapping, Sequence

from specrej.errors import PromptError
from specrej.files.reading import check_characters
from specrej.types import Continuation, Message, Prompt

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""What a message's role may be, and what it is called from there on: "developer" is the newer
name, which no chat template knows."""


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as a conversation, by the one rule for messages wherever they come from.

    A role is one of `ROLES`. A content is a text, or a list of parts `{"type": "text", "text":
    ...}`, which are joined. Other fields of a message are refused unless they are null or empty.

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
    if not messages or not (messages[-1]["content"].strip() or has_ids):
        raise PromptError(
            "the prompt is empty", hint="give a text of at least one character that is no space"
        )
    return messages


def _as_message(given: object, name: str) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise PromptError(
            f"{name} must be an object with role and content, got {reprlib.repr(given)}"
        )
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(
            f"{name}.role must be one of {', '.join(ROLES)}, got {reprlib.repr(role)}"
        )
    for field_name, value in given.items():
        check_characters(str(field_name), f"a name in {name}")
        if field_name not in ("role", "content") and not _asks_nothing(field_name, value):
            raise PromptError(
                f"{name}.{field_name!s:.40} cannot be honoured, got {reprlib.repr(value)}"
            )
    text = _text_of(given.get("content"), f"{name}.content")
    check_characters(text, f"{name}.content")
    return {"role": ROLES[role], "content": text}


def _asks_nothing(field_name: object, value: object) -> bool:
    """Whether a field beside role and content may stand: it is null or empty, or says what a
    message is.
    """
    if value is None:
        return True
    # By its type first: what an array of numpy compares to is no truth.
    is_plain = isinstance(value, str | list | dict)
    return is_plain and (not value or (field_name == "type" and value == "text"))


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


def with_answer(messages: Sequence[Message], text: str) -> list[dict[str, str]]:
    """The conversation with an answer behind it; one that continues an assistant's message is a
    part of that.
    """
    *before, last = (dict(message) for message in messages)
    if last["role"] == "assistant":
        return [*before, {"role": "assistant", "content": last["content"] + text}]
    return [*before, last, {"role": "assistant", "content": text}]
