"""The file that a batch job writes: one writer, whole rows, and a file beside it that says which
job they are of.

    with open_output("out.jsonl", info, resume=True) as output:
        output.done                  # ids of the rows that an earlier run has written
        output.append(row)           # on the disk when this returns

    out.jsonl               a row a request, as they ended
    out.jsonl.job.json      a `JobInfo`: what must be the same for two runs to be the same job
    .out.jsonl.lock         held by the writer; the system frees it when the process dies

`open_stdout` is for rows that are to go to stdout.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from specrej.batch.description import JobInfo
from specrej.batch.rows import row_id
from specrej.batch.summary import Tally, figures_of
from specrej.errors import UsageError
from specrej.files.journal import Journal, write_json
from specrej.files.resuming import completed, differences

OutputRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """Where rows go.

    Attributes:
        append: writes one row; it is where it belongs when this returns.
        done: ids of the rows that were there.
        tally: what those rows came to; rows appended since are for the caller to add.
    """

    append: Callable[[OutputRow], None]
    done: frozenset[str]
    tally: Tally


@contextmanager
def open_output(path: str | Path, info: JobInfo, *, resume: bool) -> Iterator[Output]:
    """Be the only writer of a job's output: a new one, or (with `resume`) one that was stopped.

    Raises:
        UsageError: the file cannot be written, is in use, holds rows of another job or of none, or
            holds rows of this job and `resume` was not asked for.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", hint="give a file, or --output - for stdout")
    beside = path.with_name(f"{path.name}.job.json")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            there = _read_job(path, beside) if path.exists() and path.stat().st_size else None
            journal = stack.enter_context(Journal(path))
            if there is not None and journal.rows:
                _check(path, beside, there, info, len(journal.rows), resume=resume)
            else:
                write_json(beside, info)
        except Timeout:
            raise UsageError(
                f"another process is writing to {path}", hint="wait for it, or stop it"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror or error}") from error
        done, tally = frozenset(row_id(row) for row in journal.rows), Tally()
        for row in journal.rows:
            tally.add(figures_of(row))
        journal.rows.clear()  # a large output is not to be held while the rest of it is made
        yield Output(journal.append, done, tally)


def _read_job(path: Path, beside: Path) -> Any:
    """The job that a file is of."""
    try:
        job = json.loads(beside.read_text(encoding="utf-8"))
        return {**job, "settings": completed(job.get("settings", {}))}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path} is the output of no batch that can be resumed: {beside} cannot be read",
            hint="give another --output",
        ) from error


def _check(
    path: Path, beside: Path, there: Any, info: JobInfo, num_rows: int, *, resume: bool
) -> None:
    """See that the rows that are there are of this job."""
    if not resume:
        raise UsageError(
            f"{path} holds {num_rows} rows of a job of {there['created']} already",
            hint="go on with it by --resume, or give another --output",
        )
    if differing := differences(there, json.loads(json.dumps(info))):
        raise UsageError(
            f"{path} holds another job: {'; '.join(differing)}",
            hint=f"resume with what the job began with (see {beside}), or give another --output",
        )


@contextmanager
def open_stdout() -> Iterator[Output]:
    """The process's stdout: nothing is kept, so nothing can be resumed."""
    with open(1, "wb", buffering=0, closefd=False) as stream:
        yield Output(partial(_write, stream), frozenset(), Tally())


def _write(stream: FileIO, row: OutputRow) -> None:
    """Write one row through.

    Raises:
        BrokenPipeError: nobody reads any more.
        UsageError: the stream took no more.
    """
    left = memoryview(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    try:
        while left:
            left = left[stream.write(left) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write to stdout: {error.strerror}") from error
