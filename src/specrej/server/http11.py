"""HTTP on a connection: uvicorn's, with an end to waiting, and an eye on clients that leave.

    uvicorn.Config(app, http=Connection)

- What does not come to the end of its headers within 30 s is closed; so is what follows a request
  that was refused.
- Bytes behind a request are kept until it is answered. Uvicorn would stop to read, and not learn
  that the client left.
- A client may close its side when it has asked (`shutdown`), and gets its answer. One that left
  looks the same: it is sent bytes that mean nothing (`100 Continue` before an answer, a comment in
  a stream), and whoever left refuses them.
- Connections beyond what the limit of open files leaves are closed at once, so that the others can
  be served.
"""

import asyncio
import logging
import resource
import socket
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 30.0
_MOST_AHEAD = 2**16
"""Bytes behind a request that is not answered yet."""
_LOOK_S = 0.1
_SPARE_FILES = 64
"""For what is no connection: models, rewards that ask others."""

_LOG = logging.getLogger("uvicorn.error")


def most_connections(backlog: int) -> float:
    """That the limit of open files leaves, where so many may come at once."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    num_open = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    return max(limit - num_open - _SPARE_FILES - backlog, 1)


class Connection(H11Protocol):
    """One connection."""

    most_open = float("inf")

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._ahead = b""
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    @property
    def _is_answering(self) -> bool:
        """Whether a request is there that has not got its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_open:
            _LOG.warning("a connection was closed: there are as many as open files allow")
            transport.abort()
            return
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_answering and not self.cycle.more_body:
            self._ahead += data
            if len(self._ahead) > _MOST_AHEAD:
                self.transport.abort()
            return
        super().data_received(data)
        self._time_headers()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        is_whole = self._is_answering and not self.cycle.more_body
        if (
            not is_whole or self.scope["http_version"] == "1.0"
        ):  # which may not be sent 1xx, so it cannot be told
            return None
        if self._watch is None:
            self._probe()
            self._look()
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ahead and not self.transport.is_closing():
            data, self._ahead = self._ahead, b""
            self.data_received(data)
        if self._watch is not None and not self._is_answering:
            self.transport.close()

    def _time_headers(self) -> None:
        """Close the connection in a while unless a request comes to the end of its headers."""
        if self._is_answering:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _probe(self) -> None:
        if not self.cycle.response_started:
            self.transport.write(
                self.conn.send(h11.InformationalResponse(status_code=100, headers=[]))
            )
        elif probe := self.scope["state"].get("probe"):
            self.transport.write(self.conn.send(h11.Data(data=probe)))

    def _look(self) -> None:
        """See whether the client has refused what it was sent."""
        own = self.transport.get_extra_info("socket")
        if own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(_LOOK_S, self._look)
