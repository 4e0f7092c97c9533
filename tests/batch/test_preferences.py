"""Preference pairs and fine-tuning data, in the form TRL documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answers import answer, five, result_of
from fakes import ByteReader
from specrej.batch.preferences import PairCounts, sft, to_pair, write_pairs
from specrej.batch.requests import Request
from specrej.batch.rows import failure_of, row_of
from specrej.errors import PromptError, UsageError
from specrej.settings import Settings
from specrej.types import Prompt, Result

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
Write = Callable[..., tuple[PairCounts, list[dict[str, Any]]]]


def request(row_id: str = "a", prompt: Prompt = "Hello", num_kept: int = 4) -> Request:
    return Request(
        id=row_id, prompt=prompt, settings=Settings(), num_kept=num_kept, line=1, form="plain"
    )


def row(
    row_id: str = "a", prompt: Prompt = "Hello", result: Result | None = None, num_kept: int = 4
) -> dict[str, Any]:
    return row_of(request(row_id, prompt, num_kept), result or five(), ByteReader)


def two(first: tuple[str, float], second: tuple[str, float]) -> Result:
    return result_of(answer(0, *first), answer(1, *second), best=0)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes pairs of rows; their counts, and the pairs as they are read again."""

    def write(*rows: dict[str, Any], **how: Any) -> tuple[PairCounts, list[dict[str, Any]]]:
        source, output = tmp_path / "out.jsonl", tmp_path / "pairs.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        counts = write_pairs(source, output, **how)
        assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "pairs.jsonl"}
        return counts, [
            json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()
        ]

    return write


def test_a_conversational_pair_is_made_of_messages(write: Write) -> None:
    counts, (first, second) = write(row(), row("b", CONVERSATION))
    assert first == {
        "prompt": [{"role": "user", "content": "Hello"}],
        "chosen": [{"role": "assistant", "content": "better é"}],
        "rejected": [{"role": "assistant", "content": "worst"}],
        "chosen_reward": 3.5,
        "rejected_reward": -5.0,
        "id": "a",
    }
    assert (second["id"], second["prompt"]) == ("b", CONVERSATION)
    assert counts == PairCounts(pairs=2, failed=0, alone=0, equal=0, close=0, unscored=0)


def test_an_answer_that_goes_on_with_an_assistants_message_is_one_message(write: Write) -> None:
    begun = [*CONVERSATION, {"role": "assistant", "content": "Well, "}]
    _, [pair] = write(row("a", begun))
    assert pair["prompt"] == CONVERSATION
    assert pair["chosen"] == [{"role": "assistant", "content": "Well, better é"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "Well, worst"}]
    assert next(sft([row("a", begun)]))["messages"] == [*pair["prompt"], *pair["chosen"]]


def test_a_standard_pair_is_made_of_texts(write: Write) -> None:
    _, (first, second) = write(row(), row("b", [CONVERSATION[1]]), form="standard")
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("Hello", "better é", "worst")
    assert second["prompt"] == "Hello"


def test_rows_without_a_pair_are_counted_by_reason(write: Write) -> None:
    alone = result_of(answer(0, "a", 1.0), best=0)
    counts, pairs = write(
        row("a"),
        failure_of(request("b"), PromptError("too long")),
        row("c", result=alone),
        row("d", result=two(("same", 1.0), ("same", 1.0))),
        row("e", result=two(("same", 2.0), ("same", 1.0))),
        row("f", result=two(("one", 1.0), ("other", 1.0))),
        row("g", result=two(("one", 1.5), ("other", 1.0))),
        row("h", result=two(("one", 1.75), ("other", 1.0))),
        min_margin=0.75,
    )
    assert counts == PairCounts(pairs=2, failed=1, alone=1, equal=3, close=1, unscored=0)
    assert [pair["id"] for pair in pairs] == ["a", "h"]


def test_without_a_margin_any_difference_will_do(write: Write) -> None:
    counts, _ = write(row(result=two(("one", 1e-9), ("other", 0.0))))
    assert counts.pairs == 1


def test_rows_of_one_answer_make_no_pairs(write: Write) -> None:
    with pytest.raises(UsageError, match="the row 'a' holds one answer") as caught:
        write(row(num_kept=1))
    assert "at least 2" in str(caught.value.hint)


def test_openais_rows_do_not_hold_what_was_asked(write: Write) -> None:
    theirs = {"id": "batch_req_1", "custom_id": "a", "response": None, "error": None}
    with pytest.raises(UsageError, match="the row 'a' is in OpenAI's form"):
        write(theirs)
    with pytest.raises(UsageError, match="the row 'a' is in OpenAI's form"):
        list(sft([theirs]))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"form": "implicit"}, "unknown form 'implicit'"),
        ({"min_margin": -1.0}, "min_margin must be 0 or more, got -1"),
        ({"min_margin": float("nan")}, "min_margin must be 0 or more"),
    ],
)
def test_what_cannot_be_honoured_is_refused(write: Write, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        write(row(), **how)


def test_a_conversation_is_no_text(tmp_path: Path, write: Write) -> None:
    write(row())
    before = (tmp_path / "pairs.jsonl").read_bytes()
    for messages in (CONVERSATION, [CONVERSATION[0]]):
        with pytest.raises(UsageError, match="the row 'b' is a conversation"):
            write(row(), row("b", messages), form="standard")
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [{"id": "a", "turns": []}, {}])
def test_a_file_of_something_else_is_said(write: Write, content: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a row of a batch job holds"):
        write(content)


def test_the_answers_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(row()) + "\n")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="a file of its own"):
        write_pairs(path, tmp_path / "." / "out.jsonl")
    assert path.read_bytes() == before


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match="cannot read"):
        write_pairs(path, tmp_path / "pairs.jsonl")
    path.write_text(json.dumps(row()) + "\n")
    with pytest.raises(UsageError, match="cannot write"):
        write_pairs(path, path / "pairs.jsonl")
    write_pairs(path, tmp_path / "folder" / "new" / "pairs.jsonl")
    with pytest.raises(UsageError, match="cannot write"):
        write_pairs(path, tmp_path / "folder")
    assert {each.name for each in tmp_path.rglob("*")} == {
        "out.jsonl",
        "folder",
        "new",
        "pairs.jsonl",
    }


def test_fine_tuning_data_ends_in_the_best_answer() -> None:
    rows = [
        row(num_kept=1),
        failure_of(request("b"), PromptError("too long")),
        row("c", CONVERSATION),
    ]
    best = {"role": "assistant", "content": "better é"}
    assert list(sft(rows)) == [
        {"messages": [{"role": "user", "content": "Hello"}, best], "reward": 3.5, "id": "a"},
        {"messages": [*CONVERSATION, best], "reward": 3.5, "id": "c"},
    ]


def test_a_pair_can_be_made_of_one_row() -> None:
    assert to_pair(row())["rejected"] == [{"role": "assistant", "content": "worst"}]


@pytest.mark.parametrize("form", ["conversational", "standard"])
def test_datasets_loads_the_pairs(tmp_path: Path, write: Write, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    _, pairs = write(row(), row("b", "Bye"), form=form)
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "pairs.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.to_list() == pairs
