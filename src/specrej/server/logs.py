"""The server's log: a JSON object a line on stderr, with no text of a prompt or an answer unless that is asked for.

    start_logging(has_texts=False)
    log_request({"request_id": "req-1", "path": "/v1/chat/completions", "status": 200})

Of an exception there are the types along its chain of causes and the places it came through. What it says may quote a
prompt, so it is left out without `has_texts`.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("specrej.server")


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, *, has_texts: bool) -> None:
        super().__init__()
        self._has_texts = has_texts

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = [self._describe(error) for error in _chain(record.exc_info[1])]
        return json.dumps(line, default=str)

    def _describe(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        said = {"says": str(error)} if self._has_texts else {}
        return {"type": type(error).__name__, **said, "at": places}


def start_logging(*, has_texts: bool) -> None:
    """Send what the server and uvicorn log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(has_texts=has_texts))
    for name, level in (("specrej.server", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_request(fields: Mapping[str, Any]) -> None:
    """A request that has ended. Those of monitors that found all well are for debugging."""
    is_dull = fields["path"] in ("/health", "/metrics") and fields["status"] == 200
    LOG.log(logging.DEBUG if is_dull else logging.INFO, "request", extra={"fields": fields})


def log_failure(error: BaseException, request_id: str) -> None:
    """What went wrong inside."""
    LOG.error("failure", extra={"fields": {"request_id": request_id}}, exc_info=error)


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain
