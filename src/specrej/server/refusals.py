"""What a request is told when it is not answered: errors in OpenAI's form, without internals.

    raise RefusalError(404, "there is no model 'x' here", code="model_not_found", param="model")
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

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST_CHARACTERS = 600
_LENGTH_FIELDS = ("max_completion_tokens", "max_tokens")
"""How a body calls the max_new_tokens of settings."""


class RefusalError(Exception):
    """A request that gets an error.

    Attributes:
        status: of HTTP.
        message: says what was given, what was expected and what to do.
        code: a name for programs.
        param: the field at fault, where there is one.
        headers: sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _MOST_CHARACTERS else message[:_MOST_CHARACTERS] + " …"
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, dict(self.headers))


def refusal_of_body(error: UsageError, body: Mapping[str, Any]) -> RefusalError:
    """A body that cannot be honoured; names the field at fault."""
    message = f"{error}; {error.hint}" if error.hint else str(error)
    return RefusalError(400, message, code="invalid_value", param=_param(error, body))


def refusal_of(error: SpecrejError, body: Mapping[str, Any]) -> RefusalError:
    """What a request is told that was taken, and then failed."""
    match error:
        case QueueFullError():
            headers = {"Retry-After": str(error.retry_after_s)}
            return RefusalError(429, f"{error}; {error.hint}", code="queue_full", headers=headers)
        case ShutdownError():
            return RefusalError(503, str(error), code="shutting_down")
        case DeadlineError():
            # OpenAI's client would try again by itself, to the same end.
            headers = {"x-should-retry": "false"}
            return RefusalError(504, f"{error}; {error.hint}", code="deadline", headers=headers)
        case PromptError() | BudgetError() | SamplingError():
            return refusal_of_body(error, body)
        case RewardError():
            return RefusalError(500, "the reward failed on this request", code="reward_failed")
        case EngineError():
            return RefusalError(502, "what decodes for this server failed on this request", code="engine_failed")
        case DeviceMemoryError():
            return RefusalError(500, "the device ran out of memory on this request", code="out_of_memory")
        case _:
            return internal_error()


def internal_error() -> RefusalError:
    """Something that should not have happened."""
    return RefusalError(
        500, "the server failed on this request; its log says more under the request's id", code="internal"
    )


def _param(error: UsageError, body: Mapping[str, Any]) -> str | None:
    """The field that a message begins with, by the body's name for it."""
    name, own = "".join(re.findall(r"^[\w.]{1,100}", str(error))), body.get("specrej")
    if "." in name and name.partition(".")[0] in body:
        return name
    if isinstance(error, PromptError) and name not in body:
        return "messages" if "messages" in body else "prompt"
    names = [name, *_LENGTH_FIELDS] if "max_new_tokens" in str(error) else [name]
    for field in names:
        if field in body:
            return field
    if isinstance(own, Mapping) and name in own:
        return f"specrej.{name}"
    return "specrej" if isinstance(error, UnknownNameError) else None
