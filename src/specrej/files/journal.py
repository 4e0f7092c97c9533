"""Rows that survive: an append-only JSONL file that a kill, at any moment, leaves readable.

    with Journal(path) as journal:
        done = {row["id"] for row in journal.rows}       # what an earlier run has written
        journal.append({"id": "a", "text": "..."})       # on the disk when this returns

A line that was being written when the process died is cut off on opening; whole lines are never
touched.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from specrej.errors import UsageError
from specrej.files.reading import without_mark


class Journal:
    """A JSONL file with one writer.

    Args:
        path: the file, made where it is not there.
        fields: that each row has.

    Attributes:
        path: the file.
        rows: what it held on opening; rows appended since are not added.

    Raises:
        UsageError: the file cannot be opened, or holds a line that is no JSON object or lacks a
            field.
    """

    def __init__(self, path: str | Path, fields: Collection[str] = ()) -> None:
        path = self.path = Path(path)
        try:
            content = path.read_bytes() if path.exists() else b""
            self._end = content.rfind(b"\n") + 1
            self.rows = _parse(path, content, fields)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self._end)
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row through to the disk.

        Raises:
            UsageError: the disk took no more; the file ends with the row before.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._end)
            raise UsageError(
                f"cannot write to {self.path}: {error.strerror}",
                hint=f"nothing before this is lost: {self._end} bytes of whole rows are there; "
                "make room and go on",
            ) from error
        self._end += len(line)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_rows(path: str | Path, fields: Collection[str] = ()) -> list[dict[str, Any]]:
    """The whole rows of a journal that somebody else may be writing.

    Args:
        path: the file.
        fields: that each row has.

    Raises:
        UsageError: there is no such file, or a line is no JSON object or lacks a field.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return _parse(path, content, fields)


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file whole or not at all. Its folder is made.

    Raises:
        UsageError: the file cannot be written.
    """
    with _written_whole(Path(path)) as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False, indent=2)
        file.write("\n")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole or not at all. Its folder is made.

    Raises:
        UsageError: the file cannot be written.
    """
    with _written_whole(Path(path)) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all. Its folder is made.

    Raises:
        UsageError: the file cannot be written.
    """
    with _written_whole(Path(path)) as file:
        file.write(text)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    """A file to write, which has its name when the block has ended well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _parse(path: Path, content: bytes, fields: Collection[str]) -> list[dict[str, Any]]:
    """The rows of all lines that have an end."""
    rows = []
    for number, line in enumerate(without_mark(content, str(path)).split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of {path} is no JSON object")
        if missing := sorted(set(fields) - row.keys()):
            raise UsageError(
                f"line {number} of {path} is damaged: it lacks {', '.join(missing)}",
                hint="take the line out to have it made again",
            )
        rows.append(row)
    return rows
