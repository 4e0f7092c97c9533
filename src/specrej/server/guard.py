"""What every HTTP request goes through: an id, who may ask, one line in the log, the counters,
errors that say little.

    app.add_middleware(Guard, gate=Gate(keys=(), hosts=LOOPBACK), meters=meters, paths={"/health"})

A request's `Entry` is in its scope, for those who answer it to note what belongs in the log.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specrej.errors import SpecrejError, UsageError
from specrej.server.logs import log_failure, log_request
from specrej.server.metrics import Meters
from specrej.server.refusals import RefusalError, internal_error, refusal_of

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names under which only this machine is reached."""

_CLIENT_GONE = 499
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


@dataclass(slots=True)
class Entry:
    """What is known of a request: its id, when it came, and what is logged of it beside that."""

    request_id: str
    begun_s: float
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun_s

    def note_failure(self, error: SpecrejError) -> None:
        """Say in the log what a request that was taken ended with, and why where the fault is
        inside.
        """
        refusal = refusal_of(error, {})
        self.fields["error"] = refusal.code
        if refusal.status in (500, 502):
            log_failure(error, self.request_id)


def check_keys(keys: Sequence[str]) -> None:
    """See that each can stand in a header.

    Raises:
        UsageError: one cannot.
    """
    for key in keys:
        if not re.fullmatch(r"[!-~]+", key):
            raise UsageError(
                "an API key must be made of printable ASCII characters, without spaces"
            )


class Gate:
    """Who may ask what.

    Args:
        keys: API keys; none lets everybody in who gets here.
        hosts: names that a request may know the server by; None: any. Without keys a server on
            loopback has to insist: a page from elsewhere whose name was made to point to this
                machine would be of the same origin.
    """

    def __init__(self, keys: Sequence[str], hosts: Collection[str] | None) -> None:
        check_keys(keys)
        self._digests = [_digest(key) for key in keys]
        self._hosts = hosts

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Let a request pass.

        Raises:
            RefusalError: it may not.
        """
        if (
            self._hosts is not None
            and _parts(f"//{headers.get('host', '')}").hostname not in self._hosts
        ):
            raise RefusalError(
                "unknown_host",
                "this server answers to localhost only; behind a proxy give it an API key, or have "
                "the proxy send "
                "'Host: localhost'",
            )
        if method == "POST":
            _check_post(headers)
        if self._digests and (path.startswith("/v1/") or path == "/metrics"):
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, authorization: str) -> None:
        kind, _, given = authorization.partition(" ")
        digest = _digest(given.strip() if kind.lower() == "bearer" else "")
        # All are compared, whole: how long it takes says nothing of which one was nearly right.
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            headers = {"WWW-Authenticate": "Bearer"}
            message = (
                "no API key of this server was given" if given else "this server wants an API key"
            )
            message += ": send the header 'Authorization: Bearer KEY'"
            raise RefusalError("invalid_api_key", message, headers=headers)


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        gate: who may ask what.
        meters: counts.
        paths: those that are counted by name; the others are counted together.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, meters: Meters, paths: Collection[str]) -> None:
        self._app = app
        self._gate = gate
        self._meters = meters
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, is_head = Headers(scope=scope), scope["method"] == "HEAD"
        entry = scope["entry"] = Entry(
            _request_id(headers.get("x-request-id", "")), time.monotonic()
        )
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({"X-Request-Id": entry.request_id, **_HEADERS})
            elif is_head:
                message["body"] = b""
            await send(message)

        try:
            self._gate.check(scope["method"], scope["path"], headers)
            # HEAD is GET without the body.
            await self._app({**scope, "method": "GET"} if is_head else scope, receive, send_noted)
        except RefusalError as refusal:
            entry.fields["error"] = refusal.code
            await refusal.response()(scope, receive, send_noted)
        except ClientGoneError:
            status = status or _CLIENT_GONE
            entry.fields["is_gone"] = True
        except Exception as error:
            log_failure(error, entry.request_id)
            if not status:
                await internal_error().response()(scope, receive, send_noted)
        finally:
            self._note(scope, entry, status or _CLIENT_GONE)

    def _note(self, scope: Scope, entry: Entry, status: int) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._meters.count_request(path, status, entry.seconds)
        log_request(
            {
                "request_id": entry.request_id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(entry.seconds, 4),
                **entry.fields,
            }
        )


def _check_post(headers: Headers) -> None:
    """A page of another origin may send a form without asking; JSON it may not, and it cannot
    hide where it is from.
    """
    origin = headers.get("origin")
    if origin is not None and _parts(origin).netloc.lower() != headers.get("host", "").lower():
        raise RefusalError("other_origin", "a page of another origin may not ask this server")
    kind, _, parameters = headers.get("content-type", "").partition(";")
    is_utf8 = parameters.strip().lower().replace('"', "") in ("", "charset=utf-8")
    if kind.strip().lower() != "application/json" or not is_utf8:
        raise RefusalError(
            "unsupported_media_type", "the body must be sent as Content-Type: application/json"
        )


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # half an IPv6 address
        return urlsplit("")


def _request_id(given: str) -> str:
    """The client's, where it is one that can stand in a log."""
    return (
        given if re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII) else f"req-{secrets.token_hex(8)}"
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
