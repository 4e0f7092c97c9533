"""The server's life: a port, requests, and an end at which those that run are not cut off.

    with bound("127.0.0.1", 8000) as listener:
        ...                                                  # open the model
        asyncio.run(run(app, service, listener, grace_s=30, on_ready=lambda: print("up")))

On SIGTERM or Ctrl-C new requests get a 503; those that run may end within the grace, and are told
if they do not. A second signal ends the process on the spot. When the service fails, or its thread
stands still for longer than a request may take, those that wait are told, and `run` raises: the
process has to be started anew.
"""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from specrej.errors import EngineError, UsageError
from specrej.server.http11 import Connection, most_connections
from specrej.server.service import Service

_BACKLOG = 128
_LAST_WORDS_S = 5
"""For a connection to take what it is still sent when everything has ended."""
_LOOK_S = 1.0
"""Between two looks at the service's thread, and from its failure to the end."""
LEAST_PATIENCE_S = 60.0
"""With a thread that stands still: one step, or the first look at a long prompt, may take its
time."""


class _Server(uvicorn.Server):
    """Uvicorn, with signals left to `run`."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, and does not listen yet; port 0 is any that is free.

    Raises:
        UsageError: the port is taken, or the host is none of this machine.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _unbound(host, port, error) from error
    return listener


async def run(
    app: FastAPI,
    service: Service,
    listener: socket.socket,
    *,
    grace_s: float,
    on_ready: Callable[[], None],
    patience_s: float = 300.0,
) -> None:
    """Serve until a signal comes, and end in an orderly way.

    Args:
        app: the application.
        service: that the application asks; started and stopped here.
        listener: from `bound`.
        grace_s: seconds for which requests that run may go on.
        on_ready: called when requests are taken.
        patience_s: seconds after which a thread that stands still has failed.

    Raises:
        EngineError: the service failed: nothing more would be answered.
        UsageError: another process has begun to listen on the port meanwhile.
    """
    address = listener.getsockname()
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _unbound(address[0], address[1], error) from error
    Connection.most_open = most_connections(_BACKLOG)
    server = _Server(_config(app))
    service.start()
    ending = [
        asyncio.create_task(_stop_on_signal(server, service, grace_s)),
        asyncio.create_task(_stop_on_failure(server, service, patience_s)),
    ]
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    on_ready()
    await serving
    for task in ending:
        task.cancel()
    await asyncio.wait(ending)
    if service.has_failed:
        raise EngineError(
            "the thread that decodes has failed", hint="the log says why; start the server again"
        )


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        backlog=_BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


async def _stop_on_signal(server: uvicorn.Server, service: Service, grace_s: float) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    # What the parent has told the process to ignore stays ignored.
    heeded = [
        kind
        for kind in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(kind) is not signal.SIG_IGN
    ]
    for kind in heeded:
        loop.add_signal_handler(kind, asked.set)
    await asked.wait()
    for kind in heeded:
        loop.remove_signal_handler(kind)
        signal.signal(kind, signal.SIG_DFL)
    await service.stop(grace_s)
    server.should_exit = True


async def _stop_on_failure(server: uvicorn.Server, service: Service, patience_s: float) -> None:
    while not service.has_failed:
        await asyncio.sleep(min(_LOOK_S, patience_s / 4))
        if service.still_s > patience_s and not service.has_failed:
            service.fail(f"it stood still for {service.still_s:.1f} s")
    await asyncio.sleep(_LOOK_S)  # who asks for its health may hear of it
    server.should_exit = True


def _unbound(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {port} of {host} is in use", hint="give another --port; 0 takes one that is free"
        )
    return UsageError(f"cannot listen on {host}, port {port}: {error.strerror}")
