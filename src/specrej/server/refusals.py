"""What a request is told when it is not answered: errors in OpenAI's form, without internals.

    raise RefusalError("model_not_found", "there is no model 'x' here", param="model")
    refusal_of(QueueFullError("...", retry_after_s=3)).status       # 429

What went wrong inside is for the log; the client gets its request's id to ask about.
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from specrej.errors import (
    BudgetError,
    DeadlineError,
    DeviceMemoryError,
    EngineError,
    PromptError,
    QueueFullError,
    RewardError,
    SamplingError,
    ShutdownError,
    SpecrejError,
    UnknownNameError,
    UsageError,
)
from specrej.server.protocol import LENGTHS, in_words_of

CODES = {
    "invalid_value": (
        400,
        "A field cannot be honoured, or its value is out of range; `param` names it.",
    ),
    "invalid_api_key": (401, "No API key, or one that is not known."),
    "other_origin": (403, "Asked from a page of another origin."),
    "unknown_host": (403, "Asked by a name that is not this server's."),
    "model_not_found": (404, "No such model."),
    "not_found": (404, "No such path."),
    "method_not_allowed": (405, "The path is not asked by this method."),
    "slow_body": (408, "The body did not come in time."),
    "body_too_large": (413, "The body is too long."),
    "unsupported_media_type": (415, "The body is not sent as application/json."),
    "queue_full": (429, "The queue is full; Retry-After says when to come again."),
    "too_many_bodies": (
        429,
        "Too many bodies are being read already; Retry-After says when to come again.",
    ),
    "reward_failed": (500, "The reward failed."),
    "out_of_memory": (500, "The device ran out of memory."),
    "internal": (500, "The server failed."),
    "engine_failed": (502, "What decodes for the server failed."),
    "shutting_down": (503, "The server is being stopped."),
    "deadline": (504, "The deadline came before a candidate was complete."),
}
"""All that a request can be told that is not answered: the status that a code comes with, and
what both mean."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST_CHARACTERS = 600


class RefusalError(Exception):
    """A request that gets an error.

    Attributes:
        code: a name for programs, of `CODES`.
        status: of HTTP; the code's.
        message: says what was given, what was expected and what to do.
        param: the field at fault, where there is one.
        headers: sent with it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = CODES[code][0]
        self.message = (
            message if len(message) <= _MOST_CHARACTERS else message[:_MOST_CHARACTERS] + " …"
        )
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, dict(self.headers))


def refusal_of_body(error: UsageError, body: Mapping[str, Any]) -> RefusalError:
    """A body that cannot be honoured; names the field at fault."""
    message = f"{error}; {error.hint}" if error.hint else str(error)
    return RefusalError("invalid_value", in_words_of(body, message), param=_param(error, body))


def refusal_of(error: SpecrejError, body: Mapping[str, Any]) -> RefusalError:
    """What a request is told that was taken, and then failed."""
    match error:
        case QueueFullError():
            headers = {"Retry-After": str(error.retry_after_s)}
            return RefusalError("queue_full", f"{error}; {error.hint}", headers=headers)
        case ShutdownError():
            return RefusalError("shutting_down", str(error))
        case DeadlineError():
            # OpenAI's client would try again by itself, to the same end.
            headers = {"x-should-retry": "false"}
            return RefusalError("deadline", f"{error}; {error.hint}", headers=headers)
        case PromptError() | BudgetError() | SamplingError():
            return refusal_of_body(error, body)
        case RewardError():
            return RefusalError("reward_failed", "the reward failed on this request")
        case EngineError():
            return RefusalError(
                "engine_failed", "what decodes for this server failed on this request"
            )
        case DeviceMemoryError():
            return RefusalError("out_of_memory", "the device ran out of memory on this request")
        case _:
            return internal_error()


def internal_error() -> RefusalError:
    """Something that should not have happened."""
    return RefusalError(
        "internal", "the server failed on this request; its log says more under the request's id"
    )


def _param(error: UsageError, body: Mapping[str, Any]) -> str | None:
    """The field that a message begins with, by the body's name for it."""
    words, own = in_words_of(body, str(error)), body.get("specrej")
    name = "".join(re.findall(r"^[\w.]{1,100}", words))
    if "." in name and name.partition(".")[0] in body:
        return name
    if isinstance(error, BudgetError):
        return _over_budget(body)
    if name == "json_schema":
        return _schema_field(body)
    if name == "reasoning_effort" and "reasoning" in body:
        return "reasoning.effort"
    arguments = body.get("chat_template_kwargs")
    if name not in body and isinstance(arguments, Mapping) and name in arguments:
        return f"chat_template_kwargs.{name}"
    if isinstance(error, PromptError) and name not in body:
        return next((field for field in ("messages", "input") if field in body), "prompt")
    is_length = any(field in str(error) for field in ("max_new_tokens", *LENGTHS))
    names = [name, *LENGTHS] if is_length else [name]
    for field in names:
        if field in body:
            return field
    if isinstance(own, Mapping) and name in own:
        return f"specrej.{name}"
    return "specrej" if isinstance(error, UnknownNameError) else None


def _over_budget(body: Mapping[str, Any]) -> str | None:
    """What makes a candidate too large for its memory: the memory that is asked for, or else the
    length, or else the prompt.
    """
    own = body.get("specrej")
    if isinstance(own, Mapping) and own.get("memory") is not None:
        return "specrej.memory"
    return next((name for name in (*LENGTHS, "messages", "input", "prompt") if name in body), None)


def _schema_field(body: Mapping[str, Any]) -> str | None:
    """What gives the schema that answers obey."""
    own = body.get("specrej")
    if isinstance(own, Mapping) and own.get("json_schema") is not None:
        return "specrej.json_schema"
    if "text" in body:
        return "text.format"
    return next((name for name in ("response_format", "tools") if name in body), None)
