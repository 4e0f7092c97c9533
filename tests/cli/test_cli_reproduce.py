"""Rows of benchmark tables, from a file of prompts to figures and page: a tiny model answers, a
local server judges, and numpy computes every figure again from the files.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from judging import say, say_readably
from real import lend_to_commands
from recomputed import FIGURES, Files
from servers import Server, completion, record_waits, serving
from specrej.cli import app
from specrej.evaluation.reproduce import ROWS
from specrej.evaluation.reproduce.paper.plan import TITLE
from specrej.opening import Opening
from tiny import save_model

METHODS = "best_of_n:2,best_of_n:8,speculative_rejection:0.5:16"
PROMPTS = [
    {"id": "a", "prompt": "Why?", "reference": "Because.", "category": "writing"},
    {"id": "b", "prompt": "How?", "reference": "So.", "category": "math"},
    {"id": "c", "prompt": "Who?", "reference": "You.", "category": "math"},
    {"id": "d", "prompt": "When?", "reference": "Now.", "category": "stem"},
    {"id": "e", "prompt": "Where?", "reference": "Here."},
]
TWO_TURNS = {"turns": ["How?", "And?"], "reference": ["So.", "Thus."]}
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2**20)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `single.jsonl`, and `turns.jsonl`, in which one prompt has two turns."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, second in (("single", {}), ("turns", TWO_TURNS)):
        rows: list[dict[str, Any]] = [dict(row) for row in PROMPTS]
        if second:
            rows[1] = {"id": "b", "category": "math", **second}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    record_waits(monkeypatch)
    with serving(lambda answer: answer) as server:
        server.answer = say
        yield server


@pytest.fixture
def run(tiny_model: str, prompts: Path, server: Server) -> Run:
    def invoke(name: str, output: Path, *arguments: str) -> Result:
        reward = [] if name == "perplexity" else ["--reward", "logprob"]
        asked = ["--judge", "some-judge", "--judge-url", f"{server.url}/v1"]
        options = ["--model", tiny_model, *reward, "--max-new-tokens", "8", "--output", str(output)]
        file = "single" if ROWS[name].single_turn else "turns"
        options += [
            "--prompts",
            str(prompts / f"{file}.jsonl"),
            "--methods",
            METHODS,
            *asked,
            "--limit",
            "4",
        ]
        return CliRunner().invoke(app, ["reproduce", name, *options, *arguments])

    return invoke


def recomputed(directory: Path, name: str) -> dict[str, Any]:
    """What a row came to, its figures those that numpy finds in the files."""
    outcome: dict[str, Any] = json.loads((directory / f"{name}.json").read_text())
    given = {
        (one["name"], one["method"]): tuple(
            one["estimate"][end] for end in ("value", "low", "high")
        )
        for one in outcome["figures"]
    }
    expected = FIGURES[name](Files(directory, outcome["baseline"]))
    assert given.keys() == expected.keys()
    for key, figures in expected.items():
        assert numbers(given[key]) == pytest.approx(numbers(figures), rel=1e-9, nan_ok=True), key
    return outcome


def numbers(figure: Sequence[float | None]) -> list[float]:
    return [math.nan if end is None else end for end in figure]


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_comes_to_figures_that_numpy_computes_again(
    run: Run, server: Server, tmp_path: Path, name: str
) -> None:
    done = run(name, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    outcome = recomputed(tmp_path / "out", name)
    assert outcome["figures"][0]["method"] == "speculative_rejection:0.5:16"
    assert any("max_new_tokens is 8, not" in line for line in outcome["differences"])
    assert outcome["num_failed"] == 0
    assert outcome["cost"]["best_of_n:8"]["num_prompts"] == 4
    page = (tmp_path / "out" / f"{name}.html").read_text()
    assert ROWS[name].open_points[0][:40].replace("'", "&#39;") in page
    last, first = done.stdout.splitlines()[-1], outcome["figures"][0]
    assert f", over {first['num']} " in last
    is_comparison = name in ("alpacafarm", "hh-rlhf")
    assert (" against Best-of-2, over" in last) == is_comparison
    assert ("; Best-of-2: " in last) != is_comparison
    said = "speedup against best_of_n:2, generation alone: "
    assert (said in last and ", everything inside: " in last) == (name == "perplexity")
    ignored = f"the row {name!r} asks no judge: --judge is not used" in done.stderr
    assert ignored != ROWS[name].needs_judge
    num_requests = len(server.requests)
    assert (num_requests > 0) == (ROWS[name].needs_judge)
    assert outcome["calls"]["requests"] == num_requests


def test_a_row_is_resumed_without_asking_again(run: Run, server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: completion("[[7]]")
    first = run("mt-bench", tmp_path / "out", "--json")
    assert first.exit_code == 0, first.stderr
    asked, rows = len(server.requests), (tmp_path / "out" / "results.jsonl").read_bytes()
    refused = run("mt-bench", tmp_path / "out")
    assert (refused.exit_code, "go on with it by --resume" in refused.stderr) == (2, True)
    journal = tmp_path / "out" / "grades.jsonl"
    whole = journal.read_text()
    assert whole.count("\n") == 3 * 5
    journal.write_text("".join(whole.splitlines(keepends=True)[:4]))
    again = run("mt-bench", tmp_path / "out", "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert len(server.requests) == asked
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == rows
    before, after = json.loads(first.stdout), json.loads(again.stdout)
    assert after["figures"] == before["figures"]
    assert after["figures"][0]["estimate"]["value"] == 7


def test_a_judgement_that_failed_is_asked_for_again(
    run: Run, server: Server, tmp_path: Path
) -> None:
    server.answer = lambda request: completion("no")
    last = run("mt-bench", tmp_path / "out").stdout.splitlines()[-1]
    assert ", over 5 judgements; Best-of-2: 1.000. 15 of 15 judgements failed. " in last
    assert last.endswith("nothing succeeded: all 15 failed")
    first = run("mt-bench", tmp_path / "out", "--resume", "--json")
    assert first.exit_code == 1
    figures = json.loads(first.stdout)["figures"]
    assert (figures[0]["name"], figures[0]["estimate"]["value"]) == ("mean grade", 1)
    server.answer = lambda request: completion("[[9]]")
    again = json.loads(run("mt-bench", tmp_path / "out", "--resume", "--json").stdout)
    # Two methods may choose the same answer: a question that was answered is not asked again.
    num_questions = len({json.dumps(request["messages"]) for request in server.requests})
    assert again["calls"]["requests"] == len(server.requests) == (2 + 2) * 15 + num_questions
    assert again["figures"][0]["estimate"]["value"] == 9
    assert next(f for f in again["figures"] if "failed" in f["name"])["estimate"]["value"] == 0


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("mt-bench", b"<!DOCTYPE html><p>Welcome"),
        ("hh-rlhf", b'{"choices": []}'),
        ("alpacafarm", (500, {}, b"<p>Bad gateway")),
        ("mt-bench", (429, {"Retry-After": "0"}, b"{}")),
    ],
)
def test_a_judge_that_never_answers_is_no_result(
    run: Run, server: Server, tmp_path: Path, name: str, reply: Any
) -> None:
    """What needs no judge, such as the same text twice, does not hide it."""
    server.answer = lambda request: reply
    done = run(name, tmp_path / "out", "--limit", "2", "--methods", "best_of_n:1,best_of_n:8")
    assert done.exit_code == 1, done.stderr
    outcome = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert 0 < outcome["num_asked"] == outcome["num_unread"] <= outcome["num_judgements"]
    assert "nothing succeeded: all" in done.stdout.splitlines()[-1]


def test_a_trial_becomes_the_whole_row(run: Run, server: Server, tmp_path: Path) -> None:
    """What is done already counts in the progress, and a greater limit adds to it."""
    server.answer = lambda request: completion("[[7]]")
    assert run("mt-bench", tmp_path / "out", "--limit", "2").exit_code == 0
    again = run("mt-bench", tmp_path / "out", "--resume")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.startswith("7 of 12 rows: c ")
    assert "12 of 12 rows: " in again.stderr
    assert "10 of 15 judgements: c " in again.stderr
    assert "15 of 15 judgements: " in again.stderr
    outcome = recomputed(tmp_path / "out", "mt-bench")
    assert (outcome["num_prompts"], outcome["num_failed"]) == (4, 0)
    assert len(Files(tmp_path / "out", "best_of_n:2").judged["grades"]) == 15


def test_temperatures_are_those_of_the_categories(run: Run, server: Server, tmp_path: Path) -> None:
    assert run("mt-bench", tmp_path / "out").exit_code == 0
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (info["settings"]["temperature"], info["temperatures"]["stem"]) == (0.7, 0.1)
    assert "Temperatures by category" in (tmp_path / "out" / "mt-bench.html").read_text()
    grades = Files(tmp_path / "out", "best_of_n:2").judged["grades"]
    assert {row["prompt_id"] for row in grades if row["has_reference"]} == {"b", "c"}
    shown = [json.dumps(request) for request in server.requests]
    assert sum("<reference 1 " in text for text in shown) == sum(
        any(word in text for word in ("How?", "Who?")) for text in shown
    )


def test_a_finished_row_lends_its_answers_to_the_high_variance_row(
    run: Run, server: Server, tmp_path: Path
) -> None:
    assert run("alpaca-eval", tmp_path / "out").exit_code == 0
    asked = len(server.requests)
    done = run("alpaca-eval-high-variance", tmp_path / "out", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    failed = sum("rather not" in say(request).decode() for request in server.requests[:asked])
    assert len(server.requests) <= asked + failed
    assert {figure["num"] for figure in json.loads(done.stdout)["figures"]} <= {0, 1}


def test_disagreement_from_a_file_chooses_the_prompts(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disagreement.jsonl"
    rows = [
        {"id": name, "disagreement": number}
        for name, number in zip("abcd", (1, 0, 3, 2), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("mt-bench-high-variance", tmp_path / "out", "--disagreement", str(path), "--json")
    assert done.exit_code == 0, done.stderr
    assert "1 of 4 by the file's numbers: c." in json.loads(done.stdout)["notes"][0]
    assert {
        row["prompt_id"] for row in Files(tmp_path / "out", "best_of_n:2").judged["grades"]
    } == {"c"}
    path.write_text('{"id": "a", "disagreement": 1}\n')
    lacking = run("mt-bench-high-variance", tmp_path / "new", "--disagreement", str(path))
    assert (lacking.exit_code, "no disagreement of the prompt 'b'" in lacking.stderr) == (2, True)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def test_all_rows_are_listed() -> None:
    listed = ask()
    assert listed.exit_code == 0
    for row in ROWS.values():
        assert f"{row.name}: {row.title}" in listed.stdout
        for point in row.open_points:
            assert f"open: {point}" in listed.stdout
    as_json = json.loads(ask("--json").stdout)["rows"]
    assert [one["row"] for one in as_json] == [*ROWS, "paper"]
    assert f"paper: {TITLE}" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rewards"], "unknown row 'rewards'"),
        (["reward"], "a row needs a folder of its own"),
        (
            [
                "mt-bench",
                "--output",
                "OUT",
                "--prompts",
                "FILE",
                "--judge",
                "j",
                "--judge-url",
                "x",
            ],
            "'x' is no address of a judge",
        ),
        (
            ["alpacafarm", "--output", "OUT", "--prompts", "TURNS", "--judge", "j"],
            "takes single questions, prompt 'b' has several turns",
        ),
        (["alpacafarm", "--output", "OUT"], "are no set that can be loaded"),
        (["mt-bench", "--output", "OUT", "--prompts", "FILE"], "asks a judge"),
        (
            ["alpaca-eval", "--output", "OUT", "--prompts", "BARE", "--judge", "j"],
            "compares with references, which 1 prompts lack, such as 'a'",
        ),
        (
            ["perplexity", "--output", "OUT", "--prompts", "FILE", "--reward", "logprob"],
            "has a reward of its own, 'likelihood:smollm2', got 'logprob'",
        ),
        (["reward", "--output", "OUT", "--prompts", "FILE", "--methods", "x:1"], "unknown method"),
        (
            ["perplexity", "--output", "OUT", "--prompts", "BARE", "--disagreement", "NUMBERS"],
            "is over all prompts",
        ),
        (["paper", "--output", "OUT"], "the prompts of the row 'paper' are no set"),
        (
            ["paper", "--output", "OUT", "--prompts", "BARE", "--disagreement", "NUMBERS"],
            "is over all prompts",
        ),
        (
            ["paper", "--output", "OUT", "--prompts", "BARE", "--methods", "policy:x"],
            "the paper compares with a Best-of-N, got 'policy:x'",
        ),
        (
            ["paper", "--output", "OUT", "--prompts", "BARE", "--methods", "best_of_n:4,x:1"],
            "unknown method",
        ),
        (["paper", "--output", "OUT", "--prompts", "TURNS"], "takes single questions"),
    ],
)
def test_what_a_row_lacks_is_said_before_a_model_is_opened(
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(Opening, "open", None)
    (tmp_path / "bare.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    (tmp_path / "numbers.jsonl").write_text('{"id": "a", "disagreement": 1}\n')
    named = {
        "NUMBERS": tmp_path / "numbers.jsonl",
        "OUT": tmp_path / "out",
        "FILE": prompts / "single.jsonl",
        "TURNS": prompts / "turns.jsonl",
        "BARE": tmp_path / "bare.jsonl",
    }
    done = ask(*[str(named.get(argument, argument)) for argument in arguments])
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_runs_on_the_default_models(
    run: Run,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Few and short answers, by the generator that all rows share; each opens its own reward."""
    lend_to_commands(monkeypatch)
    server.answer = say_readably
    options = ["--model", "smollm2", "--methods", "best_of_n:2,speculative_rejection:0.5:6"]
    options += ["--decide", "every:3", "--max-new-tokens", "6"]
    options += [] if name == "perplexity" else ["--reward", "relevance"]
    done = run(name, tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    outcome = recomputed(tmp_path / "out", name)
    chief = outcome["figures"][0]
    assert (outcome["num_prompts"], outcome["num_failed"]) == (4, 0)
    assert chief["method"] == "speculative_rejection:0.5:6"
    assert (chief["estimate"]["value"] is not None) == (chief["num"] > 0)
    if name == "perplexity":
        assert 1 < chief["estimate"]["value"] < 10_000
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Speculative Rejection (")
    assert f"): {chief['name']} " in last
    assert ("requests to the judge" in last) == ROWS[name].needs_judge
    assert outcome["calls"]["requests"] == len(server.requests)
    rows = Files(tmp_path / "out", "best_of_n:2").rows
    states = [one["state"] for row in rows for turn in row["turns"] for one in turn["candidates"]]
    assert states.count("rejected") >= 4
