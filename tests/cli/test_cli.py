"""The command: a tiny model with random weights behind it, in this process; a few runs in one of
their own."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from specrej import Opening, __version__
from specrej.cli import app
from specrej.errors import ModelError
from specrej.hub import defaults
from tiny import make_model, make_tokenizer

REWARDS = """
calls = 0

def length(prompt, texts):
    print("noise of a reward")
    return [len(text) for text in texts]

def same(prompt, texts):
    return [1.0] * len(texts)

def undefined(prompt, texts):
    return [float("nan")] * len(texts)

def broken(prompt, texts):
    raise ValueError("no [bold]score[/bold]")

def exiting(prompt, texts):
    raise SystemExit(0)

def interrupting(prompt, texts):
    global calls
    calls += 1
    if calls == 2:
        raise KeyboardInterrupt
    return [0.0] * len(texts)
"""

SEARCHES = """
from specrej.search.policies import every, top
from specrej.types import Policy

pairs = Policy(when=every(3), keep=top(2), first_tokens=3, name="pairs")

def last(search, n, policy):
    search.start(n)
    scores = yield lambda length, last: False
    search.keep([True] * len(scores))
    return min(search.candidates, key=lambda one: (one.reward, -one.index))

def decide_once(search, n, policy):
    search.start(n)
    scores = yield lambda length, last: length >= 5
    search.keep([score == max(scores) for score in scores])
    while search.live:
        scores = yield policy.when
        search.keep([True] * len(scores))
"""

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model("llama", max_position_embeddings=2**20).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a module of rewards, which is the current one."""
    (tmp_path / "cli_rewards.py").write_text(REWARDS)
    (tmp_path / "cli_searches.py").write_text(SEARCHES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("cli_rewards", None)
    sys.modules.pop("cli_searches", None)


@pytest.fixture
def run(tiny_model: str) -> Run:
    def invoke(
        command: str, *arguments: str, reward: str = "logprob", prompt: str = "Hello", **how: Any
    ) -> Result:
        options = ["--model", tiny_model, "--reward", reward, "--max-new-tokens", "12", *arguments]
        return CliRunner().invoke(app, [command, prompt, *options], **how)

    return invoke


def tokens_of(answer: dict[str, Any]) -> list[list[int]]:
    return [candidate["token_ids"] for candidate in answer["candidates"]]


def environment() -> dict[str, str]:
    source = Path(__file__).parents[2] / "src"
    return {
        **os.environ,
        "PYTHONPATH": str(source),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TERM": "xterm",
        "COLUMNS": "100",
    }


def start(*arguments: str, **how: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "specrej", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), **how)


def test_json_holds_the_whole_result_and_nothing_else_reaches_stdout(
    run: Run, rewards: Path
) -> None:
    done = run(
        "generate",
        "--n",
        "6",
        "--decide",
        "every:4",
        "--seed",
        "7",
        "--json",
        reward="cli_rewards:length",
    )
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["is_complete"] is True
    assert answer["seed"] == answer["settings"]["seed"] == 7
    assert answer["reward"] == len(answer["text"])
    assert answer["candidates"][answer["best"]]["text"] == answer["text"]
    assert len(answer["candidates"]) == 6
    for candidate in answer["candidates"]:
        assert {
            "token_ids",
            "text",
            "rewards",
            "state",
            "finish_reason",
            "reward",
            "perplexity",
        } <= candidate.keys()
        assert candidate["state"] in ("complete", "rejected")
    assert answer["decisions"][0]["num_tokens"] == 4
    assert len(answer["decisions"][0]["rejected"]) == 3
    assert answer["usage"]["generated_tokens"] == sum(len(ids) for ids in tokens_of(answer))
    assert answer["versions"]["specrej"] == __version__
    assert "noise of a reward" in done.stderr
    assert "decision 1 (schedule) at 4 tokens: scored 6, rejected 3" in done.stderr


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(run: Run) -> None:
    first, again, other = (
        tokens_of(json.loads(run("generate", "--n", "3", "--json", "--seed", seed).stdout))
        for seed in ("5", "5", "6")
    )
    assert first == again
    assert first != other


def test_alpha_zero_is_best_of_n(run: Run) -> None:
    rejection = json.loads(run("generate", "--n", "4", "--alpha", "0", "--json").stdout)
    best_of_n = json.loads(run("generate", "--n", "4", "--algorithm", "best_of_n", "--json").stdout)
    assert tokens_of(rejection) == tokens_of(best_of_n)
    assert rejection["text"] == best_of_n["text"]


def test_a_person_sees_decisions_answer_costs_and_a_last_line(run: Run, rewards: Path) -> None:
    done = run(
        "generate",
        "--n",
        "6",
        "--decide",
        "every:4",
        reward="cli_rewards:same",
        env={"COLUMNS": "100"},
    )
    assert done.exit_code == 0
    for words in (
        "schedule",
        "KV before → after",
        "answer",
        "(cli_rewards:same)",
        "perplexity",
        "seconds",
        "peak KV",
    ):
        assert words in done.stdout
    assert f"specrej {__version__}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        "Candidate 0 wins with reward 1.000, the best of 6 candidates ("
    )
    assert "noise" not in done.stdout


@pytest.mark.usefixtures("rewards")
def test_an_answer_that_is_not_the_highest_is_not_called_the_best(run: Run) -> None:
    options = ["--n", "4", "--algorithm", "cli_searches:last", "--seed", "1", "--window", "9"]
    done = run("generate", *options, reward="cli_rewards:length", env={"COLUMNS": "200"})
    *_, verdict, note = done.stdout.splitlines()
    assert "chosen by cli_searches:last among 4 candidates (" in verdict
    assert note == "Note: the algorithm 'cli_searches:last' does not use window 9"


def test_options_reach_the_run(run: Run) -> None:
    options = (
        "--n 4 --keep 1 --decide at:3,6 --temperature 0.7 --top-k 20 --top-p 0.9 --min-p 0.01 "
        "--stop x --stop y"
    )
    done = run(
        "generate", *options.split(), "--repetition-penalty", "1.2", "--memory", "1MiB", "--json"
    )
    settings = json.loads(done.stdout)["settings"]
    expected = {
        "n": 4,
        "keep": 1,
        "decide": "at:3,6",
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
    }
    expected |= {
        "stop": ["x", "y"],
        "repetition_penalty": 1.2,
        "memory": "1MiB",
        "memory_bytes": 2**20,
    }
    assert expected.items() <= settings.items()


def test_a_dash_reads_the_prompt_from_stdin(run: Run) -> None:
    given = run("generate", "--n", "2", "--json", prompt="Grüß\nGott")
    piped = run("generate", "--n", "2", "--json", prompt="-", input="Grüß\nGott\n")
    assert json.loads(given.stdout)["usage"]["prompt_tokens"] == len("Grüß\nGott".encode())
    assert tokens_of(json.loads(given.stdout)) == tokens_of(json.loads(piped.stdout))


def test_stdin_that_is_no_text_is_an_error(run: Run) -> None:
    done = run("generate", prompt="-", input=b"\xff\xfe")
    assert done.exit_code == 2
    assert "error: stdin is UTF-16, expected UTF-8" in done.stderr


def test_compare_prints_one_object_with_three_results(run: Run) -> None:
    done = run("compare", "--decide", "every:4", "--json", prompt="Hi")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert answer["prompt"] == "Hi"
    small, rejection, large = answer["methods"].values()
    assert list(answer["methods"]) == ["best_of_n", "speculative_rejection", "best_of_n_same_start"]
    assert len(rejection["candidates"]) == len(large["candidates"]) > len(small["candidates"])
    assert rejection["usage"]["generated_tokens"] < large["usage"]["generated_tokens"]
    for fewer, full in zip(tokens_of(rejection), tokens_of(large), strict=True):
        assert full[: len(fewer)] == fewer


def test_compare_shows_the_three_side_by_side_and_says_what_happened(run: Run) -> None:
    done = run("compare", "--decide", "every:4", "--n", "6", env={"COLUMNS": "100"})
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == [
        "best_of_n",
        "speculative_rejection",
        "best_of_n",
    ]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("On this prompt with seed 0, Speculative Rejection's reward of ")
    assert "that of Best-of-8 in the same memory" in last
    assert "that of Best-of-6 with the same start; it took " in last
    assert "fewer tokens (" in last


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["--reward", "logprb"],
            2,
            ["error: unknown reward 'logprb'", "hint: did you mean 'logprob'?"],
        ),
        (
            ["--algorithm", "best_of"],
            2,
            ["unknown algorithm 'best_of'", "did you mean 'best_of_n'?"],
        ),
        (["--n", "0"], 2, ["n must be 'auto' or a number of at least 1, and below 2^31, got 0"]),
        (["--n", "[red]many[/red]"], 2, ["got '[red]many[/red]'"]),
        (["--alpha", "1"], 2, ["alpha must be in [0, 1), got 1.0", "hint: alpha is the share"]),
        (
            ["--memory", "1KiB"],
            2,
            ["a budget of 1.00 KiB does not hold one candidate", "hint: give a memory of at"],
        ),
        (["--memory", "much"], 2, ["memory must be like '64MiB'"]),
        (["--decide", "now"], 2, ["decide must be 'budget'"]),
        (["--weights", "int3"], 2, ["unknown weights 'int3'"]),
        (["--top-k", "few"], 2, ["--top-k"]),
        (["--nonsense"], 2, ["--nonsense"]),
        (["--reward", "cli_rewards:undefined"], 1, ["gave nan for candidate 0"]),
        (["--reward", "cli_rewards:exiting"], 1, ["failed on candidates 0 to ", "SystemExit(0)"]),
        (["--reward", "cli_rewards:broken"], 1, ["ValueError: no [bold]score[/bold]", "hint: "]),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    run: Run, rewards: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    for command in ("generate", "compare"):
        if command == "compare" and "--algorithm" in arguments:
            continue
        done = run(command, *arguments, "--json")
        assert done.exit_code == code
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        for part in words:
            assert part in done.stderr


def test_what_needs_no_model_is_said_before_one_is_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Opening, "open", None)
    for command, *arguments in (
        ("generate", "--policy", "pateince"),
        ("generate", "--policy", "no_such_module:policy"),
        ("generate", "--algorithm", "no_such_module:run"),
        ("compare", "--policy", "no_such_module:policy"),
    ):
        done = run(command, *arguments)
        assert done.exit_code == 2
        assert "error: unknown policy" in done.stderr or "no_such_module" in done.stderr


def test_an_empty_prompt_is_a_mistake(run: Run) -> None:
    for prompt in ("", " \n"):
        done = run("generate", prompt=prompt)
        assert done.exit_code == 2
        assert "error: the prompt is empty" in done.stderr


def test_an_unknown_model_is_named_and_near_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(
        app, ["generate", "Hi", "--model", "[b]smolm2", "--reward", "logprob"]
    )
    assert done.exit_code == 2
    assert "error: unknown model '[b]smolm2'" in done.stderr
    assert "hint: did you mean 'smollm2'?" in done.stderr


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_an_interrupt_prints_what_there_is_as_json(run: Run, rewards: Path, command: str) -> None:
    done = run(
        command, "--n", "4", "--decide", "every:4", "--json", reward="cli_rewards:interrupting"
    )
    assert done.exit_code == 130
    answer = json.loads(done.stdout)
    results = [answer] if command == "generate" else list(answer["methods"].values())
    assert [result["is_complete"] for result in results] == [True] * (len(results) - 1) + [False]
    assert results[-1]["usage"]["generated_tokens"] > 0


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_an_interrupt_says_in_what_state_the_best_so_far_is(
    run: Run, rewards: Path, command: str
) -> None:
    done = run(command, "--n", "4", "--decide", "every:4", reward="cli_rewards:interrupting")
    assert done.exit_code == 130
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Interrupted")
    assert (
        "unfinished, reward 0.000 when last scored"
        if command == "generate"
        else "best_of_n finished"
    ) in last


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_an_interrupt_before_the_first_token_is_a_short_line(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Opening, "open", interrupted)
    done = run(command)
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "interrupted before there was a result"


def test_sigint_ends_a_running_command_with_its_partial_result(tiny_model: str) -> None:
    options = [
        "--n",
        "4",
        "--keep",
        "2",
        "--decide",
        "every:4",
        "--max-new-tokens",
        "100000",
        "--json",
    ]
    process = start(
        "generate",
        "Hi",
        "--model",
        tiny_model,
        "--reward",
        "logprob",
        *options,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert any("decision 1" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["is_complete"] is False
    assert "Traceback" not in stderr


def test_on_a_terminal_progress_is_live_and_sigint_leaves_a_report(tiny_model: str) -> None:
    terminal, theirs = pty.openpty()
    options = ["--n", "4", "--reward", "logprob", "--max-new-tokens", "100000"]
    process = start("generate", "Hi", "--model", tiny_model, *options, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"tokens/s" not in seen:
        seen += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=300)
    os.close(terminal)
    assert process.returncode == 130
    assert b"4 live of 4 candidates  decisions 0  best reward" in seen
    assert stdout.splitlines()[-1].startswith("Interrupted: so far the best of 4 candidates")
    assert stdout.splitlines()[-1].endswith("is candidate 0, unfinished, not scored yet")
    assert "\x1b" not in stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["compare", "--help"], ["models"]]
)
def test_help_and_models_come_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from specrej.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'numpy', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), check=True, capture_output=True
    )


@pytest.mark.usefixtures("rewards")
def test_a_policy_and_an_algorithm_of_ones_own_come_by_name(run: Run) -> None:
    """The reward is a text's length, which the scores at the moments of decision differ by."""
    options = ["--n", "6", "--seed", "7", "--json"]
    done = run("generate", "--policy", "cli_searches:pairs", *options, reward="cli_rewards:length")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["settings"]["policy"] == "cli_searches:pairs"
    assert answer["decisions"][0]["num_tokens"] == 3
    assert len(answer["decisions"][0]["rejected"]) == 4
    done = run(
        "generate", "--algorithm", "cli_searches:decide_once", *options, reward="cli_rewards:length"
    )
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["settings"]["algorithm"] == "cli_searches:decide_once"
    assert answer["decisions"][0]["num_tokens"] == 5
    assert sum(candidate["state"] == "complete" for candidate in answer["candidates"]) < 6


@pytest.mark.usefixtures("rewards")
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--policy", "cli_searches:pair", "unknown function of the module 'cli_searches' 'pair'"),
        ("--policy", "pairs", "unknown policy 'pairs'"),
        (
            "--policy",
            "cli_searches:every",
            "the policy 'cli_searches:every' cannot be made: TypeError: every()",
        ),
        ("--policy", "cli_searches:Policy.__doc__", "policy must be a specrej.Policy"),
        ("--algorithm", "cli_searches:pairs", "algorithm must be a function"),
        ("--algorithm", "beam", "unknown algorithm 'beam'"),
    ],
)
def test_a_policy_or_an_algorithm_that_is_none_is_an_error(
    run: Run, option: str, value: str, said: str
) -> None:
    done = run("generate", option, value)
    assert done.exit_code == 2, done.exception
    assert said in done.stderr
    for command in (["serve"], ["batch", "no.jsonl", "--output", "out"]):
        done = CliRunner().invoke(app, [*command, "--model", "no-model", option, value])
        assert done.exit_code == 2, done.exception
        assert said in done.stderr  # before a model is looked for


def test_help_knows_the_defaults_of_the_settings() -> None:
    shown = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "200"}).stdout
    assert "[default: 256]" in shown
    assert "--algorithm" not in shown


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"specrej {__version__}\n")


def test_models_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path))
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)["models"]
    assert [model["name"] for model in listed] == list(defaults.DEFAULT_MODELS)
    assert not any(model["is_pulled"] for model in listed)
    shown = CliRunner().invoke(app, ["models"]).stdout
    assert "smollm2  generator, Apache-2.0, download of 93 MB, not pulled" in shown
    assert str(tmp_path / "models" / "relevance") in shown


def test_models_are_pulled_by_name_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(defaults, "pull", pulled.append)
    assert CliRunner().invoke(app, ["models", "pull", "relevance"]).exit_code == 0
    assert CliRunner().invoke(app, ["models", "pull"]).exit_code == 0
    assert pulled == ["relevance", "smollm2", "relevance"]


def test_a_pull_that_fails_exits_with_1_and_an_unknown_name_with_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = CliRunner().invoke(app, ["models", "pull", "smolm2"])
    assert done.exit_code == 2
    assert "did you mean 'smollm2'?" in done.stderr

    def failing(name: str) -> None:
        raise ModelError("no connection", hint="check it")

    monkeypatch.setattr(defaults, "pull", failing)
    done = CliRunner().invoke(app, ["models", "pull", "smollm2"])
    assert (done.exit_code, done.stderr) == (1, "error: no connection\nhint: check it\n")
