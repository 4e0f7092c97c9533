"""A journal keeps whole rows, whatever happens while one is written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from specrej.errors import UsageError
from specrej.files.journal import Journal, read_rows, write_json

SOURCES = str(Path(specrej.__file__).parents[1])
ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "one\r\ntwo\u2028three"},
    {"id": "é", "n": [1, 2.5, None]},
]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path) as journal:
        assert journal.rows == []
        for row in ROWS:
            journal.append(row)
    with Journal(path) as journal:
        assert journal.rows == ROWS
    assert read_rows(path) == ROWS
    assert len(path.read_text().split("\n")) == len(ROWS) + 1


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_row_cut_anywhere_is_gone_and_the_others_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
    content = b"".join(lines)[:cut]
    path.write_bytes(content)
    whole = sum(len(b"".join(lines[: count + 1])) <= len(content) for count in range(len(lines)))
    assert read_rows(path) == ROWS[:whole]
    with Journal(path) as journal:
        assert journal.rows == ROWS[:whole]
        journal.append({"id": "new"})
    assert read_rows(path) == [*ROWS[:whole], {"id": "new"}]


def test_a_process_killed_amid_writing_leaves_whole_rows_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys; from pathlib import Path; from specrej.files.journal import Journal\n"
        "with Journal(Path(sys.argv[1])) as journal:\n"
        "    for number in range(len(journal.rows), 10**9): journal.append({'number': number, "
        "'text': 'x' * 5000})"
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": SOURCES}
        )
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 20_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [row["number"] for row in read_rows(path)] == list(range(len(read_rows(path))))
    assert len(read_rows(path)) >= 12


def test_a_full_disk_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path) as journal:
        journal.append({"id": 1})

        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(UsageError, match="No space left on device"):
                journal.append({"id": 2})
        assert read_rows(path) == [{"id": 1}]
        journal.append({"id": 3})
    assert read_rows(path) == [{"id": 1}, {"id": 3}]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n[2]\n')
    with pytest.raises(UsageError, match=r"line 2 of .* is no JSON object"):
        Journal(path)
    path.write_text('{"id": 1}\n{"id"\n')
    with pytest.raises(UsageError, match=r"line 2 of .* is no JSON:"):
        read_rows(path)


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append({"reward": float("nan")})
    assert read_rows(tmp_path / "rows.jsonl") == []


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"kind": "bench"})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"kind": float("inf")})
    assert json.loads(path.read_text()) == {"kind": "bench"}
    assert list(tmp_path.iterdir()) == [path]  # nothing is left of what was begun
    with pytest.raises(UsageError, match=r"cannot write .*run\.json/summary\.json: "):
        write_json(path / "summary.json", {})
