"""Runs a batch job on a Ray cluster: requests out to the actors of `specrej.batch.ray`, their rows
back to one writer.

    rows_of = ray_rows(ActorSetup(opening=Opening(model="smollm2")), actors=4, gpus_per_actor=1)
    for ended in run_batch(requests, rows_of, output):
        ...

Requests travel as they are, so a row is the one that `local_rows` gives. An actor opens its model
on its own node.
"""

import logging
import math
import os
import pickle
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from specrej.batch.job import FinishedRequest, RowsOf
from specrej.batch.ray import BATCHES, ActorSetup, Fleet, Worker, check_counts, map_on_actors
from specrej.batch.requests import Request
from specrej.errors import SpecrejError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_ANSWERS_S = 5.0
"""Ray itself waits for minutes for an address at which nobody answers."""

_ADDRESS_HINT = (
    "give HOST:PORT of the cluster's head, as `ray start --head` prints it, on a node of the "
    "cluster; or local"
)


def ray_rows(
    setup: ActorSetup,
    *,
    address: str | None = None,
    actors: int = 1,
    gpus_per_actor: float = 0,
    cpus_per_actor: float = 1,
) -> RowsOf:
    """What runs the requests of a batch job on the actors of a cluster; connected while its rows
    are asked for.

    Args:
        setup: what every actor opens.
        address: of the cluster's head, such as "10.0.0.1:6379", from one of its nodes; "local"
            starts a Ray of this process. By default the cluster that RAY_ADDRESS names, else one
            that runs on this machine, else "local".
        actors: see `specrej.ray.generate_dataset`.
        gpus_per_actor: see `specrej.ray.generate_dataset`.
        cpus_per_actor: see `specrej.ray.generate_dataset`.

    Raises:
        UsageError: an argument that cannot be honoured, no Ray is installed or answers, or no node
            holds an actor.
        SpecrejError: what was raised in an actor.
    """
    check_counts(actors=actors, in_flight=setup.in_flight)
    return partial(_run, setup, Fleet(actors, gpus_per_actor, cpus_per_actor), address)


def _run(
    setup: ActorSetup, fleet: Fleet, address: str | None, requests: Iterable[Request]
) -> Iterator[FinishedRequest]:
    import pyarrow as pa

    rows = [pickle.dumps(request) for request in requests]
    size = min(BATCHES * setup.in_flight, math.ceil(len(rows) / fleet.actors))
    with _connected(address):
        import ray.data

        _check_nodes(fleet)
        blocks = [pa.table({"request": rows[at : at + size]}) for at in range(0, len(rows), size)]
        rows.clear()
        ds = ray.data.from_arrow(blocks)
        ds.context.enable_progress_bars = False
        # A block a row: rows come as they end, not when their batch has.
        ds.context.target_max_block_size = 1
        fleet = fleet._replace(actors=min(fleet.actors, len(blocks)))
        for row in map_on_actors(ds, _Pickles, setup, fleet, size).iter_rows():
            ended = pickle.loads(row["ended"])
            if isinstance(ended, SpecrejError):
                raise ended
            yield ended


class _Pickles:
    """The stage of a batch job: requests in, `FinishedRequest` out, each as soon as those before
    it have ended.
    """

    def __init__(self, setup: ActorSetup) -> None:
        self._worker = Worker(setup)

    def __call__(self, batch: "pa.Table") -> Iterator["pa.Table"]:
        import pyarrow as pa

        requests = [pickle.loads(cell) for cell in batch["request"].to_pylist()]
        try:
            for ended in self._worker.run(requests):
                yield pa.table({"ended": [pickle.dumps(ended)]})
        except SpecrejError as error:
            yield pa.table({"ended": [pickle.dumps(error)]})


def _check_nodes(fleet: Fleet) -> None:
    """Ray waits for ever for a node that holds an actor."""
    import ray

    _, gpus, cpus = fleet
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus for node in nodes):
        have = "; ".join(f"{node.get('GPU', 0):g} and {node.get('CPU', 0):g}" for node in nodes)
        raise UsageError(
            f"an actor reserves {gpus:g} GPUs and {cpus:g} CPUs, no node has as many; there are: "
            f"{have}",
            hint="lower --gpus-per-actor or --cpus-per-actor, or start a node that has them",
        )


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connected to a cluster, with nothing on the terminal but what becomes of actors.

    Raises:
        UsageError: no Ray is installed, or none answers.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault(
        "RAY_NUM_REDIS_GET_RETRIES", "1"
    )  # of the connection; by itself Ray tries for minutes
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Ray cannot be imported: {error}", hint="pip install 'specrej[ray]'"
        ) from error
    address = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else address
    if address not in (None, "local"):
        _check_answers(address)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    stop = signal.getsignal(signal.SIGTERM)
    try:
        with _without_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"cannot connect to Ray: {error}", hint=_ADDRESS_HINT) from error
    signal.signal(signal.SIGTERM, stop)  # Ray has put its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}", hint=_ADDRESS_HINT
        ) from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's core begins with a line on how much it logs, whatever that is."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
