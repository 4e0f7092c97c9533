"""The server's life: a port, requests, and an end at which those that run are not cut off.

    with bound("127.0.0.1", 8000) as listener:
        ...                                                  # open the model
        asyncio.run(run(app, service, listener, grace_s=30, on_ready=lambda: print("up")))

On SIGTERM or Ctrl-C new requests get a 503; those that run may end within the grace, and are told if they do not. A
second signal ends the process on the spot.
"""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from specrej.errors import UsageError
from specrej.server.service import Service

_BACKLOG = 128
_LAST_WORDS_S = 5
"""For a connection to take what it is still sent when everything has ended."""


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
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _unbound(host, port, error) from error
    return listener


async def run(
    app: FastAPI, service: Service, listener: socket.socket, *, grace_s: float, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal comes, and end in an orderly way.

    Args:
        app: the application.
        service: that the application asks; started and stopped here.
        listener: from `bound`.
        grace_s: seconds for which requests that run may go on.
        on_ready: called when requests are taken.

    Raises:
        UsageError: another process has begun to listen on the port meanwhile.
    """
    address = listener.getsockname()
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _unbound(address[0], address[1], error) from error
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = _Server(config)
    service.start()
    stopping = asyncio.create_task(_stop_on_signal(server, service, grace_s))
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    on_ready()
    await serving
    await stopping


async def _stop_on_signal(server: uvicorn.Server, service: Service, grace_s: float) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    # What the parent has told the process to ignore stays ignored.
    heeded = [kind for kind in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(kind) is not signal.SIG_IGN]
    for kind in heeded:
        loop.add_signal_handler(kind, asked.set)
    await asked.wait()
    for kind in heeded:
        loop.remove_signal_handler(kind)
        signal.signal(kind, signal.SIG_DFL)
    await service.stop(grace_s)
    server.should_exit = True


def _unbound(host: str, port: int, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} of {host} is in use", hint="give another --port; 0 takes one that is free")
    return UsageError(f"cannot listen on {host}, port {port}: {error.strerror}")
