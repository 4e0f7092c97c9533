"""Sources that are no JSON lines are named, and those that are pass, however broken a line of
theirs may be."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.batch.requests import Request, read_requests
from specrej.errors import UsageError
from specrej.evaluation.prompts import load_prompts
from specrej.files.jsonlines import check_lines
from specrej.rewards.references import read_references
from specrej.settings import Settings

ROWS = [
    {"id": "a", "prompt": "Why?", "answer": "so"},
    {"id": "b", "prompt": "How?", "answer": "thus"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
DOORS: list[Callable[[str], object]] = [
    lambda path: list(read_requests(path, Settings(), 1)),
    load_prompts,
    lambda path: read_references(f"@{path}"),
]


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def written(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode(encoding))


FORMS: dict[str, Callable[[Path], object]] = {
    "one JSON array": written(json.dumps(ROWS)),
    "one JSON array,": written("\n " + json.dumps(ROWS, indent=2)),
    "CSV": written("id,prompt,answer\na,Why?,so\n"),
    "CSV,": written('"prompt";"answer"\n'),
    "CSV, ": written("prompt\nWhy?\n"),
    "TSV": written("id\tprompt\tanswer\n"),
    "UTF-16": written(LINES, "utf-16"),
    "UTF-16 or UTF-32": written(LINES, "utf-16-be"),
    "UTF-16 or UTF-32 without": written(LINES, "utf-32-le"),
    "UTF-32": written(LINES, "utf-32"),
    "gzip": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "Parquet": parquet,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", FORMS)
def test_another_form_is_named_at_every_door(
    tmp_path: Path, door: Callable[[str], object], form: str
) -> None:
    path = tmp_path / "in"
    FORMS[form](path)
    with pytest.raises(UsageError, match=rf"{path} is {form}.*expected") as caught:
        door(f"{tmp_path}/in")
    assert caught.value.hint
    path.write_text(LINES)
    assert door(f"{tmp_path}/in")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.dictionaries(st.text(), JSON).map(json.dumps)
    | st.lists(JSON).map(json.dumps)
    | JSON.map(json.dumps)
)
def test_a_line_of_json_is_never_named_as_something_else(line: str) -> None:
    check_lines([line.encode()], "in")


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{broken]",
        b"[1, 2]",
        b"[[[[",
        b"[]",
        b"hello",
        b"hello, world",
        b"{}",
        b'"prompt, x"',
    ],
)
def test_a_broken_line_is_left_to_whoever_reads_it(line: bytes) -> None:
    check_lines([line], "in")


@pytest.mark.parametrize(
    "line",
    [
        b"# prompt, id",
        b"question",
        b'[{"role": "user", "content": "Why?"}]',
        b"[",
        b"PAR1",
        b'{"id": "a", "prompt": "a\0b"}',
        b'{ \0"id": "a", "prompt": "b"}',
    ],
)
@pytest.mark.parametrize("num_between", [0, 1])
def test_a_broken_first_line_leaves_the_rows_that_follow(
    tmp_path: Path, line: bytes, num_between: int
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b"\n\n".join([line, *[b"and so on"] * num_between, *LINES.encode().splitlines()])
    )
    assert [task.id for task in load_prompts(path).tasks] == ["a", "b"]
    assert [type(request) for request in read_requests(path, Settings(), 1)][-2:] == [
        Request,
        Request,
    ]


def test_only_as_much_is_read_ahead_as_is_looked_at() -> None:
    taken = []

    def lines() -> Iterator[bytes]:
        for line in (b'{"prompt": "Why?"}', b"[", b"prompt, id"):
            taken.append(line)
            yield line

    check_lines(lines(), "in")
    assert taken == [b'{"prompt": "Why?"}']
    check_lines([], "in")


@pytest.mark.parametrize("line", [b'{ \0"id": 1}', b"{\0", b'{"a": "\0"}', b"a\0bc"])
def test_a_zero_byte_alone_is_no_encoding(line: bytes) -> None:
    check_lines([line], "in")


def test_a_mark_may_begin_any_line_of_files_that_were_put_together(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    mark = b"\xef\xbb\xbf"
    path.write_bytes(
        b"\n" + b"".join(mark + line + b"\n" for line in [b"", *LINES.encode().splitlines()])
    )
    assert [request.id for request in read_requests(path, Settings(), 1)] == ["a", "b"]
    assert [task.id for task in load_prompts(path).tasks] == ["a", "b"]
    assert read_references(f"@{path}")([{"role": "user", "content": "How?"}]) == "thus"
