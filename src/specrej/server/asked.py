"""From the bytes of a body to what it asks, within what the server allows.

    asked = read_request("/v1/chat/completions", parse_json(raw), Settings(), Limits())
    asked.request.settings, asked.is_streamed

What OpenAI's fields mean is the work of `protocol`; here are those that it is a server's to honour
(`stream`, `stream_options`, `specrej.progress`, `specrej.deadline_s`), and the limits. No HTTP
here.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specrej.errors import UsageError
from specrej.files.reading import check_characters
from specrej.server.constraining import CONSTRAINTS
from specrej.server.protocol import ENDPOINTS, Beside, CompletionRequest
from specrej.server.responses import parse_response
from specrej.settings import Settings

READERS = {**ENDPOINTS, "/v1/responses": parse_response}
"""What reads the body of a request, by its path."""
MOST_STOPS, MOST_STOP_CHARACTERS = 16, 128
MOST_AUTO = 256
"""Candidates that a request begins with which gives no number. Memory may carry thousands to the
first decision, where `max_tokens` is large, and nobody waits for so many."""
MOST_CONSTRAINT_CHARACTERS = 32_768
"""Of what answers obey: it compiles in half a second at most, before the queue."""
_OURS = Beside(fields=("stream", "stream_options"), own=("progress", "deadline_s"))
_MOST_CHARACTERS = 256
"""Of a text under `specrej`; no schedule or amount of memory is longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most that a request may ask for.

    Attributes:
        body_bytes: of the body.
        prompt_tokens: of the prompt; None leaves it to the model's context.
        candidates: that an answer is chosen from, or answers, where the request gives a number.
        new_tokens: of an answer; None leaves it to the model's context.
        deadline_s: seconds, waiting included; also what a request gets that gives no deadline.
    """

    body_bytes: int = 2**20
    prompt_tokens: int | None = None
    candidates: int = 1024
    new_tokens: int | None = None
    deadline_s: float = 300.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"the limit {name} must be above 0, got {value}")

    def check(self, defaults: Settings) -> None:
        """See that a request may have what it gets that says nothing.

        Raises:
            UsageError: it is more than a request may ask for.
        """
        if self.new_tokens is not None and defaults.max_new_tokens > self.new_tokens:
            raise UsageError(
                f"max_new_tokens={defaults.max_new_tokens} exceeds the {self.new_tokens} that a "
                "request may ask for"
            )
        if (defaults.num_candidates or 0) > self.candidates:
            raise UsageError(
                f"n={defaults.n} exceeds the {self.candidates} candidates that a request may ask "
                "for"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a request asks for, and how it is to be answered.

    Attributes:
        request: what OpenAI's fields say, and ours.
        is_streamed: as server-sent events, from the first word that is certain.
        has_usage: with a last event that holds the usage.
        has_progress: with progress as events of its own rather than as comments.
        deadline_s: seconds that it may take.
    """

    request: CompletionRequest
    is_streamed: bool
    has_usage: bool
    has_progress: bool
    deadline_s: float


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        UsageError: no JSON, or no object.
    """
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        kind = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise UsageError(f"the body is no JSON: {kind}") from error
    if not isinstance(body, dict):
        raise UsageError(f"the body must be an object, got {reprlib.repr(body)}")
    return body


def read_request(path: str, body: Mapping[str, Any], defaults: Settings, limits: Limits) -> Asked:
    """What a body asks for at an endpoint.

    Raises:
        UsageError: a field that cannot be honoured, or a value beyond its range or the limits;
            names it.
        PromptError: the conversation or the prompt is none, or a text anywhere holds half a
            surrogate pair.
    """
    check_characters(body, "")
    is_streamed = _flag("stream", body.get("stream"))
    has_usage = _wants_usage(body.get("stream_options"))
    own = body.get("specrej")
    own = own if isinstance(own, Mapping) else {}
    _check_lengths(own)
    has_progress = _flag("specrej.progress", own.get("progress"))
    if has_progress and not is_streamed:
        raise UsageError(
            "specrej.progress needs stream, which is not true",
            hint="without a stream nothing tells of it",
        )
    request = READERS[path](body, defaults, _OURS)
    _check_limits(request, limits, "specrej.n" if own.get("n") is not None else "best_of")
    return Asked(
        request=request,
        is_streamed=is_streamed,
        has_usage=has_usage,
        has_progress=has_progress,
        deadline_s=_deadline(own.get("deadline_s"), limits.deadline_s),
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {reprlib.repr(value)}")
    return bool(value)


def _wants_usage(options: object) -> bool:
    """Of a stream; without one there is nothing to ask for."""
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise UsageError(f"stream_options must be an object, got {reprlib.repr(options)}")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") or (
            name == "include_obfuscation" and value
        ):
            raise UsageError(
                f"stream_options.{reprlib.repr(name)[1:-1]} cannot be honoured, got "
                f"{reprlib.repr(value)}",
                hint="honoured is include_usage",
            )
    return _flag("stream_options.include_usage", options.get("include_usage"))


def _deadline(given: object, most_s: float) -> float:
    if given is None:
        return most_s
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= most_s:
        raise UsageError(
            f"specrej.deadline_s must be seconds above 0, at most {most_s:g} here, got "
            f"{reprlib.repr(given)}"
        )
    return float(given)


def _check_lengths(own: Mapping[str, Any]) -> None:
    """No text among our fields is long: some are looked at by rules whose time grows with the
    square of it.
    """
    for name, value in own.items():
        is_long = isinstance(value, str) and len(value) > _MOST_CHARACTERS
        if len(name) > _MOST_CHARACTERS or (is_long and name not in CONSTRAINTS):
            raise UsageError(f"specrej.{name[:40]} must have at most {_MOST_CHARACTERS} characters")


def _check_limits(request: CompletionRequest, limits: Limits, candidates: str) -> None:
    """See that it asks for no more; `candidates` is the field that gives their number."""
    settings = request.settings
    limited = {
        "max_new_tokens": (settings.max_new_tokens, limits.new_tokens),
        "n": (request.num_answers, limits.candidates),
        candidates: (settings.num_candidates or 0, limits.candidates),
    }
    for name, (value, most) in limited.items():
        if most is not None and value > most:
            raise UsageError(f"{name} must be at most {most} on this server, got {value}")
    if (obeyed := settings.constraint) and len(obeyed.text) > MOST_CONSTRAINT_CHARACTERS:
        raise UsageError(
            f"{obeyed.kind} must have at most {MOST_CONSTRAINT_CHARACTERS:,} characters on this "
            f"server, got {len(obeyed.text):,}"
        )
    if len(settings.stop) > MOST_STOPS or any(
        len(stop) > MOST_STOP_CHARACTERS for stop in settings.stop
    ):
        raise UsageError(
            f"stop must be at most {MOST_STOPS} strings of {MOST_STOP_CHARACTERS} characters or "
            "fewer"
        )
