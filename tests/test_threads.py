"""Threads that wait sleep where the process is ours, unless the user wants otherwise; elsewhere nothing is changed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specrej
from tiny import save_model

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is imported with", {name: os.environ[name] for name in %r if name in os.environ},
                  file=sys.stderr)
            sys.meta_path.remove(self)

before = dict(os.environ)
from specrej import cli
import specrej.ray
assert dict(os.environ) == before, "an import has changed the environment"
assert "torch" not in sys.modules
sys.meta_path.insert(0, Watch())
%%s
cli.main()
"""
WATCHED %= (VARIABLES,)


def run(*arguments: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Python in an environment that says of waiting threads only what is given."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = {**inherited, "PYTHONPATH": str(Path(specrej.__file__).parents[1]), **given}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}]
)
def test_it_is_set_before_torch_is_imported_and_only_where_the_user_has_not(given: dict[str, str]) -> None:
    code = WATCHED % "cli.app = lambda prog_name: __import__('torch')"
    done = run("-c", code, **given)
    assert done.stderr == f"torch is imported with {given or {'OMP_WAIT_POLICY': 'passive'}}\n"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_command_tells_the_openmp_that_it_computes_with(tiny_model: str) -> None:
    options = ["--model", tiny_model, "--reward", "logprob", "--n", "2", "--max-new-tokens", "2", "--json"]
    done = run("-c", WATCHED % "", "generate", "Hi", *options, OMP_DISPLAY_ENV="TRUE")
    assert "torch is imported with {'OMP_WAIT_POLICY': 'passive'}" in done.stderr
    assert re.search(r"OMP_WAIT_POLICY ?= ?'PASSIVE'", done.stderr), done.stderr


def test_the_library_leaves_the_environment_as_it_is(tiny_model: str) -> None:
    code = (
        "import os, sys; before = dict(os.environ); import specrej; "
        "specrej.generate('Hi', model=sys.argv[1], reward='logprob', n=2, max_new_tokens=2); "
        f"assert not {set(VARIABLES)} & set(os.environ), set(os.environ.items()) - set(before.items())"
    )
    run("-c", code, tiny_model)
