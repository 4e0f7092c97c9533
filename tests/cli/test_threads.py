"""Threads that wait spin briefly where the process is ours, unless the user wants otherwise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specrej
from specrej.threads import WAITING
from tiny import save_model

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            there = {name: os.environ[name] for name in %r if name in os.environ}
            print("torch is imported with", there,
                  file=sys.stderr, flush=True)
            sys.meta_path.remove(self)
            %%s

before = dict(os.environ)
from specrej import cli
import specrej.batch.ray
assert dict(os.environ) == before, "an import has changed the environment"
assert "torch" not in sys.modules
sys.meta_path.insert(0, Watch())
cli.main()
"""
WATCHED %= (VARIABLES,)


def run(*arguments: str, cwd: Path, **given: str) -> "subprocess.CompletedProcess[str]":
    """Python in an environment that says of waiting threads only what is given."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = {**inherited, "PYTHONPATH": str(Path(specrej.__file__).parents[1]), **given}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


COMMANDS = {
    "generate": ["Hi"],
    "compare": ["Hi"],
    "batch": ["in.jsonl", "--output", "out.jsonl"],
    "bench": ["in.jsonl", "--methods", "best_of_n:2", "--output", "out"],
    "trace": ["in.jsonl", "--output", "out"],
    "serve": ["--port", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_set_before_a_command_imports_torch(
    command: str, tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    arguments = [command, *COMMANDS[command], "--model", tiny_model, "--reward", "logprob"]
    done = run("-c", WATCHED % "os._exit(0)", *arguments, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == f"torch is imported with {WAITING}"


@pytest.mark.parametrize(
    "given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}]
)
def test_what_the_user_has_set_stays(
    given: dict[str, str], tiny_model: str, tmp_path: Path
) -> None:
    arguments = ["generate", "Hi", "--model", tiny_model, "--reward", "logprob"]
    done = run("-c", WATCHED % "os._exit(0)", *arguments, cwd=tmp_path, **given)
    assert done.stderr.splitlines()[-1] == f"torch is imported with {given}"


def test_a_command_tells_the_openmp_that_it_computes_with(tiny_model: str, tmp_path: Path) -> None:
    options = [
        "--model",
        tiny_model,
        "--reward",
        "logprob",
        "--n",
        "2",
        "--max-new-tokens",
        "2",
        "--json",
    ]
    done = run(
        "-c", WATCHED % "pass", "generate", "Hi", *options, cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE"
    )
    assert f"torch is imported with {WAITING}" in done.stderr
    assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr), done.stderr
    assert re.search(r"GOMP_SPINCOUNT ?= ?'1000'", done.stderr), done.stderr


def test_the_library_leaves_the_environment_as_it_is(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    specrej.generate("Hi", model=tiny_model, reward="logprob", n=2, max_new_tokens=2)
    for _ in specrej.generate_batch(
        ["Hi"], model=tiny_model, reward="logprob", n=2, max_new_tokens=2
    ):
        pass
    assert {name: os.environ.get(name) for name in VARIABLES} == {
        name: before.get(name) for name in VARIABLES
    }
