"""What all tools read: answers of a tiny model. They have an environment of their own, above the
one that has specrej: `make test-tools`."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servers import Server, serving
from specrej.cli import app
from tiny import save_model

if any(importlib.util.find_spec(name) is None for name in ("alpaca_eval", "fastchat", "trl")):
    collect_ignore_glob = ["test_*.py"]

Run = Callable[..., str]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def judge() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def run() -> Run:
    """A command of specrej, to its end; what it printed."""

    def run(*arguments: str | Path) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def reproduce(run: Run, tiny_model: str, judge: Server, tmp_path: Path) -> Callable[..., object]:
    """Runs a row in the folder `out`; what its --json says."""

    def reproduce(row: str, prompts: Path, methods: str) -> object:
        options = ["--model", tiny_model, "--reward", "logprob", "--max-new-tokens", "8"]
        options += ["--judge", "gpt-4", "--judge-url", f"{judge.url}/v1", "--methods", methods]
        out = tmp_path / "out"
        said = run("reproduce", row, "--prompts", prompts, "--output", out, *options, "--json")
        return json.loads(said)

    return reproduce
