"""What a process holds beside memory: threads, child processes and sockets.

before = held()
engine = MyEngine()
engine.shutdown()
assert not left_behind(before)
"""

import threading
import time
from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")


def held() -> set[tuple[str, object]]:
    """Threads of Python, and where `/proc` is there also child processes and sockets."""
    threads = {("thread", thread) for thread in threading.enumerate()}
    return {*threads, *_children(), *_sockets()}


def left_behind(
    before: set[tuple[str, object]], patience_s: float = 5.0
) -> set[tuple[str, object]]:
    """What is held beyond that, when threads that are about to end have had time for it."""
    until = time.monotonic() + patience_s
    while (left := held() - before) and time.monotonic() < until:
        time.sleep(0.01)
    return left


def _children() -> set[tuple[str, object]]:
    children: set[tuple[str, object]] = set()
    for path in _PROCESS.glob("task/*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            children.update(("process", number) for number in path.read_text().split())
    return children


def _sockets() -> set[tuple[str, object]]:
    sockets: set[tuple[str, object]] = set()
    for path in _PROCESS.glob("fd/*"):
        with suppress(OSError):
            name = str(path.readlink())
            if name.startswith("socket:"):
                sockets.add(("socket", name))
    return sockets
