"""Rows in: both forms, broken rows, ids that name one row each."""

import io
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from specrej.batch.requests import BrokenRequest, Request, read_requests
from specrej.batch.rows import failure_of
from specrej.errors import PromptError, UsageError
from specrej.files.journal import Journal
from specrej.server.protocol import parse_chat
from specrej.settings import Settings

Read = Callable[..., list[Request | BrokenRequest]]
SETTINGS = Settings(seed=4)
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Well, "}
BODY = {"model": "m", "messages": [USER], "n": 3, "seed": 8}


def openai(
    custom_id: object = "a", url: object = "/v1/chat/completions", **fields: Any
) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": BODY, **fields}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads rows, given as objects or as the bytes of a line."""

    def read(
        *rows: object, num_kept: int = 2, end: bytes = b"\n", settings: Settings = SETTINGS
    ) -> list[Request | BrokenRequest]:
        path = tmp_path / "in.jsonl"
        path.write_bytes(
            end.join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        )
        return list(read_requests(str(path), settings, num_kept))

    return read


def test_a_row_names_no_code(read: Read) -> None:
    own = {"algorithm": "module:function"}, {"policy": "module:object"}, {"algorithm": "best_of_n"}
    rows = [
        openai(str(number), body={**BODY, "specrej": fields}) for number, fields in enumerate(own)
    ]
    *broken, request = read(*rows)
    assert [str(row.error) for row in broken if isinstance(row, BrokenRequest)] == [
        "unknown algorithm 'module:function'",
        "unknown field of specrej 'policy'",
    ]
    assert isinstance(request, Request)
    assert request.settings.algorithm == "best_of_n"


def test_a_plain_row_takes_the_settings_of_the_job(read: Read) -> None:
    common: dict[str, Any] = {"settings": SETTINGS, "num_kept": 2, "form": "plain"}
    assert read(
        {"id": "a", "prompt": "Hello", "source": "web"},
        {"id": 7, "messages": [USER]},
        {"prompt": "Bye"},
    ) == [
        Request(id="a", prompt="Hello", line=1, **common),
        Request(id="7", prompt=[USER], line=2, **common),
        Request(id="3", prompt="Bye", line=3, **common),
    ]


def test_a_job_that_continues_answers_rows_that_have_nothing_to_continue(read: Read) -> None:
    job = replace(SETTINGS, continue_final_message=True)
    begun = [USER, ANSWER]
    plain = [{"prompt": "Hello"}, {"messages": [USER]}, {"messages": begun}]
    theirs = [openai(f"o{len(one)}", body={**BODY, "messages": one}) for one in ([USER], begun)]
    rows = read(*plain, *theirs, settings=job)
    asked = [row.settings.continue_final_message for row in rows if isinstance(row, Request)]
    assert asked == [False, False, True, False, True]


def test_a_row_in_openais_form_says_its_own(read: Read) -> None:
    text = openai("b", "/v1/completions", body={"model": "m", "prompt": "Hello"})
    completion = parse_chat(BODY, SETTINGS)
    first, second = read(openai(), text, num_kept=5)
    assert first == Request(
        id="a",
        prompt=[USER],
        settings=replace(SETTINGS, seed=8),
        num_kept=3,
        line=1,
        form="openai",
        completion=completion,
    )
    assert isinstance(second, Request)
    assert second.completion is not None
    assert (second.id, second.prompt, second.num_kept, second.completion.kind) == (
        "b",
        "Hello",
        1,
        "text",
    )


@pytest.mark.parametrize(
    ("row", "row_id", "form", "reason"),
    [
        (b"{", "line-2", "plain", "no JSON"),
        (b'{"prompt": "\xff"}', "line-2", "plain", "not UTF-8"),
        (b"[" * 100_000, "line-2", "plain", "recursion"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "line-2", "plain", "limit"),
        ([USER], "line-2", "plain", "expected one JSON object a line"),
        ({"id": "b"}, "b", "plain", "give one of prompt and messages, got none of them"),
        ({"id": "b", "prompt": None}, "b", "plain", "got none of them"),
        (
            {"id": "b", "prompt": "Hello", "messages": [USER]},
            "b",
            "plain",
            "got prompt and messages",
        ),
        ({"id": "b", "prompt": " "}, "b", "plain", "the prompt is empty"),
        ({"id": "b", "prompt": ["Hello"]}, "b", "plain", "prompt must be a text"),
        ({"id": "b", "messages": "Hello"}, "b", "plain", "messages must be a list of messages"),
        (
            {"id": "b", "messages": [{"role": "user"}]},
            "b",
            "plain",
            "messages[0].content must be a text or a list",
        ),
        (
            {"id": "b", "messages": [{**USER, "role": "human"}]},
            "b",
            "plain",
            "must be one of system, developer, user",
        ),
        (
            {"id": "b", "messages": [USER, ANSWER]},
            "b",
            "plain",
            "the conversation ends in an assistant's message",
        ),
        (
            openai("b", body={**BODY, "messages": [USER, ANSWER]}),
            "b",
            "openai",
            "ends in an assistant's message",
        ),
        ({"id": "b", "prompt": "\ud83d"}, "b", "plain", "half a surrogate pair"),
        ({"id": "\ud83d", "prompt": "Hello"}, "line-2", "plain", "id holds half a surrogate pair"),
        (
            {"question_id": "\ud83d", "prompt": "a"},
            "line-2",
            "plain",
            "question_id holds half a surrogate pair",
        ),
        (openai("\ud83d"), "line-2", "openai", "custom_id holds half a surrogate pair"),
        (
            b'{"id": "b", "prompt": "a", "score": NaN}',
            "b",
            "plain",
            "score must be a finite number, got nan",
        ),
        (
            b'{"id": "b", "prompt": "a", "x": {"y": [1, -1e999]}}',
            "b",
            "plain",
            "x.y[1] must be a finite number",
        ),
        (
            b'{"id": "b", "messages": [{"role": "user", "content": "a", "w": 1e999}]}',
            "b",
            "plain",
            "messages[0].w must be a",
        ),
        (b'{"id": "b", "prompt": "a", "w": NaN}', "b", "plain", "w must be a finite number"),
        ({"id": True, "prompt": "Hello"}, "line-2", "plain", "an id must be"),
        ({"id": "", "prompt": "Hello"}, "line-2", "plain", "an id must be"),
        ({"prompt": " "}, "2", "plain", "the prompt is empty"),
        ({"id": "first", "prompt": "again"}, "line-2", "plain", "the id 'first' is that of line 1"),
        (openai("first"), "line-2", "openai", "the id 'first' is that of line 1"),
        (openai(5), "line-2", "openai", "custom_id must be a text, got 5"),
        (openai(""), "line-2", "openai", "custom_id must be a text"),
        (
            {"url": "/v1/completions", "body": {}},
            "line-2",
            "openai",
            "custom_id must be a text, got None",
        ),
        (openai("b", method="GET"), "b", "openai", "method must be POST, got 'GET'"),
        (openai("b", method=None), "b", "openai", "method must be POST, got None"),
        (
            openai("b", url="/v1/embeddings"),
            "b",
            "openai",
            "url must be /v1/chat/completions or /v1/completions",
        ),
        (openai("b", url=["/v1/completions"]), "b", "openai", "url must be"),
        (openai("b", body=None), "b", "openai", "a body must be an object"),
        (openai("b", body={**BODY, "tools": [1]}), "b", "openai", "tools[0] must be"),
        (
            openai("b", body={**BODY, "temperature": -1}),
            "b",
            "openai",
            "temperature must be 0 (greedy)",
        ),
        (
            openai("b", body={**BODY, "temperature": 10**400}),
            "b",
            "openai",
            "temperature must be 0",
        ),
        (b'{"id": "b", "prompt": "a", "n": ' + b"9" * 5000 + b"}", "line-2", "plain", "limit"),
        (
            openai("b", body={**BODY, "specrej": {"decide": "every:" + "9" * 5000}}),
            "b",
            "openai",
            "decide must be",
        ),
        (openai("b", body={**BODY, "\ud83d": 1}), "b", "openai", "half a surrogate pair"),
        (openai("b", prompt="Hello"), "b", "openai", "prompt cannot be honoured"),
    ],
)
def test_a_broken_row_is_said_and_the_rest_runs(
    read: Read, tmp_path: Path, row: object, row_id: str, form: str, reason: str
) -> None:
    before, broken, after = read(
        {"id": "first", "prompt": "Hello"}, row, {"id": "last", "prompt": "Bye"}
    )
    assert (before.id, after.id) == ("first", "last")
    assert isinstance(broken, BrokenRequest)
    assert (broken.id, broken.line, broken.form) == (row_id, 2, form)
    assert reason in str(broken.error)
    with Journal(tmp_path / "out.jsonl") as journal:
        journal.append(failure_of(broken, broken.error))


def test_brackets_without_end_are_an_error_at_any_depth(read: Read) -> None:
    deep = [
        b'{"prompt": "a", "messages": [{"x": ' + b"[" * n + b"]" * n + b"}]}"
        for n in range(900, 1020)
    ]
    assert all(isinstance(request, BrokenRequest) for request in read(*deep))


def test_a_line_that_cannot_be_read_has_the_form_of_the_row_before(read: Read) -> None:
    assert [
        request.form for request in read(b"{", openai(), b"{", b"[]", {"prompt": "Hello"}, b"{")
    ] == [
        "plain",
        "openai",
        "openai",
        "openai",
        "plain",
        "plain",
    ]


def test_a_text_column_called_body_is_no_form(read: Read) -> None:
    (request,) = read({"prompt": "Answer this mail.", "body": "Dear ...", "url": "x"})
    assert (request.form, request.id) == ("plain", "1")


def test_an_id_that_a_broken_row_had_is_taken(read: Read) -> None:
    first, second, third = read(
        {"id": "a"}, {"id": "a", "prompt": "Hello"}, {"id": "a", "prompt": "Hello"}
    )
    assert [first.id, second.id, third.id] == ["a", "line-2", "line-3"]
    assert all("the id 'a' is that of line 1" in str(request.error) for request in (second, third))  # type: ignore[union-attr]


def test_the_name_of_a_broken_line_is_no_other_rows(read: Read) -> None:
    rows = [
        b"{",
        {"id": "line-1", "prompt": "Hello"},
        b"{",
        {"id": "line-1-broken", "prompt": "Bye"},
    ]
    taken = read(*rows)
    assert [request.id for request in taken] == [
        "line-1-broken-broken",
        "line-1",
        "line-3",
        "line-1-broken",
    ]
    assert [type(request) for request in taken] == [BrokenRequest, Request] * 2


def test_a_lines_number_may_be_the_id_of_another(read: Read) -> None:
    taken = read(
        {"id": "2", "prompt": "Hello"}, {"prompt": "Bye"}, {"id": "line-4", "prompt": "Hello"}, b"{"
    )
    assert [request.id for request in taken] == ["2", "line-2", "line-4", "line-4-broken"]
    assert "the id '2' is that of line 1" in str(taken[1].error)  # type: ignore[union-attr]


IDS = st.sampled_from(
    ["a", "1", "2", "3", "line-1", "line-2", "line-3", "line-2-broken", "", None, 2, True]
)
ROWS = st.one_of(
    st.just(b"{"),
    st.builds(lambda i: {"id": i, "prompt": "Hello"}, IDS),
    st.builds(lambda i: {"id": i}, IDS),
    st.builds(openai, IDS),
)


@hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(ROWS, max_size=8))
def test_no_two_rows_have_the_same_id_and_none_is_lost(rows: list[Any]) -> None:
    lines = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
        requests = list(read_requests("-", SETTINGS, 1))
    assert [request.line for request in requests] == list(range(1, len(rows) + 1))
    assert len({request.id for request in requests}) == len(rows)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n \n\n"])
def test_the_form_of_the_file_does_not_matter(read: Read, mark: bytes, end: bytes) -> None:
    rows = read(
        mark + b'{"id": "a", "prompt": "Hello"}', {"id": "b", "prompt": "Bye"}, b"", end=end
    )
    assert [(row.id, type(row)) for row in rows] == [("a", Request), ("b", Request)]


def test_an_empty_file_holds_no_rows(read: Read) -> None:
    assert read(b" \n\n") == []


def test_stdin_is_read_and_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.BytesIO(b'\xef\xbb\xbf{"prompt": "Hello"}\r\n')
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stdin))
    assert [request.id for request in read_requests("-", SETTINGS, 1)] == ["1"]
    assert not stdin.closed


def test_a_pipe_can_be_read_which_opens_only_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(
        target=pipe.write_bytes, args=(b'{"prompt": "Hello"}\n{"prompt": "Bye"}',)
    )
    writer.start()
    assert [request.id for request in read_requests(str(pipe), SETTINGS, 1)] == ["1", "2"]
    writer.join()


@pytest.mark.parametrize("source", ["nope.jsonl", "a/b", "/"])
def test_a_source_that_cannot_be_read_is_said_before_a_row_is_asked_for(source: str) -> None:
    with pytest.raises(UsageError, match="cannot read") as caught:
        read_requests(source, SETTINGS, 1)
    assert "JSONL" in str(caught.value.hint)
    assert not isinstance(caught.value, PromptError)


def test_a_source_that_breaks_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> Any:
        yield b'{"prompt": "Hello"}\n'
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=lines()))
    with pytest.raises(UsageError, match="cannot read '-': Input/output error"):
        read_requests("-", SETTINGS, 1)


def test_at_least_one_answer_is_kept(read: Read) -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        read({"prompt": "Hello"}, num_kept=0)
