"""What the commands say of their runs before an engine is opened: `--engine auto` goes by it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs import openai, plain, write_requests
from specrej.cli import app
from specrej.errors import ModelError
from specrej.opening import Opening
from specrej.settings import Settings

COMMANDS = {
    "generate": ["generate", "Why?"],
    "compare": ["compare", "Why?"],
    "batch": ["batch", "prompts.jsonl", "--output", "out.jsonl"],
    "serve": ["serve", "--port", "0"],
    "bench": ["bench", "prompts.jsonl", "--methods", "best_of_n:2", "--output", "out"],
    "trace": ["trace", "prompts.jsonl", "--output", "out"],
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Those that an opening, which fails, was told of."""
    told: list[Settings] = []

    def opened(_: Opening, runs: Iterable[Settings] = ()) -> Any:
        told.extend(runs)
        raise ModelError("nothing is opened")

    monkeypatch.setattr(Opening, "open", opened)
    monkeypatch.chdir(tmp_path)
    write_requests(Path("prompts.jsonl"), [plain(0)])
    return told


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_how_it_draws(command: str, runs: list[Settings]) -> None:
    done = CliRunner().invoke(app, [*COMMANDS[command], "--frequency-penalty", "0.5"])
    assert "nothing is opened" in done.stderr
    assert [run.frequency_penalty for run in runs] == [0.5]


def test_every_method_of_a_bench_counts(runs: list[Settings]) -> None:
    methods = ["--methods", "best_of_n:2,self_certainty:4", "--baseline", "best_of_n:2"]
    CliRunner().invoke(app, ["bench", "prompts.jsonl", *methods, "--output", "out"])
    assert [run.algorithm for run in runs] == ["best_of_n", "self_certainty"]


def test_every_row_of_a_batch_counts(runs: list[Settings]) -> None:
    rows = [plain(0), "{broken", openai(1, frequency_penalty=0.5)]
    write_requests(Path("prompts.jsonl"), rows)
    done = CliRunner().invoke(
        app, ["batch", "prompts.jsonl", "--output", "out.jsonl", "--model", "bytes"]
    )
    assert "nothing is opened" in done.stderr
    assert [run.frequency_penalty for run in runs] == [0.0, 0.5]
