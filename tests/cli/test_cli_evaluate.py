"""The measuring commands, from a file of prompts to a page, on a tiny model with random weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import specrej
from servers import completion, serving
from specrej.cli import app
from specrej.evaluation.folder import RESULTS, read_bench
from specrej.evaluation.trace import load
from specrej.files.journal import read_rows
from specrej.opening import Opening
from tiny import save_model

METHODS = "best_of_n:2,best_of_n:6,speculative_rejection:0.5:6"
PROMPTS = [
    {"id": "a", "prompt": "Why?"},
    {"id": "b", "turns": ["How?", "And?"]},
    {"id": "c", "prompt": "Who?"},
]

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2**20)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS) + '{"id": "d"}\n')
    return str(path)


@pytest.fixture
def run(tiny_model: str, prompts: str) -> Run:
    def invoke(command: str, output: Path, *arguments: str, **how: Any) -> Result:
        options = [
            "--model",
            tiny_model,
            "--reward",
            "logprob",
            "--max-new-tokens",
            "12",
            "--output",
            str(output),
        ]
        return CliRunner().invoke(app, [command, prompts, *options, *arguments], **how)

    return invoke


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plain(rows: list[Any]) -> list[Any]:
    """Rows without what a clock has measured, in the order of prompts and methods."""
    for row in rows:
        for turn in row["turns"]:
            turn["usage"] = {
                name: value for name, value in turn["usage"].items() if not name.endswith("_s")
            }
    return sorted(rows, key=lambda row: (row["prompt_id"], row["method"]))


def test_bench_prints_gain_and_cost_and_says_what_is_next(run: Run, tmp_path: Path) -> None:
    done = run("bench", tmp_path / "out", "--methods", METHODS, "--decide", "every:4")
    assert done.exit_code == 0, done.stderr
    assert "line 4 is left out: give one of prompt, messages and turns" in done.stderr
    assert "9 of 9 rows: c" in done.stderr
    for word in (
        "reward",
        "score",
        "win",
        "seconds",
        "tokens",
        "FLOPs",
        "speedup",
        "relative to best_of_n:6",
    ):
        assert word in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"9 rows in {tmp_path / 'out'}, 0 failed (9 run now); ")
    assert last.endswith(f"For the page: specrej report {tmp_path / 'out'}")
    assert len(read_rows(tmp_path / "out" / RESULTS)) == 9


def test_generate_with_a_rows_seed_gives_its_answer(
    run: Run, tmp_path: Path, tiny_model: str
) -> None:
    how = ["--decide", "every:4", "--memory", "1MiB"]
    assert run("bench", tmp_path / "out", "--methods", METHODS, *how).exit_code == 0
    rows = read_bench(tmp_path / "out")[1]
    options = ["--model", tiny_model, "--reward", "logprob", "--max-new-tokens", "12", *how]
    options += ["--alpha", "0.5", "--n", "6", "--json"]
    seeds = set()
    for row in rows:
        if row["method"] == "speculative_rejection:0.5:6":
            question, turn = row["turns"][0]["messages"][0]["content"], row["turns"][0]
            done = ask("generate", question, *options, "--seed", str(row["seed"]))
            answer = json.loads(done.stdout)
            assert (answer["text"], answer["seed"]) == (turn["text"], row["seed"])
            assert answer["reward"] == pytest.approx(turn["reward"], abs=1e-6)
            seeds.add(row["seed"])
    assert len(seeds) == len(PROMPTS)


def test_bench_as_json_is_the_run_and_its_summary(run: Run, tmp_path: Path) -> None:
    done = run(
        "bench",
        tmp_path / "out",
        "--methods",
        METHODS,
        "--json",
        "--limit",
        "2",
        "--baseline",
        "best_of_n:2",
    )
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["run"]["methods"] == METHODS.split(",")
    assert printed["run"]["prompts"]["num_prompts"] == 2
    assert printed["summary"]["baseline"] == "best_of_n:2"
    assert printed["summary"]["methods"]["best_of_n:2"]["improvement"]["value"] == pytest.approx(
        100
    )


def test_a_bench_that_is_there_is_not_written_over(run: Run, tmp_path: Path) -> None:
    run("bench", tmp_path / "out", "--methods", METHODS)
    before = (tmp_path / "out" / RESULTS).read_bytes()
    again = run("bench", tmp_path / "out", "--methods", METHODS)
    assert again.exit_code == 2
    assert "go on with it by --resume" in again.stderr
    other = run("bench", tmp_path / "out", "--methods", METHODS, "--seed", "9", "--resume")
    assert other.exit_code == 2
    assert "holds another run" in other.stderr
    resumed = run("bench", tmp_path / "out", "--methods", METHODS, "--resume")
    assert resumed.exit_code == 0
    assert "(0 run now)" in resumed.stdout
    assert (tmp_path / "out" / RESULTS).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "best_of_m:2"], "unknown method 'best_of_m'"),
        (["--methods", ","], "a bench needs a method"),
        (["--methods", METHODS, "--baseline", "best_of_n:3"], "unknown method 'best_of_n:3'"),
        (["--methods", METHODS, "--limit", "0"], "limit must be at least 1"),
        (["--methods", METHODS, "--memory", "64 potatoes"], "memory"),
    ],
)
def test_what_cannot_be_benched_costs_nothing(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run("bench", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_option_that_no_method_of_a_bench_uses_is_named(run: Run, tmp_path: Path) -> None:
    words = "--limit 1 --window 9 --warm-up 3 --refill forks --extract number --methods"
    done = run("bench", tmp_path / "a", *words.split(), METHODS)
    assert "no method uses warm_up, window: it is without effect" in done.stderr
    assert "refill" not in done.stderr


@pytest.mark.parametrize("command", ["bench", "trace"])
def test_what_needs_no_model_is_said_before_one_is_opened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(Opening, "open", None)
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"kind": command, "created": "2026-01-01"})
    )
    own = ["--methods", METHODS] if command == "bench" else []
    for arguments, said in (
        ([], f"{tmp_path} holds no run but other files"),
        (["--output", str(tmp_path / "thesis.tex")], "cannot write to"),
        (["--output", str(tmp_path / "run")], "holds a run of 2026-01-01 already"),
    ):
        done = run(command, tmp_path, *own, *arguments)
        assert done.exit_code == 2
        assert said in done.stderr
    if command == "trace":
        done = run(command, tmp_path / "out", "--checkpoints", "0,8")
        assert "checkpoints must be lengths of at least one token, got [0, 8]" in done.stderr


@pytest.fixture(scope="module")
def long_bench(tiny_model: str, prompts: str) -> list[str]:
    """A command that runs for some seconds."""
    arguments = ["bench", prompts, "--methods", METHODS, "--max-new-tokens", "60"]
    return [*arguments, "--model", tiny_model, "--reward", "logprob"]


@pytest.fixture(scope="module")
def long_rows(long_bench: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What it gives when nothing stops it."""
    directory = tmp_path_factory.mktemp("bench") / "whole"
    whole = CliRunner().invoke(app, [*long_bench, "--output", str(directory)])
    assert whole.exit_code == 0, whole.stderr
    return plain(read_bench(directory)[1])


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_was_stopped_goes_on_to_the_same_rows(
    long_bench: list[str], long_rows: list[Any], tmp_path: Path, kind: signal.Signals
) -> None:
    source = str(Path(specrej.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "specrej", *long_bench, "--output", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": source, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    results = tmp_path / "out" / RESULTS
    while not results.exists() or results.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(kind)
    _, stderr = process.communicate(timeout=300)
    before = read_bench(tmp_path / "out")[1]
    assert 3 <= len(before) < 9
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert "give the same command with --resume to go on" in stderr
    resumed = CliRunner().invoke(app, [*long_bench, "--output", str(tmp_path / "out"), "--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    rows = read_bench(tmp_path / "out")[1]
    assert rows[: len(before)] == before
    assert plain(rows) == long_rows


def test_from_a_bench_to_its_page_and_exports(run: Run, tmp_path: Path) -> None:
    run("bench", tmp_path / "out", "--methods", METHODS, "--decide", "every:4")
    page = ask("report", tmp_path / "out")
    assert page.exit_code == 0, page.stderr
    assert page.stdout.strip() == str(tmp_path / "out" / "report.html")
    assert "best_of_n:6" in (tmp_path / "out" / "report.html").read_text()
    assert ask("report", tmp_path / "out", "--baseline", "best_of_n:7").exit_code == 2
    options: list[str | Path] = ["--method", "best_of_n:6", "--output", tmp_path / "outputs.jsonl"]
    exported = ask("export", tmp_path / "out", *options, "--to", "mt_bench")
    assert exported.exit_code == 0, exported.stderr
    answers = read_rows(tmp_path / "outputs.jsonl")
    assert [len(answer["choices"][0]["turns"]) for answer in answers] == [2, 2, 2]
    refused = ask("export", tmp_path / "out", *options)
    assert (refused.exit_code, "alpaca_eval takes single questions" in refused.stderr) == (2, True)
    assert "unknown format 'x'" in ask("export", tmp_path / "out", *options, "--to", "x").stderr


def test_an_export_for_alpaca_eval(run: Run, tmp_path: Path) -> None:
    run("bench", tmp_path / "out", "--methods", METHODS, "--limit", "1")
    done = ask(
        "export", tmp_path / "out", "--method", "best_of_n:6", "--output", tmp_path / "outputs.json"
    )
    assert done.stdout.startswith(
        f"1 answers of best_of_n:6 for alpaca_eval in {tmp_path / 'outputs.json'}; flattened: "
    )
    assert json.loads((tmp_path / "outputs.json").read_text())[0]["instruction"] == "Why?"


def test_from_a_trace_to_a_replay_and_its_page(run: Run, tmp_path: Path) -> None:
    traced = run("trace", tmp_path / "out", "--n", "8", "--checkpoints", "2,4,8")
    assert traced.exit_code == 0, traced.stderr
    assert traced.stdout.splitlines()[-1].startswith(
        f"3 prompts in {tmp_path / 'out'} (3 run now, 0 of them failed)"
    )
    assert (
        "(0 run now"
        in run("trace", tmp_path / "out", "--n", "8", "--checkpoints", "2,4,8", "--resume").stdout
    )
    replayed = ask("replay", tmp_path / "out")
    assert replayed.exit_code == 0, replayed.stderr
    for word in ("policy on the front", "Best-of-1", "Pearson", "Spearman", "Kendall"):
        assert word in replayed.stdout
    policies = tmp_path / "policies.jsonl"
    policies.write_text(
        '{"alpha": 0.5, "decide": "at:4", "n": 8}\n{"alpha": 0.25, "decide": "at:2,8", "n": 8}\n'
    )
    exact = ask("replay", tmp_path / "out", "--policies", policies, "--exact", "--json")
    assert exact.exit_code == 0, exact.stderr
    summary = json.loads(exact.stdout)
    assert [row["policy"]["alpha"] for row in summary["policies"]] == [0.5, 0.25]
    assert all(row["figures"]["stale_share"]["value"] == 0 for row in summary["policies"])
    page = ask("report", tmp_path / "out")
    assert page.exit_code == 0, page.stderr


def test_traces_are_relabelled_without_the_models_weights(
    run: Run, tmp_path: Path, tiny_model: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    options = ["--n", "8", "--checkpoints", "2,4,8", "--model", str(model)]
    assert run("trace", tmp_path / "source", *options).exit_code == 0
    live = run("trace", tmp_path / "live", *options, "--reward", "logprob:sum")
    assert live.exit_code == 0, live.stderr
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    given: list[str | Path] = ["relabel", tmp_path / "source", "--reward"]
    given += ["logprob:sum", "--output"]
    done = ask(*given, tmp_path / "new")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"3 of 3 prompts in {tmp_path / 'new'} (3 scored now, 0 of them failed). "
        f"Next: specrej replay {tmp_path / 'new'}"
    )
    assert "3 of 3 prompts: c" in done.stderr
    assert "(0 scored now" in ask(*given, tmp_path / "new", "--resume").stdout
    for one, other in zip(load(tmp_path / "new"), load(tmp_path / "live"), strict=True):
        assert one.rewards.tolist() == other.rewards.tolist()
        assert one.final_rewards.tolist() == other.final_rewards.tolist()
        assert one.texts == other.texts
        assert one.hidden_states().tolist() == other.hidden_states().tolist()
    replayed = ask("replay", tmp_path / "new")
    assert replayed.exit_code == 0, replayed.stderr
    page = ask("report", tmp_path / "new")
    assert page.exit_code == 0, page.stderr


def test_what_relabelling_refuses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str | Path] = ["--reward", "logprob:sum", "--output", tmp_path / "new"]
    nothing = ask("relabel", tmp_path, *given)
    assert (nothing.exit_code, f"{tmp_path} holds no run" in nothing.stderr) == (2, True)
    assert run("trace", tmp_path / "source", "--n", "4").exit_code == 0
    unnamed = ask("relabel", tmp_path / "source", "--output", tmp_path / "new")
    assert (unnamed.exit_code, "--reward" in unnamed.stderr) == (2, True)
    onto_itself = ask("relabel", tmp_path / "source", *given[:3], tmp_path / "source")
    assert (onto_itself.exit_code, "holds a run of" in onto_itself.stderr) == (2, True)
    (tmp_path / "never.py").write_text("def reward(prompt, texts):\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    failed = ask("relabel", tmp_path / "source", "--reward", "never:reward", *given[2:])
    assert (failed.exit_code, "nothing succeeded: all 3 failed" in failed.stdout) == (1, True)


@pytest.mark.parametrize("command", ["report", "replay"])
def test_a_folder_without_a_run(tmp_path: Path, command: str) -> None:
    done = ask(command, tmp_path)
    assert done.exit_code == 2
    assert f"error: {tmp_path} holds no run" in done.stderr


def test_what_fails_from_end_to_end_exits_with_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward fails on every prompt; nothing of it can be judged as a success by a script."""
    (tmp_path / "always_fails.py").write_text(
        "def reward(messages, texts):\n    raise ValueError('no')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--reward", "always_fails:reward"]
    done = run("bench", tmp_path / "out", "--methods", METHODS, *options)
    assert (done.exit_code, "9 rows in" in done.stdout) == (1, True), done.stderr
    assert done.stdout.splitlines()[-1].endswith("nothing succeeded: all 9 failed")
    again = run("bench", tmp_path / "out", "--methods", METHODS, *options, "--resume", "--json")
    assert (again.exit_code, json.loads(again.stdout)["summary"]["num_prompts"]) == (1, 0)
    assert again.stderr.splitlines()[-1] == "nothing succeeded: all 9 failed"
    traced = run("trace", tmp_path / "traces", "--n", "4", *options)
    assert (traced.exit_code, "nothing succeeded: all 3 failed" in traced.stdout) == (1, True)
    assert run("trace", tmp_path / "traces", "--n", "4", *options, "--resume").exit_code == 1
    exported = ask(
        "export",
        tmp_path / "out",
        "--method",
        "best_of_n:6",
        "--to",
        "mt_bench",
        "--output",
        tmp_path / "new" / "a.jsonl",
    )
    assert (exported.exit_code, "3 of them empty" in exported.stdout) == (1, True), exported.stderr
    pair = ["--method", "best_of_n:2", "--baseline", "best_of_n:6"]
    judged = ask("judge", tmp_path / "out", *pair, "--judge-model", "nobody-is-asked")
    assert judged.exit_code == 1
    assert "0 win, 0 tie, 0 loss, 3 failed; 0 requests" in judged.stdout


def test_verdicts_stand_in_json_and_tables_a_judge_each(run: Run, tmp_path: Path) -> None:
    run("bench", tmp_path / "out", "--methods", METHODS, "--limit", "1")
    with serving(completion) as server:
        server.answer = lambda request: "hm" if request["model"] == "mute" else "C"
        pair = [
            "--method",
            "best_of_n:2",
            "--baseline",
            "best_of_n:6",
            "--base-url",
            f"{server.url}/v1",
        ]
        fair = ask("judge", tmp_path / "out", *pair, "--judge-model", "fair")
        mute = ask("judge", tmp_path / "out", *pair, "--judge-model", "mute")
    assert (
        fair.exit_code,
        f"judged by fair at {server.url}/v1: 0 win, 1 tie, 0 loss, 0 failed" in fair.stdout,
    ) == (
        0,
        True,
    ), fair.stderr
    assert (mute.exit_code, "nothing succeeded: all 1 failed" in mute.stdout) == (1, True)
    arguments = ["--methods", METHODS, "--limit", "1", "--resume"]
    table = run("bench", tmp_path / "out", *arguments)
    judged = [
        line.split()
        for line in table.stdout.splitlines()
        if line.startswith(("fair at", "mute at"))
    ]
    assert [(words[0], words[3]) for words in judged] == [
        ("fair", "best_of_n:2"),
        ("mute", "best_of_n:2"),
    ]
    summary = json.loads(run("bench", tmp_path / "out", *arguments, "--json").stdout)["summary"]
    by_judge = {
        name.split()[0]: rates
        for name, rates in summary["methods"]["best_of_n:2"]["by_judge"].items()
    }
    assert len(by_judge) == 2
    assert (by_judge["fair"]["tie"]["value"], by_judge["fair"]["unclear"]["value"]) == (1.0, 0.0)
    assert (by_judge["mute"]["tie"]["value"], by_judge["mute"]["unclear"]["value"]) == (0.0, 1.0)


def test_prompts_of_another_form_are_named(run: Run, tmp_path: Path, tiny_model: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt\n1,Why?\n")
    for command, more in (("bench", ["--methods", METHODS]), ("trace", []), ("batch", [])):
        done = ask(
            command,
            path,
            "--output",
            tmp_path / "out",
            "--model",
            tiny_model,
            "--reward",
            "logprob",
            *more,
        )
        assert (done.exit_code, f"{path} is CSV, expected JSON lines" in done.stderr) == (
            2,
            True,
        ), done.stderr
        assert "hint: convert it" in done.stderr
