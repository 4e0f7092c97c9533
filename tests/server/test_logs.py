"""Every line is JSON, whoever says it; a log that nobody reads holds up nobody."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import specrej
from endpoint import until
from specrej.server.logs import JsonLines, Sparing, Unblocked

SOURCES = str(Path(specrej.__file__).parents[1])
SAYS_MUCH = """
import asyncio, logging, sys, threading, warnings
from specrej.server.logs import LOG, log_failure, start_logging

old = logging.getLogger("library")
old.addHandler(logging.StreamHandler())
old.propagate = False
start_logging(has_texts={has_texts})
LOG.info("ours")
old.warning("a library says\\n%s", "SECRET")
old.warning("two of %d", "SECRET", 3)
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
warnings.warn("this is old", DeprecationWarning)
warnings.warn("this is wrong")
print("a reward prints", 5, "%s %d")
print("to stderr\\ntwo lines", file=sys.stderr)
try:
    raise ValueError("SECRET")
except ValueError as error:
    log_failure(error, "req-1")
def fail():
    raise RuntimeError("SECRET")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise RuntimeError("SECRET")
Broken()
async def go():
    asyncio.get_running_loop().call_soon(fail)
    asyncio.get_running_loop().create_task(asyncio.sleep(0))
    future = asyncio.get_running_loop().create_future()
    future.set_exception(RuntimeError("SECRET"))
    await asyncio.sleep(0)
asyncio.run(go())
for _ in range(100):
    logging.getLogger("asyncio").error("socket.accept() out of system resource\\nsocket: SECRET")
"""


@pytest.mark.parametrize("has_texts", [False, True])
def test_every_line_is_json_whoever_says_it(has_texts: bool) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SAYS_MUCH.replace("{has_texts}", str(has_texts))],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not ended.stdout
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    events = [line["event"] for line in lines]
    for event in (
        "ours",
        "a library says",
        "Invalid HTTP request received.",
        "a reward prints 5 %s %d",
        "two lines",
    ):
        assert [said for said in events if said.startswith(event)], (event, events)
    assert {
        "UserWarning: this is wrong",
        "failure",
        "a thread ended",
        "an error that nobody could be told",
    } <= {*events}
    assert ("SECRET" in ended.stderr) == has_texts
    assert sum(event.startswith("socket.accept()") for event in events) == 5, (
        "the others are left out"
    )


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def logger_to(descriptor: int) -> logging.Logger:
    handler = Unblocked(descriptor)
    handler.setFormatter(JsonLines(has_texts=False))
    logger = logging.Logger("specrej.server")
    logger.addHandler(handler)
    return logger


def test_a_log_that_nobody_reads_stops_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    logger = logger_to(writing)
    num_lines = 30_000
    for number in range(num_lines):  # which ends, though the pipe has been full for long
        logger.info("line", extra={"fields": {"number": number, "filler": "x" * 100}})
    lines: list[dict[str, Any]] = []

    def read() -> None:
        with open(os.dup(reading)) as file:  # noqa: PTH123
            for line in file:
                lines.append(json.loads(line))
                if lines[-1]["event"] != "line":
                    return

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()
    *written, last = lines
    assert "left out" in last["event"]
    assert len(written) + last["number"] == num_lines
    assert [line["number"] for line in written] == list(range(len(written)))


def test_a_reader_that_went_stops_nothing() -> None:
    reading, writing = os.pipe()
    logger = logger_to(writing)
    os.close(reading)
    for _ in range(10):
        logger.info("line")
    handler = logger.handlers[0]
    handler.flush()
    assert isinstance(handler, Unblocked)
    until(lambda: not handler._lines.unfinished_tasks)
    os.close(writing)


def test_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sparing, now_s = Sparing(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    def record() -> logging.LogRecord:
        return logging.makeLogRecord({"name": "asyncio", "msg": "again"})

    assert [sparing.filter(record()) for _ in range(8)] == [True] * 5 + [False] * 3
    now_s += 11
    late = record()
    assert sparing.filter(late)
    assert JsonLines(has_texts=False).format(late).endswith('"left_out": 3}')
    ours = [logging.makeLogRecord({"name": "specrej.server", "msg": "request"}) for _ in range(100)]
    assert all(map(sparing.filter, ours))


def test_an_error_whose_message_cannot_be_shown_is_a_line_all_the_same() -> None:
    class UnnameableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    record = logging.makeLogRecord({"exc_info": (UnnameableError, UnnameableError(), None)})
    [shown] = json.loads(JsonLines(has_texts=True).format(record))["exception"]
    assert shown["says"] == "UnnameableError (its message cannot be shown)"
