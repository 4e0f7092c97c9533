"""Text from outside: UTF-8 with and without a mark, other encodings by name, and halves of
characters."""

import codecs
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.batch.requests import read_requests
from specrej.cli.answer import _read
from specrej.errors import PromptError, UsageError
from specrej.evaluation.policy_grid import read_policies
from specrej.evaluation.prompts import load_prompts
from specrej.files.journal import read_rows
from specrej.files.reading import check_characters, decode, read_text, without_mark
from specrej.rewards.references import read_references
from specrej.settings import Settings

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(TEXTS)
def test_a_mark_is_no_text(text: str) -> None:
    text = text.removeprefix("\ufeff")
    assert decode(text.encode("utf-8-sig"), "a") == decode(text.encode(), "a") == text


@given(TEXTS, st.sampled_from(["utf-16", "utf-32"]))
def test_another_encoding_is_named(text: str, encoding: str) -> None:
    with pytest.raises(UsageError, match=f"prompts.jsonl is {encoding.upper()}, expected UTF-8"):
        decode(text.encode(encoding), "prompts.jsonl")


def test_bytes_that_are_no_text_are_named_with_their_place() -> None:
    for mark in (b"", codecs.BOM_UTF8):
        with pytest.raises(
            UsageError, match=f"stdin is not UTF-8: invalid start byte at byte {len(mark) + 2}"
        ):
            decode(mark + b"ab\xff", "stdin")
    assert without_mark(codecs.BOM_UTF8 + b"\xff", "a") == b"\xff"


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "text": ("Why?\n", read_text),
    "requests": (
        '{"prompt": "Why?"}\n',
        lambda path: list(read_requests(str(path), Settings(), 1)),
    ),
    "prompts": ('{"prompt": "Why?"}\n', lambda path: load_prompts(str(path)).tasks),
    "policies": ('{"alpha": 0.5}\n', read_policies),
    "journal": ('{"alpha": 0.5}\n', read_rows),
    "references": (
        '{"prompt": "Why?", "answer": "é"}\n',
        lambda path: read_references(f"@{path}")([{"role": "user", "content": "Why?"}]),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_drops_the_mark_and_names_what_is_not_utf_8(name: str, tmp_path: Path) -> None:
    content, read = READERS[name]
    path = tmp_path / "in.jsonl"
    path.write_bytes(content.encode())
    expected = read(path)
    path.write_bytes(content.encode("utf-8-sig"))
    assert read(path) == expected
    path.write_bytes(content.encode("utf-16"))
    with pytest.raises(UsageError, match=r"in\.jsonl is UTF-16"):
        read(path)


def test_a_prompt_from_stdin_has_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(content: bytes) -> str:
        stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
        monkeypatch.setattr(sys, "stdin", stdin)
        return _read("-")

    assert piped(codecs.BOM_UTF8 + b"Why?\r\n") == "Why?"
    with pytest.raises(UsageError, match="stdin is UTF-16"):
        piped("Why?".encode("utf-16"))
    with pytest.raises(UsageError, match="stdin is not UTF-8"):
        piped(b"\xe9")


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("a\ud800", "prompt", r"prompt holds half a surrogate pair, \\ud800,"),
        (
            {"messages": [{"content": "a"}, {"content": "\udfff"}]},
            "",
            r"messages\[1\]\.content holds",
        ),
        ({"a": {"\ud800": 1}}, "", "a name in a holds"),
        (["a", ("b", "\ud83d")], "stop", r"stop\[1\]\[1\] holds"),
    ],
)
def test_half_a_character_is_named_by_its_place(content: object, name: str, expected: str) -> None:
    with pytest.raises(PromptError, match=expected) as caught:
        check_characters(content, name)
    str(caught.value).encode()


@given(
    st.recursive(
        TEXTS | st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    )
)
def test_what_a_file_can_take_passes(content: object) -> None:
    json.dumps(content, ensure_ascii=False).encode()
    check_characters(content, "content")


def test_half_a_character_in_a_reference_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "answer": "\ud800"}))
    with pytest.raises(UsageError, match=r"line 1 of .*: answer holds half a surrogate pair"):
        read_references(f"@{path}")
