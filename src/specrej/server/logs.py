"""The server's log: a JSON object a line on stderr, with no text of a prompt or an answer unless
that is asked for.

    start_logging(has_texts=False)
    log_request({"request_id": "req-1", "path": "/v1/chat/completions", "status": 200})

Of an exception there are the types along its chain of causes and the places it came through. What
it says may quote a prompt, so it is left out without `has_texts`; so is what other libraries fill
into their messages.

Lines are written by a thread of their own. When nobody reads them they are left out and counted: a
log that is full holds up no request.
"""

import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Any

from specrej.errors import named

LOG = logging.getLogger("specrej.server")

_OURS = ("specrej.server", "uvicorn", "py.warnings", "stdout")
"""Loggers whose messages are of our making, or hold nothing of a request."""
_MOST_LINES = 10_000
"""That wait to be written."""
_MOST_ALIKE, _ALIKE_S = 5, 10.0
"""So many messages of other libraries that are alike are let through in so many seconds."""
_LAST_WORDS_S = 1.0
"""For what is left to be written when the process ends."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, *, has_texts: bool) -> None:
        super().__init__()
        self._has_texts = has_texts

    def format(self, record: logging.LogRecord) -> str:
        is_ours = self._has_texts or record.name.startswith(_OURS)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": _message(record) if is_ours else str(record.msg).partition("\n")[0],
            **({} if record.name == LOG.name else {"logger": record.name}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = [self._describe(error) for error in _chain(record.exc_info[1])]
        return json.dumps(line, default=str)

    def _describe(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        said = {"says": named(error, str)} if self._has_texts else {}
        status = getattr(error, "status", None)  # of a reply, where another server failed
        replied = {"status": status} if isinstance(status, int) else {}
        return {"type": type(error).__name__, **replied, **said, "at": places}


class Unblocked(logging.Handler):
    """Writes on a thread of its own; what finds no room is left out, and how much that was is
    written later.

    Args:
        descriptor: an open file.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: Queue[bytes] = Queue(_MOST_LINES)
        self._num_left_out = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record).encode() + b"\n")
        except Full:
            self._num_left_out += 1

    def flush(self) -> None:
        """Wait for what is there, for so long only."""
        until_s = time.monotonic() + _LAST_WORDS_S
        while self._lines.unfinished_tasks and time.monotonic() < until_s:
            time.sleep(0.01)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError):  # whoever read it has gone
                self._write(line)
                if self._num_left_out and self._lines.empty():
                    number, self._num_left_out = self._num_left_out, 0
                    fields = {"number": number}
                    record = logging.makeLogRecord(
                        {"name": LOG.name, "levelname": "WARNING", "fields": fields}
                    )
                    record.msg = "lines were left out: nobody read the log"
                    self._write(self.format(record).encode() + b"\n")
            self._lines.task_done()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


class Sparing(logging.Filter):
    """Lets a few messages through that are alike, and then none for a while; the next says how
    many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in (LOG.name, "py.warnings"):
            return True
        now_s, kind = time.monotonic(), (record.name, str(record.msg)[:100])
        if len(self._seen) > 1000:
            self._seen.clear()
        begun_s, number = self._seen.get(kind, (now_s, 0))
        if now_s - begun_s > _ALIKE_S:
            if number > _MOST_ALIKE:
                record.fields = {"left_out": number - _MOST_ALIKE}
            begun_s, number = now_s, 0
        self._seen[kind] = begun_s, number + 1
        return number < _MOST_ALIKE


class _Printed(io.TextIOBase):
    """In place of stdout and stderr: a line that is printed is a line of the log."""

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                logging.getLogger("stdout").info(line)
        return len(text)


def start_logging(*, has_texts: bool, descriptor: int = 2) -> None:
    """Send to stderr what the process has to say from now on, whoever says it, as lines of JSON.

    Loggers and their handlers, warnings, what is printed, and what ends a thread.
    """
    handler = Unblocked(descriptor)
    handler.setFormatter(JsonLines(has_texts=has_texts))
    handler.addFilter(Sparing())
    for logger in (logging.getLogger(name) for name in list(logging.root.manager.loggerDict)):
        logger.handlers, logger.propagate = [], True
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("specrej.server", "stdout"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_args, **_more: (
        f"{category.__name__}: {message}"
    )
    threading.excepthook = lambda given: LOG.error("a thread ended", exc_info=given.exc_value)
    sys.unraisablehook = lambda given: LOG.error(
        "an error that nobody could be told", exc_info=given.exc_value
    )
    sys.stdout = sys.stderr = _Printed()


def log_request(fields: Mapping[str, Any]) -> None:
    """A request that has ended. Those of monitors that found all well are for debugging."""
    is_dull = fields["path"] in ("/health", "/metrics") and fields["status"] == 200
    LOG.log(logging.DEBUG if is_dull else logging.INFO, "request", extra={"fields": fields})


def log_failure(error: BaseException, request_id: str) -> None:
    """What went wrong inside."""
    LOG.error("failure", extra={"fields": {"request_id": request_id}}, exc_info=error)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().strip()
    except Exception:  # a library's, whose arguments do not fit
        return str(record.msg)


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (
        cause := chain[-1].__cause__ or chain[-1].__context__
    ) is not None and cause not in chain:
        chain.append(cause)
    return chain
