"""Prompts on the actors of a real Ray of this machine, two cores of it."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine
from jobs import without_seconds
from specrej.api import open_pool
from specrej.batch.job import local_rows
from specrej.batch.ray import ActorSetup, Worker, generate_dataset
from specrej.batch.requests import Request
from specrej.errors import UsageError
from specrej.opening import Opening
from specrej.rewards import as_reward
from specrej.settings import Settings

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray"
)  # Ray Data reads its own old options

OPTIONS: Any = {"memory": "3KiB", "max_new_tokens": 24, "min_tokens": 6, "seed": 5}
SETTINGS = Settings(**OPTIONS)
PROMPTS: list[Any] = [*(f"Question {number}?" for number in range(20)), "", "x" * 500]

Score = Callable[[str, list[str]], list[float]]


@contextmanager
def local_ray(**how: Any) -> Iterator[None]:
    """A Ray of this process; its files and processes are gone at the end, and so is what it
    changes here."""
    directory = tempfile.mkdtemp(prefix="ray-")  # short: sockets are made in it
    before = signal.getsignal(signal.SIGTERM)
    sources = Path(__file__).parents[2] / "src"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(sources), str(Path(__file__).parents[1])]))
        patch.setenv("RAY_TMPDIR", directory)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # leaves a token in the home directory
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("OMP_WAIT_POLICY", raising=False)  # actors are to set it themselves
        patch.delenv("GOMP_SPINCOUNT", raising=False)
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)
            shutil.rmtree(directory)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with local_ray():
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield


def make_reward(marker: Path | None = None, fatal: str = "") -> Score:
    """Scores by length; the first actor that comes to the prompt `fatal` leaves the marker and
    dies."""

    def score(prompt: str, texts: list[str]) -> list[float]:
        import os
        import signal

        if marker is not None and prompt == fatal and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [float(len(text)) for text in texts]

    return score


def expected(prompts: list[Any] = PROMPTS, num_kept: int = 1) -> list[dict[str, Any]]:
    """The rows of the same prompts on one engine of this process."""
    engine = FakeEngine()
    requests = [
        Request(
            id=f"{number:02}",
            prompt=prompt,
            settings=SETTINGS,
            num_kept=num_kept,
            line=number,
            form="plain",
        )
        for number, prompt in enumerate(prompts)
    ]
    rows_of = local_rows(engine, as_reward(make_reward()), open_pool(engine, SETTINGS, "8KiB"), 3)
    return [ended.row for ended in rows_of(requests)]


def given(prompts: list[Any] = PROMPTS, name: str = "prompt") -> Any:
    return ray.data.from_items(
        [{"id": f"{number:02}", name: prompt} for number, prompt in enumerate(prompts)]
    )


def answered(ds: Any, **how: Any) -> list[dict[str, Any]]:
    done = generate_dataset(
        ds,
        **{
            "model": FakeEngine(),
            "reward": make_reward(),
            "in_flight": 2,
            "total_memory": "8KiB",
            **OPTIONS,
            **how,
        },
    )
    return list(done.take_all())


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a dataset's row and a job's row differ in: null in the one, absent in the
    other."""
    kept = [
        {key: value for key, value in row.items() if value is not None and key != "line"}
        for row in rows
    ]
    for row in kept:
        row["answers"] = row.get("answers") or []
    return [json.loads(line) for line in without_seconds(kept)]


@pytest.mark.parametrize("actors", [1, 2])
def test_results_do_not_depend_on_the_number_of_actors(actors: int) -> None:
    rows = answered(given(), actors=actors)
    assert comparable(rows) == comparable(expected())
    assert [row["id"] for row in rows if row["error"]] == ["20", "21"]


def test_an_actor_that_dies_loses_and_doubles_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    rows = answered(given(), actors=2, reward=make_reward(marker, fatal="Question 9?"))
    assert marker.exists()
    assert comparable(rows) == comparable(expected())


def test_conversations_and_kept_answers() -> None:
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:4]]
    rows = answered(given(conversations, "asked"), prompt_column="asked", num_kept=3)
    for row in rows:
        row["messages"] = row.pop("asked")
    assert comparable(rows) == comparable(expected(conversations, num_kept=3))
    assert all(row["lowest"] and len(row["answers"]) > 1 for row in rows)


def test_votes_are_a_column_of_maps() -> None:
    voting: Any = {"algorithm": "majority_vote", "n": 4, "extract": "text"}
    [row, failed] = answered(given(["Question 0?", ""]), **voting)
    votes = dict(row["votes"])
    assert sum(votes.values()) == 4
    assert row["text"] in votes
    assert failed["votes"] is None


def test_threads_of_an_actor_are_told_how_to_wait_before_torch_is_there(tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    def read(prompt: str, texts: list[str]) -> list[float]:
        import os
        import sys

        seen.write_text(f"{os.environ.get('GOMP_SPINCOUNT')} {'torch' in sys.modules}")
        return [0.0 for _ in texts]

    answered(given(PROMPTS[:1]), reward=read)
    assert seen.read_text() == "1000 False"


def test_columns_are_the_same_whatever_is_null_in_them() -> None:
    failed = generate_dataset(
        given([""]), model=FakeEngine(), reward=make_reward(), **OPTIONS
    ).schema()
    fine = generate_dataset(
        given(["a"]), model=FakeEngine(), reward=make_reward(), num_kept=2, **OPTIONS
    ).schema()
    assert failed.base_schema.equals(fine.base_schema)


def test_columns_that_are_missing_or_there() -> None:
    with pytest.raises(UsageError, match="no column 'question'"):
        generate_dataset(given(), prompt_column="question")
    with pytest.raises(UsageError, match="has columns text already"):
        generate_dataset(given(name="text"), prompt_column="text")


def test_a_model_that_cannot_be_opened_stops_the_job() -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="smollm3"):
        answered(given(PROMPTS[:2]), model="smollm3")


@pytest.mark.parametrize("wrong", ["actors", "in_flight", "num_kept", "batch_size"])
def test_counts(wrong: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong} must be at least 1, got 0"):
        answered(given(), **{wrong: 0})


def test_a_worker_gives_rows_in_the_order_of_its_requests() -> None:
    requests = [
        Request(
            id=str(number), prompt=prompt, settings=SETTINGS, num_kept=1, line=number, form="plain"
        )
        for number, prompt in enumerate(PROMPTS)
    ]
    worker = Worker(
        ActorSetup(
            opening=Opening(model=FakeEngine(), reward=make_reward()),
            settings=SETTINGS,
            total_memory="8KiB",
        )
    )
    assert [ended.row["id"] for ended in worker.run(requests)] == [
        request.id for request in requests
    ]
