"""Answers in the formats of alpaca_eval and FastChat."""

import json
from pathlib import Path
from typing import cast

import pytest

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.exports import (
    export,
    to_alpaca_eval,
    to_mt_bench,
    write_alpaca_eval,
    write_mt_bench,
)
from specrej.evaluation.prompts import Task
from specrej.evaluation.rows import BenchRow

METHOD, OTHER = "speculative_rejection:0.5", "best_of_n:8"
SYSTEM = {"role": "system", "content": "Be brief."}


def row(
    prompt_id: str, method: str, *texts: str, error: bool = False, category: str | None = None
) -> BenchRow:
    messages = [{"role": "user", "content": f"What is {prompt_id}?"}]
    turns = []
    for text in texts:
        turns.append({"messages": list(messages), "text": text})
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": "And then?"},
        ]
    failure = {"kind": "RewardError", "message": "NaN"} if error else None
    given = {
        "prompt_id": prompt_id,
        "category": category,
        "method": method,
        "turns": turns,
        "error": failure,
    }
    return cast("BenchRow", given)


def test_alpaca_eval_takes_one_entry_a_prompt_the_failed_ones_empty() -> None:
    rows = [
        row("b", OTHER, "other b"),
        row("b", METHOD, "é", category="koala"),
        row("a", METHOD, error=True),
        row("a", OTHER, "other a"),
    ]
    assert to_alpaca_eval(rows, METHOD) == [
        {"instruction": "What is b?", "output": "é", "generator": METHOD, "dataset": "koala"},
        {"instruction": "What is a?", "output": "", "generator": METHOD, "dataset": ""},
    ]
    assert [entry["output"] for entry in to_alpaca_eval(rows, OTHER)] == ["other b", "other a"]


def test_what_a_failed_row_has_is_no_answer() -> None:
    assert to_alpaca_eval([row("a", METHOD, "half of it", error=True)], METHOD)[0]["output"] == ""


def test_a_question_on_which_all_failed_comes_from_the_prompts() -> None:
    rows = [row("a", METHOD, error=True), row("a", OTHER, error=True), row("b", METHOD, "text")]
    with pytest.raises(UsageError, match="no row says what prompt 'a' asks"):
        to_alpaca_eval(rows, METHOD)
    task = Task(id="a", turns=("Why?",), category=None, line=1)
    assert [entry["instruction"] for entry in to_alpaca_eval(rows, METHOD, [task])] == [
        "Why?",
        "What is b?",
    ]


def test_alpaca_eval_takes_no_conversations() -> None:
    with pytest.raises(UsageError, match="prompt 'a' is a conversation"):
        to_alpaca_eval([row("a", METHOD, "one", "two")], METHOD)
    with_system = row("a", METHOD, "one")
    with_system["turns"][0]["messages"].insert(0, SYSTEM)
    with pytest.raises(UsageError, match="prompt 'a' is a conversation"):
        to_alpaca_eval([with_system], METHOD)
    with pytest.raises(UsageError, match="prompt 'a' is a conversation"):
        to_alpaca_eval([row("a", METHOD, "one", "two"), row("a", OTHER, "one", error=True)], OTHER)
    turns = ("Why?", "And then?")
    with pytest.raises(UsageError, match="prompt 'a' is a conversation"):
        to_alpaca_eval(
            [row("a", METHOD, error=True)],
            METHOD,
            [Task(id="a", turns=turns, category=None, line=1)],
        )


def test_mt_bench_takes_all_turns_the_failed_ones_empty() -> None:
    rows = [
        row("81", METHOD, "one", "two"),
        row("82", METHOD, "one", error=True),
        row("x", METHOD, error=True),
        row("81", OTHER, "other", "other"),
    ]
    answers = to_mt_bench(rows, METHOD, "sr")
    assert answers[0] == {
        "question_id": 81,
        "answer_id": "sr-81",
        "model_id": "sr",
        "choices": [{"index": 0, "turns": ["one", "two"]}],
    }
    assert [answer["question_id"] for answer in answers] == [81, 82, "x"]
    assert [answer["choices"][0]["turns"] for answer in answers[1:]] == [["", ""], ["", ""]]


def test_where_all_failed_there_is_one_empty_turn() -> None:
    assert to_mt_bench([row("81", METHOD, error=True)], METHOD, "sr")[0]["choices"][0]["turns"] == [
        ""
    ]


def test_an_unknown_method_is_told() -> None:
    rows = [row("81", METHOD, "one")]
    with pytest.raises(UnknownNameError, match="unknown method 'best_of_n:8'"):
        to_alpaca_eval(rows, OTHER)
    with pytest.raises(UnknownNameError, match="unknown method 'best_of_n:8'"):
        to_mt_bench([], OTHER, "sr")


def test_files_are_whole_and_replace_what_was_there(tmp_path: Path) -> None:
    rows = [row(str(number), METHOD, "é\n") for number in (81, 82)]
    for _ in range(2):
        write_alpaca_eval(tmp_path / "outputs.json", to_alpaca_eval(rows, METHOD))
        write_mt_bench(tmp_path / "sr.jsonl", to_mt_bench(rows, METHOD, "sr"))
    assert json.loads((tmp_path / "outputs.json").read_text()) == to_alpaca_eval(rows, METHOD)
    lines = (tmp_path / "sr.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == to_mt_bench(rows, METHOD, "sr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs.json", "sr.jsonl"]


def test_a_write_that_was_killed_leaves_the_next_one_clean(tmp_path: Path) -> None:
    (tmp_path / ".sr.jsonl.partial").write_text('{"question_id": 1}\n{"ques')
    write_mt_bench(tmp_path / "sr.jsonl", to_mt_bench([row("81", METHOD, "one")], METHOD, "sr"))
    assert len((tmp_path / "sr.jsonl").read_text().splitlines()) == 1


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    write_alpaca_eval(tmp_path / "new" / "deep" / "outputs.json", [])
    write_mt_bench(tmp_path / "other" / "sr.jsonl", [])
    assert (tmp_path / "new" / "deep" / "outputs.json").read_text() == "[]\n"
    assert (tmp_path / "other" / "sr.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file/outputs\.json: "):
        write_alpaca_eval(tmp_path / "file" / "outputs.json", [])
    with pytest.raises(UsageError, match=r"cannot write .*file/sr\.jsonl: "):
        write_mt_bench(tmp_path / "file" / "sr.jsonl", [])


def test_an_id_that_a_number_would_spell_otherwise_stays_a_text() -> None:
    rows = [row(prompt_id, METHOD, "one") for prompt_id in ("7", "007", "\u0667", "x7", "0")]
    assert [entry["question_id"] for entry in to_mt_bench(rows, METHOD, "sr")] == [
        7,
        "007",
        "\u0667",
        "x7",
        0,
    ]


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    rows = [
        row("a", METHOD, "one", "two", category="koala"),
        row("b", METHOD, "one"),
        row("c", METHOD, error=True),
    ]
    rows[1]["turns"][0]["messages"].insert(0, SYSTEM)
    done = export(tmp_path / "new" / "sr.jsonl", rows, METHOD, "mt_bench")
    assert (done.answers, done.failed) == (3, 1)
    assert "1 began with messages before the question" in done.flattened
    assert "1 had fewer turns than others" in done.flattened
    assert "1 had a category" in done.flattened
    plain = export(tmp_path / "outputs.json", [row("a", METHOD, "one")], METHOD, "alpaca_eval")
    assert plain == (1, 0, "ids, which alpaca_eval does not have")
    again = [row("a", METHOD, "one"), row("b", METHOD, "two"), row("c", METHOD, "three")]
    again[1]["turns"][0]["messages"] = again[0]["turns"][0]["messages"]
    done = export(tmp_path / "outputs.json", again, METHOD, "alpaca_eval")
    assert "1 ask what another does" in done.flattened
