"""What goes into a batch job: rows of a JSONL file or of stdin, as requests.

    {"id": "a", "prompt": "Why is the sky blue?"}                     plain; or "messages"
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}     OpenAI's

    for request in read_requests("in.jsonl", Settings(seed=1), num_kept=1):          # or "-"
        ...

A row that cannot be honoured is a `BrokenRequest`, and the next ones go on. Rows are read as they
are asked for. No two have the same id, broken ones included: it names their row in the output.
Nothing is asked of a model here.
"""

import reprlib
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from specrej.errors import PromptError, SpecrejError, UsageError
from specrej.evaluation.prompts import check_writable, number_lines, parse_line, read_id
from specrej.files.reading import check_characters
from specrej.server.protocol import ENDPOINTS, CompletionRequest
from specrej.settings import Settings
from specrej.types import Prompt

Form = Literal["plain", "openai"]

_PLAIN = '{"id": "a", "prompt": "Why is the sky blue?"}'
_OPENAI_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One row to answer.

    Attributes:
        id: unique in the job.
        prompt: a text or a conversation.
        settings: those of the job, with what the row says otherwise.
        num_kept: the row out holds the best so many answers.
        line: where it came from, counted from 1.
        form: that of the row, in and out.
        completion: what a row in OpenAI's form asks for; None for a plain one.
        num_skipped: see `specrej.api.RunRequest`.
    """

    id: str
    prompt: Prompt
    settings: Settings
    num_kept: int
    line: int
    form: Form
    completion: CompletionRequest | None = None
    num_skipped: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRequest:
    """A row that cannot be answered.

    Attributes:
        id: its own, where it has one that no row before it had; else "line-" and its number, and
            "-broken" behind it where a row anywhere has that.
        line: where it came from, counted from 1.
        error: what is wrong with it.
        form: that of the row; of a line that cannot be read, that of the row before.
    """

    id: str
    line: int
    error: SpecrejError
    form: Form


def read_requests(
    source: str | Path, settings: Settings, num_kept: int
) -> list[Request | BrokenRequest]:
    """The rows of a JSONL file, or of stdin ("-"), in order; blank lines are skipped.

    A plain row holds `prompt` or `messages`, and an id by one of the names that `specrej bench`
    knows; without one it is called by its line's number. Other columns of it are left alone.

    Args:
        source: a path, or "-".
        settings: of the job.
        num_kept: answers that the row out of a plain row holds; a row in OpenAI's form says it by
            its `n`.

    Raises:
        UsageError: num_kept is below 1, or the source cannot be read.
    """
    if num_kept < 1:
        raise UsageError(f"the number of answers kept must be at least 1, got {num_kept}")
    source = str(source)
    requests: list[Request | BrokenRequest] = []
    lines: dict[str, int] = {}  # by id
    form: Form = "plain"
    with _open(source) as file:
        try:
            for line, text in number_lines(file, "stdin" if source == "-" else source):
                request = _parse(text, line, form, settings, num_kept, lines)
                form = request.form
                if request.id:
                    lines[request.id] = line
                requests.append(request)
        except OSError as error:
            raise _unreadable(source, error) from error
    return [
        request if request.id else replace(request, id=_free_id(request.line, lines))
        for request in requests
    ]


def _open(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot read {source!r}: {error.strerror}", hint="give a JSONL file, or - for stdin"
    )


def _parse(
    text: bytes, line: int, form: Form, settings: Settings, num_kept: int, lines: Mapping[str, int]
) -> Request | BrokenRequest:
    """A line as a request; `lines` are those of the ids before. A broken one may have an empty
    id.
    """
    row_id = ""
    try:
        row = parse_line(text)
        if not isinstance(row, Mapping):
            raise PromptError(
                f"expected one JSON object a line, got {reprlib.repr(row)}",
                hint=f"such as {_PLAIN}",
            )
        form = _form(row)
        given = _custom_id(row) if form == "openai" else read_id(row, line)
        if given in lines:
            raise UsageError(
                f"the id {given!r} is that of line {lines[given]}",
                hint="give each row an id of its own",
            )
        row_id = given
        check_writable(row)
        if form == "openai":
            return _parse_openai(row, settings, line)
        return _parse_plain(row, settings, num_kept, line)
    except SpecrejError as error:
        return BrokenRequest(id=row_id, line=line, error=error, form=form)


def _form(row: Mapping[str, Any]) -> Form:
    is_plain = "prompt" in row or "messages" in row
    return "openai" if "custom_id" in row or ("body" in row and not is_plain) else "plain"


def _free_id(line: int, lines: Mapping[str, int]) -> str:
    name = f"line-{line}"
    while name in lines:
        name += "-broken"
    return name


def _custom_id(row: Mapping[str, Any]) -> str:
    custom_id = row.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise UsageError(f"custom_id must be a text, got {reprlib.repr(custom_id)}")
    check_characters(custom_id, "custom_id")
    return custom_id


def _parse_plain(row: Mapping[str, Any], settings: Settings, num_kept: int, line: int) -> Request:
    given = [name for name in ("prompt", "messages") if row.get(name) is not None]
    if len(given) != 1:
        raise PromptError(
            f"give one of prompt and messages, got {' and '.join(given) or 'none of them'}"
        )
    prompt = row[given[0]]
    kind, words = (str, "a text") if given == ["prompt"] else (list, "a list of messages")
    if not isinstance(prompt, kind):
        raise PromptError(f"{given[0]} must be {words}, got {reprlib.repr(prompt)}")
    settings = settings.common_to(prompt)
    settings.check(prompt)
    return Request(
        id=read_id(row, line),
        prompt=prompt,
        settings=settings,
        num_kept=num_kept,
        line=line,
        form="plain",
    )


def _parse_openai(row: Mapping[str, Any], settings: Settings, line: int) -> Request:
    for name, value in row.items():
        if name not in _OPENAI_FIELDS and value is not None:
            raise UsageError(f"{name} cannot be honoured, got {reprlib.repr(value)}")
    if row.get("method") != "POST":
        raise UsageError(f"method must be POST, got {reprlib.repr(row.get('method'))}")
    url = row.get("url")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise UsageError(f"url must be {' or '.join(ENDPOINTS)}, got {reprlib.repr(url)}")
    completion = ENDPOINTS[url](row.get("body"), settings)
    if completion.others or completion.has_echo:
        name = "echo" if completion.has_echo else "a list of prompts"
        raise UsageError(
            f"{name} cannot be honoured in a batch",
            hint="give each prompt a row of its own, and leave out echo; a server takes both",
        )
    return Request(
        id=row["custom_id"],
        prompt=completion.prompt,
        settings=completion.settings,
        num_kept=completion.num_answers,
        line=line,
        form="openai",
        completion=completion,
    )
