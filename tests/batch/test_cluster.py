"""Batch jobs on a real Ray of this machine: the rows are those of one engine in one process."""

import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_ray import local_ray, make_reward
from typer.testing import CliRunner

from fakes import FakeEngine, FakeReward
from jobs import SETTINGS, openai, plain, rows_in, run_job, without_seconds, write_requests
from specrej.batch import cluster
from specrej.batch.cluster import ray_rows
from specrej.batch.description import describe_job
from specrej.batch.job import read_all, run_batch
from specrej.batch.output import open_output
from specrej.batch.ray import ActorSetup, Fleet
from specrej.batch.requests import Request
from specrej.cli import app
from specrej.errors import ModelError, SpecrejError, UnknownNameError, UsageError
from specrej.opening import Opening
from specrej.rewards import as_reward
from tiny import save_model

pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray",  # Ray Data reads its own old options
)

ROWS: list[Any] = [
    *(plain(number) for number in range(12)),
    *(openai(number, n=2) for number in range(12, 16)),
]
LONG: Any = {"id": "long", "prompt": "x" * 500}


def opening(model: Any = None, reward: Any = None, **how: Any) -> ActorSetup:
    opened = Opening(model=model or FakeEngine(), reward=reward or FakeReward())
    return ActorSetup(
        **{"opening": opened, "settings": SETTINGS, "total_memory": "8KiB", "in_flight": 4, **how}
    )


def one(prompt: str = "Why?") -> list[Request]:
    return [Request(id="a", prompt=prompt, settings=SETTINGS, num_kept=1, line=1, form="plain")]


def test_a_job_with_an_actor_that_dies(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [*ROWS, LONG, "{broken"])
    marker, output = tmp_path / "killed", tmp_path / "out.jsonl"
    dying = make_reward(marker, fatal="Question 6?")
    rows_of = ray_rows(opening(reward=dying, in_flight=2), address="local", actors=2)
    requests = read_all(str(source), SETTINGS, 2, "bytes")
    job = describe_job(requests, SETTINGS, 2, model="bytes", reward="fake")
    with (
        local_ray(),
        open_output(output, job, resume=False) as there,
        closing(run_batch(requests, rows_of, there)) as rows,
    ):
        ended = list(rows)
        assert (
            signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )  # Ray's own would end the process on the spot
    assert marker.exists()
    whole = tmp_path / "whole.jsonl"
    run_job(source, whole, reward=as_reward(make_reward()))
    assert rows_in(output) == rows_in(whole) == without_seconds([each.row for each in ended])
    assert sum(each.flops is not None for each in ended) == len(ROWS)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def command(tiny_model: str, tmp_path: Path) -> list[str]:
    rows = [plain(number) for number in range(5)]
    source = write_requests(tmp_path / "in.jsonl", rows)
    # One at a time: the last bits of a reward depend on the number of rows and of threads (an actor
    # has one here).
    options = [
        "--model",
        tiny_model,
        "--reward",
        "logprob",
        "--n",
        "4",
        "--max-new-tokens",
        "12",
        "--in-flight",
        "1",
    ]
    return ["batch", str(source), "--output", str(tmp_path / "out.jsonl"), *options]


@pytest.mark.usefixtures("_one_thread")
def test_the_command_goes_on_with_what_is_missing(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert CliRunner().invoke(app, command).exit_code == 0
    whole = rows_in(output)
    kept = output.read_bytes().splitlines(keepends=True)[:2]
    output.write_bytes(b"".join(kept))
    with local_ray():
        done = run([*command, "--resume", "--ray", "local", "--actors", "2"])
    assert done.returncode == 0, done.stderr
    assert rows_in(output) == whole
    assert output.read_bytes().startswith(b"".join(kept))
    assert "5 rows in" in done.stdout
    assert "(3 run now)" in done.stdout
    assert all("of 5 prompts: p" in line for line in done.stderr.splitlines()), done.stderr


def run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "specrej", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--ray"], "auto"),
        (["--ray", "--actors", "2"], "auto"),
        (["--ray", "local"], "local"),
        (["--ray", "10.0.0.1:6379", "--actors", "2"], "10.0.0.1:6379"),
        (["--ray=10.0.0.1:6379"], "10.0.0.1:6379"),
    ],
)
def test_the_address_may_be_left_out(
    words: list[str], address: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def stand_in(_: Opening, **how: Any) -> Any:
        given.update(how)
        return lambda requests: iter(())

    monkeypatch.setattr(cluster, "ray_rows", stand_in)
    assert CliRunner().invoke(app, [*command, *words]).exit_code == 0
    assert given["address"] == address
    assert given["actors"] == (2 if "2" in words else 1)
    # What follows --ray is no address: here it is the input.
    given.clear()
    assert CliRunner().invoke(app, ["batch", "--ray", *command[1:]]).exit_code == 0
    assert given["address"] == "auto"


def test_actors_are_of_a_cluster(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--actors", "2"])
    assert result.exit_code == 2
    assert "there is no --ray" in result.stderr


def test_nobody_answers(command: list[str]) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"  # nobody listens
        with pytest.raises(UsageError, match=f"no Ray cluster answers at '{address}'"):
            list(ray_rows(opening(), address=address)(one()))
    with pytest.raises(UsageError, match="no Ray cluster answers at 'nonsense'"):
        list(ray_rows(opening(), address="nonsense")(one()))


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with pytest.raises(UsageError, match="no Ray cluster answers at 'elsewhere'"):
        list(ray_rows(opening(), address="auto")(one()))


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UsageError, match="Ray cannot be imported") as caught:
        list(ray_rows(opening())(one()))
    assert caught.value.hint == "pip install 'specrej[ray]'"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([{"CPU": 8.0}], "1 GPUs and 2 CPUs, no node has as many; there are: 0 and 8"),
        ([{"CPU": 8.0}, {"GPU": 1.0, "CPU": 1.0}], "there are: 0 and 8; 1 and 1"),
    ],
)
def test_no_node_holds_an_actor(
    nodes: list[dict[str, float]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    monkeypatch.setattr(
        "ray.nodes", lambda: [*alive, {"Alive": False, "Resources": {"GPU": 8.0, "CPU": 8.0}}]
    )
    with pytest.raises(UsageError, match=words):
        cluster._check_nodes(Fleet(1, 1, 2))
    monkeypatch.setattr(
        "ray.nodes", lambda: [*alive, {"Alive": True, "Resources": {"GPU": 1.0, "CPU": 2.0}}]
    )
    cluster._check_nodes(Fleet(1, 1, 2))


@pytest.mark.parametrize(
    ("model", "kind"), [("smollm3", UnknownNameError), (Path("no/such/model"), ModelError)]
)
def test_what_cannot_be_opened_is_sent_back(model: Any, kind: type[SpecrejError]) -> None:
    table = pytest.importorskip("pyarrow").table
    stage = cluster._Pickles(opening(model=model))
    (given,) = stage(table({"request": [pickle.dumps(one()[0])]}))
    error = pickle.loads(given["ended"][0].as_py())
    assert type(error) is kind
    assert str(model) in str(error)
