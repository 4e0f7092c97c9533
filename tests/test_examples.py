"""The programs of examples/ run as they stand; only models are smaller."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import rewards
from specrej.engines import opening
from specrej.evaluation.recording import record
from specrej.files.journal import read_rows
from specrej.rewards import as_reward
from specrej.settings import Settings
from tiny import save_model
from traces import loaded_of

EXAMPLES = Path(__file__).parents[1] / "examples"

Run = Callable[..., str]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models by name are the fake, and rewards by name too."""
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: FakeEngine())
    monkeypatch.setattr(rewards, "_named", lambda _: FakeReward())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as the command line does; what it printed."""

    def run(name: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.usefixtures("_small")
def test_many_prompts(run: Run) -> None:
    said = run("many_prompts.py")
    assert "[1] failed: the prompt is empty" in said
    assert said.count("reward") == 2


@pytest.mark.usefixtures("_small")
def test_own_reward(run: Run) -> None:
    assert "the best of 16 candidates" in run("own_reward.py")


@pytest.mark.usefixtures("_small")
def test_preference_pairs(run: Run, tmp_path: Path) -> None:
    said = run("preference_pairs.py", "--output", tmp_path / "pairs.jsonl")
    pairs = read_rows(tmp_path / "pairs.jsonl")
    assert pairs
    assert f"{len(pairs)} pairs in {tmp_path / 'pairs.jsonl'}" in said
    assert all(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)


def test_a_trained_reward_head_is_a_classifier(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    engine, settings = specrej.open_engine(model), Settings(n=8, max_new_tokens=12, memory="1MiB")
    prompts = loaded_of([f"Question {number}?" for number in range(8)])
    traces = record(
        prompts,
        engine,
        as_reward("logprob"),
        tmp_path / "traces",
        settings=settings,
        checkpoints=[4, 8],
    )
    assert len(list(traces)) == 8
    said = run(
        "train_reward_head.py", tmp_path / "traces", "--output", tmp_path / "head", "--model", model
    )
    assert f"--reward classifier:{tmp_path / 'head'}" in said
    result = specrej.generate("Why?", model=engine, reward=tmp_path / "head", n=2, max_new_tokens=4)
    assert result.reward is not None
