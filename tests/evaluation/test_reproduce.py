"""Rows of benchmark tables on benches without a model, with failures: every figure again by numpy,
from the files.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_bench, write_bench

from judging import say
from recomputed import FIGURES, Files
from servers import Server, record_waits, serving
from specrej.errors import UsageError
from specrej.evaluation import judge_grade
from specrej.evaluation.judge import record
from specrej.evaluation.judge_client import JudgeServer
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.reproduce import ROWS, find_row, mt_bench
from specrej.evaluation.reproduce.protocol import Protocol
from specrej.evaluation.reproduce.running import (
    RowOutcome,
    ask_judge,
    conclude,
    read_answered,
    read_disagreement,
)
from specrej.settings import Settings

METHODS = ("best_of_n:4", "best_of_n:16", "speculative_rejection:0.5")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    record_waits(monkeypatch)
    with serving(lambda answer: answer) as server:
        server.answer = say
        yield server


def made(directory: Path, *, num_turns: int, num_prompts: int = 23) -> Loaded:
    """A bench in a folder, on which each method has failed once, and its prompts."""
    info, rows = make_bench(
        num_prompts=num_prompts, methods=METHODS, num_failures=3, num_turns=num_turns
    )
    write_bench(directory, info, rows)
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    tasks = tuple(
        Task(
            id=name,
            turns=tuple(f"Question {number}.{turn}: how?" for turn in range(num_turns)),
            category=("writing", "facts")[number % 2],
            line=number + 1,
            references=tuple("Begin with water." for _ in range(num_turns)),
        )
        for number, name in enumerate(ids)
    )
    return Loaded(source="prompts.jsonl", tasks=tasks, broken=(), sha256="")


def run(protocol: Protocol, directory: Path, loaded: Loaded, server: Server) -> RowOutcome:
    judge = JudgeServer(base_url=f"{server.url}/v1", model="some-judge", concurrency=2)
    answered = read_answered(directory, loaded, METHODS[0], judge)
    asked = list(ask_judge(protocol, answered, judge, directory))
    assert len(asked) == len(protocol.questions(answered))
    answered = read_answered(directory, loaded, METHODS[0], judge)
    settings = Settings(**protocol.settings)  # type: ignore[arg-type]
    return conclude(protocol, answered, settings, judge)


@pytest.mark.parametrize("name", list(ROWS))
def test_figures_are_those_that_numpy_finds_in_the_files(
    server: Server, tmp_path: Path, name: str
) -> None:
    loaded = made(tmp_path, num_turns=1 if ROWS[name].single_turn else 2)
    outcome = run(ROWS[name], tmp_path, loaded, server)
    given = {
        (one["name"], one["method"]): [one["estimate"][end] for end in ("value", "low", "high")]
        for one in outcome["figures"]
    }
    expected = FIGURES[name](Files(tmp_path, METHODS[0]))
    assert given.keys() == expected.keys()
    for key, figures in expected.items():
        assert numbers(given[key]) == pytest.approx(numbers(figures), rel=1e-9, nan_ok=True), key
    assert outcome["num_failed"] == 3
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome


def numbers(figure: Sequence[Any]) -> list[float]:
    return [math.nan if end is None else end for end in figure]


def test_what_failed_counts(server: Server, tmp_path: Path) -> None:
    """Prompts whose baseline failed are left out of comparisons and stay in grades, as the
    lowest."""
    outcome = run(find_row("alpacafarm"), tmp_path / "a", made(tmp_path / "a", num_turns=1), server)
    wins = next(one for one in outcome["figures"] if one["name"] == "win rate")
    failed = next(one for one in outcome["figures"] if one["name"] == "judgements that failed")
    assert failed["num"] == 22
    assert wins["num"] + int(failed["estimate"]["value"] or 0) == 22
    assert "1 prompts are left out: best_of_n:4 failed on them." in outcome["notes"]
    lost = Files(tmp_path / "a", METHODS[0])
    for row in lost.rows:
        if row["error"] and row["method"] != METHODS[0]:
            (judged,) = (
                one
                for one in lost.judged["preferences"]
                if (one["prompt_id"], one["method"]) == (row["prompt_id"], row["method"])
            )
            assert (judged["preference"], judged["method_first"]) == (1.0, None)
    run(find_row("mt-bench"), tmp_path / "b", made(tmp_path / "b", num_turns=2), server)
    grades = Files(tmp_path / "b", METHODS[0])
    assert len(grades.judged["grades"]) == 3 * 23 * 2
    failures = {(row["prompt_id"], row["method"]) for row in grades.rows if row["error"]}
    assert [
        row["grade"]
        for row in grades.judged["grades"]
        if (row["prompt_id"], row["method"]) in failures
    ] == [1.0] * 6


@pytest.mark.parametrize("name", [name for name in ROWS if name != "mt-bench"])
def test_prompts_that_are_left_out_are_counted(server: Server, tmp_path: Path, name: str) -> None:
    """Of `mt-bench` none are: a failed answer has the lowest grade."""
    loaded = made(tmp_path, num_turns=1 if ROWS[name].single_turn else 2)
    notes = run(ROWS[name], tmp_path, loaded, server)["notes"]
    words = " of rewards" if name == "alpaca-eval" else ""
    assert f"1 prompts are left out{words}: {METHODS[0]} failed on them." in notes


def test_nobody_wins_or_ties_where_vanilla_decoding_failed(server: Server, tmp_path: Path) -> None:
    protocol, loaded = find_row("hh-rlhf"), made(tmp_path, num_turns=1, num_prompts=6)
    outcome = run(protocol, tmp_path, loaded, server)
    (failed,) = {
        row["prompt_id"]
        for row in Files(tmp_path, METHODS[0]).rows
        if row["error"] and row["method"] == METHODS[0]
    }
    for file in ("scores", "judgements"):
        judged = Files(tmp_path, METHODS[0]).judged[file]
        assert failed not in {row["prompt_id"] for row in judged}
    assert outcome["notes"] == [f"1 prompts are left out: {METHODS[0]} failed on them."]
    assert outcome["figures"][0]["num"] == 5
    info, rows = make_bench(num_prompts=4, methods=METHODS, num_failures=0)
    failure = {"kind": "RewardError", "message": "it raises"}
    broken = [row | {"turns": [], "error": failure} for row in rows]
    write_bench(tmp_path / "all", info, broken)  # type: ignore[arg-type]
    left_out = run(protocol, tmp_path / "all", loaded, server)
    assert (left_out["figures"][0]["estimate"]["value"], left_out["figures"][0]["num"]) == (None, 0)
    assert "4 prompts are left out" in left_out["notes"][0]


@pytest.mark.parametrize("name", ["alpacafarm", "hh-rlhf", "mt-bench"])
def test_a_judgement_that_lacks_a_field_is_damaged(
    server: Server, tmp_path: Path, name: str
) -> None:
    loaded = made(tmp_path, num_turns=1, num_prompts=3)
    run(ROWS[name], tmp_path, loaded, server)
    judge = JudgeServer(base_url=f"{server.url}/v1", model="some-judge")
    journals = [path for path in tmp_path.glob("*.jsonl") if path.name != "results.jsonl"]
    assert journals
    for path in journals:
        whole = path.read_text()
        rows = [json.loads(line) for line in whole.splitlines()]
        for key in rows[0]:
            broken = [rows[0], {k: v for k, v in rows[1].items() if k != key}]
            path.write_text("".join(json.dumps(row) + "\n" for row in broken))
            with pytest.raises(UsageError, match=f"line 2 of .*{path.name} is damaged.*{key}"):
                read_answered(tmp_path, loaded, METHODS[0], judge)
        path.write_text(whole)


def test_two_processes_do_not_judge_one_folder(server: Server, tmp_path: Path) -> None:
    protocol, loaded = find_row("hh-rlhf"), made(tmp_path, num_turns=1, num_prompts=3)
    judge = JudgeServer(base_url=f"{server.url}/v1", model="some-judge", concurrency=1)
    answered = read_answered(tmp_path, loaded, METHODS[0], judge)
    first = ask_judge(protocol, answered, judge, tmp_path)
    next(first)
    for second in (ask_judge(protocol, answered, judge, tmp_path), record(tmp_path / "x", [])):
        with pytest.raises(UsageError, match="another process is writing to"):
            list(second)
    assert len(list(first)) > 0
    assert list(record(tmp_path / "x", [])) == []


def test_grades_that_lacked_a_reference_are_counted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (judge_grade, mt_bench):
        monkeypatch.setattr(module, "WITH_REFERENCE", ("facts",))
    loaded = made(tmp_path, num_turns=2, num_prompts=6)
    tasks = [replace(task, references=task.references[:1]) for task in loaded.tasks]
    outcome = run(find_row("mt-bench"), tmp_path, replace(loaded, tasks=tuple(tasks)), server)
    rows = Files(tmp_path, METHODS[0]).judged["grades"]
    lacking = [row for row in rows if row["category"] == "facts" and not row["has_reference"]]
    assert {row["turn"] for row in lacking} == {2}
    assert outcome["notes"] == [
        f"{len(lacking)} grades of math, reasoning or coding had no reference."
    ]


def test_high_variance_rows_ask_about_their_fifth_alone(server: Server, tmp_path: Path) -> None:
    loaded = made(tmp_path, num_turns=2)
    run(find_row("mt-bench-high-variance"), tmp_path, loaded, server)
    files = Files(tmp_path, METHODS[0])
    asked = {row["prompt_id"] for row in files.judged["grades"]}
    assert asked == {files.ids[place] for place in files.widest()}
    assert len(asked) == 22 // 5


def test_a_run_by_the_protocol_has_no_differences(tmp_path: Path, server: Server) -> None:
    for protocol in ROWS.values():
        info, rows = make_bench(num_prompts=2, methods=METHODS[:1], num_failures=0)
        write_bench(tmp_path / protocol.name, info, rows)
        found = conclude(
            protocol,
            read_answered(
                tmp_path / protocol.name, made(tmp_path / "x", num_turns=1), rows[0]["method"]
            ),
            Settings(**protocol.settings, seed=7, memory="1GiB"),  # type: ignore[arg-type]
            None,
        )
        kinds = {line.split()[0] for line in found["differences"]}
        assert kinds == {"methods", "prompts"}


def test_disagreement_must_be_a_number_for_each_prompt(tmp_path: Path) -> None:
    loaded = made(tmp_path, num_turns=1, num_prompts=3)
    path = tmp_path / "disagreement.jsonl"
    for last, is_good in (
        ("0.5", True),
        ("true", False),
        ("NaN", False),
        ('"x"', False),
        ("null", False),
    ):
        path.write_text(
            "".join(f'{{"id": "p00{i}", "disagreement": {i}}}\n' for i in range(2))
            + f'{{"id": "p002", "disagreement": {last}}}\n'
        )
        if is_good:
            assert read_disagreement(path, loaded) == {"p000": 0, "p001": 1, "p002": 0.5}
        else:
            with pytest.raises(UsageError, match="no disagreement of the prompt 'p002'"):
                read_disagreement(path, loaded)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ('{"id": "p000", "disagreement": 3}', "has the prompt 'p000' twice"),
        ('{"id": "p002", "disagreement": -0.5}', "disagreement of -0.5 on the prompt 'p002'"),
    ],
)
def test_disagreement_is_given_once_and_never_negative(
    tmp_path: Path, last: str, said: str
) -> None:
    path = tmp_path / "disagreement.jsonl"
    whole = "".join(f'{{"id": "p00{i}", "disagreement": {i}}}\n' for i in range(2))
    path.write_text(f"{whole}{last}\n")
    with pytest.raises(UsageError, match=said):
        read_disagreement(path, made(tmp_path, num_turns=1, num_prompts=3))
