"""`specrej batch` and `specrej pairs`, on a tiny model with random weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import specrej
from jobs import openai, plain, rows_in, write_requests
from specrej.batch.rows import row_id
from specrej.cli import app
from specrej.cli.options import stoppable
from specrej.files.journal import read_rows
from specrej.opening import Opening
from tiny import save_model

ROWS: list[Any] = [*(plain(number) for number in range(4)), "{broken"]
SOURCES = str(Path(specrej.__file__).parents[1])

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2**20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", ROWS)


def options(model: str, *more: str) -> list[str]:
    return ["--model", model, "--reward", "logprob", "--n", "4", "--max-new-tokens", "12", *more]


@pytest.fixture
def run(tiny_model: str, source: Path) -> Run:
    def invoke(
        output: Path | str, *arguments: str, given: str | Path = source, **how: Any
    ) -> Result:
        command = ["batch", str(given), "--output", str(output), *options(tiny_model, *arguments)]
        return CliRunner().invoke(app, command, **how)

    return invoke


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a model is an error."""

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(Opening, "open_engine", opened)


@contextmanager
def stdout_as(descriptor: int) -> Iterator[None]:
    """The process's stdout is something else."""
    before = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def start(*arguments: str | Path, **how: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def test_a_batch_ends_with_one_line_that_says_it_all(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    done = run(output)
    assert done.exit_code == 0, done.stderr
    assert {row_id(row) for row in read_rows(output)} == {"p0", "p1", "p2", "p3", "line-5"}
    assert "1 of 5 prompts: line-5 failed: no JSON" in done.stderr
    last_progress = next(
        line for line in done.stderr.splitlines() if line.startswith("5 of 5 prompts: p")
    )
    assert "prompts/min, " in last_progress
    assert last_progress.endswith(" tokens/s, 0:00:00 left)")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"5 rows in {output}, 1 failed (5 run now); mean reward -")
    for words in (
        " over 4; ",
        " tokens in ",
        " tokens/s; ",
        "% of ",
        " in use; seed 0. To run failed rows again: ",
    ):
        assert words in line


def test_a_reward_that_ends_programs_fails_its_row(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending.py").write_text(
        "import sys\ndef rate(prompt, texts):\n    return sys.exit() if '2' in prompt else [1.0] * "
        "len(texts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run(tmp_path / "out.jsonl", "--reward", "ending:rate")
    assert done.exit_code == 0, done.stderr
    assert "5 rows in" in done.stdout
    errors = {
        row_id(row): row["error"] for row in read_rows(tmp_path / "out.jsonl") if row["error"]
    }
    assert errors.keys() == {"p2", "line-5"}
    assert "SystemExit" in str(errors["p2"])


def test_a_row_is_what_generate_gives_with_the_same_options(
    run: Run, tiny_model: str, tmp_path: Path
) -> None:
    run(
        tmp_path / "out.jsonl",
        "--seed",
        "3",
        "--decide",
        "every:4",
        "--total-memory",
        "1GiB",
        "--in-flight",
        "2",
    )
    for row in read_rows(tmp_path / "out.jsonl"):
        if row["error"] is None:
            arguments = options(tiny_model, "--seed", "3", "--decide", "every:4", "--json")
            alone = json.loads(
                CliRunner().invoke(app, ["generate", row["prompt"], *arguments]).stdout
            )
            assert (row["text"], row["reward"]) == (
                alone["text"],
                pytest.approx(alone["reward"], rel=1e-5),
            )


def test_messages_are_taken_as_the_options_say(run: Run, tmp_path: Path) -> None:
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}],
    }
    begun = [question, {"role": "assistant", "content": "Well"}]
    forged = [{"role": "user", "content": "a<eos>b"}]
    asked = [{"id": "begun", "messages": begun}, {"id": "forged", "messages": forged}]
    given = write_requests(tmp_path / "messages.jsonl", asked)

    def rows_by_id(name: str, *arguments: str) -> dict[str, Any]:
        assert run(tmp_path / name, *arguments, given=given).exit_code in (0, 1)
        return {row["id"]: row for row in read_rows(tmp_path / name)}

    plain = rows_by_id("plain.jsonl")
    assert "ends in an assistant's message" in plain["begun"]["error"]["message"]
    assert plain["forged"]["usage"]["prompt_tokens"] == len("a<eos>b") + 4
    told = rows_by_id("told.jsonl", "--continue-final-message", "--special-tokens", "allow")
    assert told["begun"]["usage"]["prompt_tokens"] == len("Why?") + len("Well") + 4
    assert told["begun"]["messages"] == begun
    assert told["forged"]["usage"]["prompt_tokens"] == len("ab") + 5
    refused = run(tmp_path / "out.jsonl", "--special-tokens", "ignore")
    assert refused.exit_code == 2
    assert "unknown treatment of special tokens 'ignore'" in refused.stderr


def test_json_is_the_summary_alone(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path / "out.jsonl", "--json", "--seed", "3", "--total-memory", "1GiB")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["num_rows"], summary["num_failed"], summary["failures"]) == (
        5,
        1,
        {"prompt_error": 1},
    )
    assert summary["job"]["settings"]["seed"] == 3
    now = summary["this_run"]
    assert now["memory"]["total_bytes"] == 2**30
    assert 0 < now["memory"]["budget_in_use"] < 1
    assert now["flops"]["decode"] > 0
    rows = [row for row in read_rows(tmp_path / "out.jsonl") if row["error"] is None]
    assert now["tokens"]["generated"] == sum(row["usage"]["generated_tokens"] for row in rows)
    assert summary["reward"] == {
        "mean": pytest.approx(sum(row["reward"] for row in rows) / 4),
        "n": 4,
    }
    assert json.loads((tmp_path / "out.jsonl.job.json").read_text()) == summary["job"]


def test_a_finished_job_needs_no_model(
    run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run(tmp_path / "out.jsonl")
    request.getfixturevalue("no_model")
    before = (tmp_path / "out.jsonl").read_bytes()
    again = run(tmp_path / "out.jsonl")
    assert again.exit_code == 2
    assert "holds 5 rows of a job of" in again.stderr
    assert "hint: go on with it by --resume, or give another --output" in again.stderr
    other = run(tmp_path / "out.jsonl", "--seed", "9", "--resume")
    assert other.exit_code == 2
    assert "holds another job: settings.seed was 0, now it is 9" in other.stderr
    resumed = run(tmp_path / "out.jsonl", "--resume", "--in-flight", "3", "--total-memory", "1GiB")
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stdout.startswith(
        f"5 rows in {tmp_path / 'out.jsonl'}, 1 failed (0 run now); mean reward -"
    )
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_failed_row_that_is_taken_out_is_run_again(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out.jsonl")
    rows = read_rows(tmp_path / "out.jsonl")
    write_requests(
        tmp_path / "out.jsonl", [row for row in rows if row["id"] not in ("p2", "line-5")]
    )
    assert "(2 run now)" in run(tmp_path / "out.jsonl", "--resume").stdout
    assert len(read_rows(tmp_path / "out.jsonl")) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--in-flight", "0"], "in_flight must be at least 1"),
        (["--total-memory", "much"], "total_memory must be like '64MiB'"),
        (
            ["--total-memory", "1MiB", "--memory", "2MiB"],
            "a total_memory of 1MiB does not hold one prompt",
        ),
        (["--keep", "0"], "must be at least 1, got 0"),
        (["--keep-at-decisions", "0"], "keep must be at least 1, got 0"),
        (["--alpha", "1"], "alpha must be in [0, 1)"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or above"),
        (["--reward", "logprb"], "unknown reward 'logprb'"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_what_cannot_be_run_costs_no_model_and_no_row(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run(tmp_path / "out.jsonl", *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert not (tmp_path / "out.jsonl").exists() or not read_rows(tmp_path / "out.jsonl")


@pytest.mark.usefixtures("no_model")
def test_an_input_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path / "out.jsonl", given=tmp_path / "absent.jsonl")
    assert (done.exit_code, "cannot read" in done.stderr) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_cannot_be_opened_leaves_no_row_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    failed = run(tmp_path / "out.jsonl", "--model", str(tmp_path / "empty"))
    assert failed.exit_code in (1, 2)
    assert "Traceback" not in failed.stderr
    assert run(tmp_path / "out.jsonl").exit_code == 0


def test_best_answers_and_the_rule_of_decisions_are_two_options(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = run(output, "--keep", "3", "--keep-at-decisions", "2", "--decide", "at:6")
    assert done.exit_code == 0, done.stderr
    assert f"For preference pairs: specrej pairs {output} --output" in done.stdout
    job = json.loads((tmp_path / "out.jsonl.job.json").read_text())
    assert (job["num_kept"], job["settings"]["keep"]) == (3, 2)
    answers = [row["answers"] for row in read_rows(output) if row["error"] is None]
    assert {len(each) for each in answers} == {2}  # of four, a decision has kept two


def test_pairs_come_from_a_batch(run: Run, tmp_path: Path) -> None:
    output, pairs = tmp_path / "out.jsonl", tmp_path / "pairs.jsonl"
    run(output, "--keep", "2")
    command = ["pairs", str(output), "--output", str(pairs)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"4 pairs in {pairs}; without a pair: 1 failed, ")
    assert all(isinstance(row["chosen"], list) for row in read_rows(pairs))
    standard = CliRunner().invoke(app, [*command, "--form", "standard", "--min-margin", "1000"])
    assert standard.stdout.startswith("0 pairs in ")
    assert "4 below the margin" in standard.stdout
    sft = CliRunner().invoke(app, [*command, "--form", "sft"])
    assert sft.stdout == f"4 conversations with their best answers in {pairs}; 1 failed\n"
    assert [row["messages"][-1]["role"] for row in read_rows(pairs)] == ["assistant"] * 4
    wrong = CliRunner().invoke(app, [*command, "--form", "letters"])
    assert (wrong.exit_code, "unknown form 'letters'" in wrong.stderr) == (2, True)


def test_openai_rows_come_back_in_their_form(run: Run, tiny_model: str, tmp_path: Path) -> None:
    rows = [openai(number, model=tiny_model, n=2, max_tokens=6) for number in range(3)]
    done = run(tmp_path / "out.jsonl", given=write_requests(tmp_path / "openai.jsonl", rows))
    assert done.exit_code == 0, done.stderr
    written = read_rows(tmp_path / "out.jsonl")
    assert sorted(row["custom_id"] for row in written) == ["o0", "o1", "o2"]
    assert all(len(row["response"]["body"]["choices"]) == 2 for row in written)


def test_stdin_and_stdout_are_files(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run("-", given="-", input=(tmp_path / "in.jsonl").read_text())
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {row_id(row) for row in rows} == {"p0", "p1", "p2", "p3", "line-5"}
    assert done.stderr.splitlines()[-1].startswith(
        "5 rows in stdout, 1 failed (5 run now); mean reward -"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--resume", "--json"])
def test_what_stdout_cannot_be(run: Run, option: str) -> None:
    done = run("-", option)
    assert done.exit_code == 2
    assert f"with --output - there is no {option}" in done.stderr


def test_a_pipe_that_nobody_reads_ends_quietly(run: Run) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with stdout_as(theirs):
        done = run("-")
    os.close(theirs)
    assert done.exit_code == 141
    assert "error" not in done.stderr.replace("failed: no JSON", "")
    assert "Traceback" not in done.stderr


def test_a_device_that_is_full_is_named(run: Run) -> None:
    with Path("/dev/full").open("wb") as full, stdout_as(full.fileno()):
        done = run("-")
    assert done.exit_code == 2
    assert "error: cannot write to stdout: No space left on device" in done.stderr


def test_head_takes_what_it_wants(tiny_model: str, source: Path) -> None:
    with start("-m", "specrej", "batch", source, "--output", "-", *options(tiny_model)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "line-5"
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 141, stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_batch_that_was_stopped_says_how_to_go_on_and_does(
    run: Run, tiny_model: str, tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    # With neighbours, the last bits of a sum, and so of a reward, would depend on who they are.
    arguments = ["--max-new-tokens", "100", "--in-flight", "1"]
    output = tmp_path / "out.jsonl"
    command = [
        "batch",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(output),
        *options(tiny_model, *arguments),
    ]
    process = start("-m", "specrej", *command)
    while (
        not output.exists() or output.read_bytes().count(b"\n") < 2
    ):  # the broken one and an answer
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(kind)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    assert stdout == ""
    said = f"interrupted; what is done is in {output}: give the same command with --resume to go on"
    assert stderr.splitlines()[-1] == said
    before = read_rows(output)
    assert 2 <= len(before) < 5
    assert run(output, *arguments, "--resume").exit_code == 0
    assert read_rows(output)[: len(before)] == before
    assert run(tmp_path / "whole.jsonl", *arguments).exit_code == 0
    assert rows_in(output) == rows_in(tmp_path / "whole.jsonl")


def test_a_second_signal_ends_at_once() -> None:
    code = """
import time
from specrej.cli.options import stoppable
with stoppable("go on"):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("first", flush=True)
        time.sleep(60)
"""
    process = start("-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_handlers_are_as_before_once_the_work_is_done(kind: signal.Signals, code: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as caught, stoppable("go on"):
        signal.raise_signal(kind)
    assert caught.value.exit_code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable("go on"):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("command", ["batch", "pairs"])
def test_help_comes_without_torch(command: str) -> None:
    code = (
        "import sys; from specrej.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'numpy', 'onnxruntime', 'ray'} & sys.modules.keys()"
    )
    process = start("-c", code, command, "--help")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def test_a_job_in_which_nothing_succeeded_exits_with_1(run: Run, tmp_path: Path) -> None:
    broken = write_requests(tmp_path / "broken.jsonl", ["{broken]", {"id": "b"}])
    done = run(tmp_path / "out.jsonl", given=broken)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].endswith("nothing succeeded: all 2 failed")
    resumed = run(tmp_path / "out.jsonl", "--resume", "--json", given=broken)
    assert (resumed.exit_code, json.loads(resumed.stdout)["num_failed"]) == (1, 2)
    assert resumed.stderr.splitlines()[-1] == "nothing succeeded: all 2 failed"
    for form in ("conversational", "sft"):
        command = [
            "pairs",
            str(tmp_path / "out.jsonl"),
            "--output",
            str(tmp_path / "pairs.jsonl"),
            "--form",
            form,
        ]
        assert CliRunner().invoke(app, command).exit_code == 1


def test_a_budget_of_tokens_is_spent_in_waves(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    spending = ("--algorithm", "best_of_n", "--budget-tokens", "400")
    result = run(output, *spending, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    rows = [row for row in read_rows(output) if row["error"] is None]
    counts = sorted(row["num_candidates"] for row in rows)
    assert len(counts) == 4
    assert counts[-1] > 4
    spent = sum(row["usage"]["generated_tokens"] for row in rows)
    assert 400 - 4 * 12 < spent <= 400
    assert summary["budget"] == {
        "tokens": 400,
        "spent_tokens": spent,
        "min_candidates": counts[0],
        "median_candidates": (counts[1] + counts[2]) / 2,
        "max_candidates": counts[-1],
    }
    assert summary["job"]["budget_tokens"] == 400
    assert "round 0: 4 more candidates for each of 4 prompts; 0 of 400 tokens spent" in (
        result.stderr
    )
    most = max(rows, key=lambda row: row["num_candidates"])
    at_once = run(tmp_path / "n.jsonl", "--algorithm", "best_of_n", "--n", str(counts[-1]))
    assert at_once.exit_code == 0, at_once.output
    alone = next(row for row in read_rows(tmp_path / "n.jsonl") if row_id(row) == most["id"])
    assert [answer["text"] for answer in most["answers"]] == [
        answer["text"] for answer in alone["answers"]
    ]
    again = run(output, *spending, "--resume")
    assert again.exit_code == 0, again.output
    assert f"{spent} of a budget of 400 tokens spent; candidates of a prompt: " in again.stdout


def test_a_reward_that_ranks_has_no_mean_and_no_budget(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lengths.py").write_text("def better(prompt, a, b):\n    return len(a) > len(b)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ranked = ("--reward", "pairwise:lengths:better", "--algorithm", "best_of_n")
    result = run(tmp_path / "out.jsonl", *ranked, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reward"] == {"mean": None, "n": 0}
    result = run(tmp_path / "spent.jsonl", *ranked, "--budget-tokens", "400")
    assert result.exit_code == 2
    assert "a budget of tokens, which goes to the prompts that gain most" in result.stderr


def test_rows_of_a_budget_go_to_stdout_too(run: Run, tmp_path: Path) -> None:
    spending = ("--algorithm", "best_of_n", "--budget-tokens", "400")
    assert run(tmp_path / "out.jsonl", *spending).exit_code == 0
    with (tmp_path / "stdout").open("wb") as stream, stdout_as(stream.fileno()):
        assert run("-", *spending).exit_code == 0
    assert rows_in(tmp_path / "stdout") == rows_in(tmp_path / "out.jsonl")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budget-tokens", "400"), "is for Best-of-N"),
        (("--budget-tokens", "0"), "--budget-tokens"),
        (("--algorithm", "best_of_n", "--budget-tokens", "191"), "they may take 192"),
        (("--algorithm", "best_of_n", "--budget-tokens", "400", "--ray"), "on one machine"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_refused_before_a_model_is_opened(
    run: Run, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    result = run(tmp_path / "out.jsonl", *more)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
