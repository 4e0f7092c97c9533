"""Threads that wait spin briefly where the process is ours, unless the user wants otherwise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specrej
from specrej import threads
from specrej.threads import WAITING, usable_cores
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


OPENED = """
import os, sys
import specrej
before = dict(os.environ)
specrej.open_engine(sys.argv[1])
assert dict(os.environ) == before, "an opened engine has changed the environment"
"""


def test_the_library_tells_the_openmp_that_it_loads(tiny_model: str, tmp_path: Path) -> None:
    done = run("-c", OPENED, tiny_model, cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE")
    assert re.search(r"GOMP_SPINCOUNT ?= ?'1000'", done.stderr), done.stderr


@pytest.mark.parametrize(
    "given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "200"}]
)
def test_the_library_loads_it_as_its_host_has_decided(
    given: dict[str, str], tiny_model: str, tmp_path: Path
) -> None:
    done = run("-c", OPENED, tiny_model, cwd=tmp_path, OMP_DISPLAY_ENV="VERBOSE", **given)
    assert not re.search(r"GOMP_SPINCOUNT ?= ?'1000'", done.stderr), done.stderr


def make_groups(root: Path, group: str, **quotas: str) -> Path:
    """Files of a process in a control group; `quotas` by its depth, `q0` that of the root."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"4:memory:/elsewhere\n0::/{group}\n")
    directory = root / "sys/fs/cgroup"
    for depth, name in enumerate(["", *group.split("/")]):
        directory /= name
        directory.mkdir(parents=True, exist_ok=True)
        if (quota := quotas.get(f"q{depth}")) is not None:
            (directory / "cpu.max").write_text(f"{quota}\n")
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 4),
        ({"q2": "max 100000"}, 4),
        ({"q2": "200000 100000"}, 2),
        ({"q2": "150000 100000"}, 2),
        ({"q2": "1000 100000"}, 1),
        ({"q2": "900000 100000"}, 4),
        ({"q1": "300000 100000", "q2": "max 100000"}, 3),
        ({"q0": "100000 100000", "q1": "300000 100000"}, 1),
        ({"q2": "broken"}, 4),
    ],
)
def test_cores_are_those_of_affinity_and_of_every_quota_above(
    quotas: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    assert usable_cores(make_groups(tmp_path, "user/job", **quotas)) == expected


def test_cores_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "absent") >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3"), ({"OMP_NUM_THREADS": "8"}, "8"), ({"MKL_NUM_THREADS": "8"}, None)],
)
def test_threads_are_counted_where_a_quota_binds_and_nobody_has_said(
    given: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    root = make_groups(tmp_path, "job", q1="300000 100000")
    monkeypatch.setattr(threads, "usable_cores", lambda: usable_cores(root))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    before = dict(os.environ)
    with threads.while_torch_loads():
        assert os.environ.get("OMP_NUM_THREADS") == expected
        assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert dict(os.environ) == before


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
