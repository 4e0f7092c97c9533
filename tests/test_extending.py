"""The examples of docs/extending.md, each used as it stands: as an object, by its module, and by an
entry point.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine
from specrej.rewards.pairwise import FunctionComparer, PairwiseReward
from tiny import save_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(
    r"```python\n# (\w+)\.py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL
)
RUN: dict[str, Any] = {"n": 12, "max_new_tokens": 48, "seed": 3}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory that holds the examples as modules, and is not yet on sys.path."""
    for name, code in BLOCKS:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    yield tmp_path
    for name, _ in BLOCKS:
        sys.modules.pop(name, None)


@pytest.fixture
def example(modules: Path) -> Callable[[str], Any]:
    """What `module:name` of the examples is."""

    def example(spec: str) -> Any:
        sys.path.insert(0, str(modules))  # put back by `modules`
        module, _, name = spec.partition(":")
        return getattr(importlib.import_module(module), name)

    return example


@pytest.fixture
def installed(modules: Path) -> None:
    """The entry points that the document shows, of a package that is installed."""
    info = modules / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = re.findall(
        r'^    (\[project\.entry-points\."(.*)"\]|(\w+) = "(.*?)".*)$',
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    written = [f"[{group}]" if group else f"{name} = {value}" for _, group, name, value in points]
    (info / "entry_points.txt").write_text("\n".join(written))
    sys.path.append(str(modules))  # put back by `modules`


def fields(result: specrej.Result) -> tuple[Any, ...]:
    """What a run decided, and on what."""
    return [(one.token_ids, one.rewards, one.state) for one in result.candidates], result.decisions


def test_each_example_is_short() -> None:
    assert [name for name, _ in BLOCKS] == [
        *(
            "my_rewards",
            "my_overlap",
            "test_my_overlap",
            "my_ranker",
            "my_policies",
            "my_algorithms",
            "my_engine",
            "test_my_engine",
            "watching",
        )
    ]
    for name, code in BLOCKS:
        assert sum(bool(line.strip()) for line in code.splitlines()) < 43, name


@pytest.mark.usefixtures("installed")
def test_a_function_is_a_reward(example: Callable[[str], Any]) -> None:
    ways = [example("my_rewards:brevity"), "my_rewards:brevity", "brevity", "brevity:x"]
    results = [
        specrej.generate("Hi", model=FakeEngine(), reward=reward, decide="every:8", **RUN)
        for reward in ways
    ]
    for result in results:
        complete = [one for one in result.candidates if one.state == "complete"]
        assert len(result.text) == min(len(one.text) for one in complete)
        assert fields(result) == fields(results[0])


def test_an_object_is_a_reward(example: Callable[[str], Any]) -> None:
    overlap = example("my_overlap:Overlap")()
    result = specrej.generate("a b c", model=FakeEngine(), reward=overlap, decide="every:8", **RUN)
    assert result.usage.reward_tokens > 0
    for one in result.candidates:
        if one.state == "complete":
            assert one.reward == len({"a", "b", "c"} & set(one.text.split())) / 3


def test_a_function_of_two_texts_ranks(example: Callable[[str], Any]) -> None:
    better = example("my_ranker:better")
    assert better("", "a b c", "a a a") == 0.5 + (1 - 1 / 3) / 2 == 1 - better("", "a a a", "a b c")
    ways: list[Any] = ["pairwise:my_ranker:better", PairwiseReward(FunctionComparer(better))]
    one, other = (
        specrej.generate("Hi", model=FakeEngine(), reward=reward, decide="every:8", **RUN)
        for reward in ways
    )
    assert fields(one) == fields(other)
    assert one.usage.reward_comparisons > 0


@pytest.mark.usefixtures("installed")
def test_a_policy(example: Callable[[str], Any]) -> None:
    def run(policy: Any) -> specrej.Result:
        return specrej.generate(
            "Hi", model=FakeEngine(eos=0), reward=by_length, policy=policy, **RUN
        )

    results = [run(example("my_policies:patient")), run("my_policies:patient"), run("patient")]
    assert [decision.num_tokens for decision in results[0].decisions] == [16, 32, 48]
    assert any(decision.rejected for decision in results[0].decisions)
    assert all(fields(result) == fields(results[0]) for result in results)
    assert results[0].settings["policy"] == "patient"


@pytest.mark.usefixtures("installed")
def test_an_algorithm(example: Callable[[str], Any]) -> None:
    def run(algorithm: Any) -> specrej.Result:
        engine = FakeEngine()
        memory = engine.kv_bytes(len(engine.encode("Hi")), 5, 48)
        options = {**RUN, "n": 40, "memory": memory, "decide": "every:8"}
        return specrej.generate(
            "Hi", model=engine, reward=by_length, algorithm=algorithm, **options
        )

    results = [
        run(example("my_algorithms:champion")),
        run("my_algorithms:champion"),
        run("champion"),
    ]
    assert all(fields(result) == fields(results[0]) for result in results)
    best = results[0].reward
    assert best == max(one.reward or 0 for one in results[0].candidates if one.state == "complete")
    assert len(results[0].decisions) > 3


def test_a_run_is_watched(
    example: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**RUN, "decide": "every:16", "observe": example("watching:tell")}
    result = specrej.generate("Hi", model=FakeEngine(), reward=by_length, **options)
    said = capsys.readouterr().out
    assert said.count(" rejected\n") == len(result.decisions)
    assert said.endswith(f"{result}\n")


def by_length(prompt: str, texts: list[str]) -> list[float]:
    return [len(text) + text.count("a") / 100 for text in texts]


def test_an_engine(example: Callable[[str], Any], modules: Path) -> None:
    engine = example("my_engine:open_parrot")(save_model(modules / "model"))
    result = specrej.generate("Name a tree.", engine=engine, reward=by_length, **RUN)
    assert set(result.text) <= set("Name a tree.")
    assert result.settings["engine"] == "parrot"


@pytest.mark.usefixtures("installed")
def test_an_engine_by_its_name(example: Callable[[str], Any], modules: Path) -> None:
    model = save_model(modules / "model")
    own = specrej.generate(
        "Hi", model=example("my_engine:open_parrot")(model), reward=by_length, **RUN
    )
    named = specrej.generate("Hi", model=model, engine="parrot", reward=by_length, **RUN)
    assert fields(named) == fields(own)


def test_the_suites_pass(modules: Path) -> None:
    save_model(modules / "model")
    of_its_own = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "test_my_overlap.py",
        "test_my_engine.py",
    ]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        of_its_own, cwd=modules, env=paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
