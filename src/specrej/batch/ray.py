"""Many prompts on many machines, through Ray Data (the extra `ray`): a pool of actors, each with an
engine of its own.

    ds = ray.data.read_json("prompts.jsonl", lines=True)                         # a column `prompt`
    ds = generate_dataset(ds, model="smollm2", actors=4, gpus_per_actor=1, memory="2GiB", seed=1)
    ds.write_parquet("answers")  # with text, reward, answers, ...

`specrej.batch.cluster` runs batch jobs on such actors. Which of them runs a prompt, and what runs
beside it, changes no result. Where actors run, what becomes of one that dies (it is started anew,
and its batch is run again) and how much is read ahead is Ray's: nothing of it is done here.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from specrej.api import IN_FLIGHT, open_pool
from specrej.arguments import RunOptions, read_options
from specrej.errors import SpecrejError, UsageError
from specrej.opening import Opening
from specrej.settings import Settings
from specrej.threads import settle_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from specrej.batch.job import FinishedRequest
    from specrej.batch.requests import Request

BATCHES = 4
"""A batch holds so many times the prompts in flight: towards its end an engine idles, and all of
it is run again when its actor dies."""


@dataclass(frozen=True, kw_only=True)
class ActorSetup:
    """What every actor opens, on its own node, and what its prompts have in common.

    Attributes:
        opening: model, engine and reward.
        settings: those of the prompts.
        total_memory: KV of all prompts in flight in one actor.
        in_flight: most prompts side by side in one actor.
    """

    opening: Opening = field(default_factory=Opening)
    settings: Settings = field(default_factory=Settings)
    total_memory: str | int | None = None
    in_flight: int = IN_FLIGHT


class Fleet(NamedTuple):
    """How many actors there are, and what each reserves."""

    actors: int
    gpus: float
    cpus: float


def generate_dataset(
    ds: "Dataset",
    *,
    settings: Settings | None = None,
    total_memory: str | int | None = None,
    in_flight: int = IN_FLIGHT,
    prompt_column: str = "prompt",
    num_kept: int = 1,
    actors: int = 1,
    gpus_per_actor: float = 0,
    cpus_per_actor: float = 1,
    batch_size: int | None = None,
    **options: Unpack[RunOptions],
) -> "Dataset":
    """The dataset with the answer to each row's prompt, made as the dataset is consumed.

    Every row keeps its columns and gets those of a row of `specrej batch`: `text`, `reward`,
    `answers`, `lowest`, `usage`, `num_candidates`, `num_decisions`, `seed`, `memory_bytes`,
    `votes` (a map) and `error`. A prompt that fails is a row with an error, and null in the others.
    The order of rows is Ray Data's.

    Args:
        ds: its prompts are texts, or lists of `{"role", "content"}`. An actor takes whole blocks:
            cut large ones by `ds.repartition(target_num_rows_per_block=64)` to share them out among
            actors.
        settings: see `specrej.generate`.
        total_memory: KV of all prompts in flight in one actor; see `specrej.generate_batch`. To be
            given where actors share a GPU, with the option `memory`: by default each takes most of
            what is free.
        in_flight: most prompts side by side in one actor.
        prompt_column: where the prompts are.
        num_kept: best answers in `answers`; above 1, `lowest` is the answer of the lowest reward.
        actors: engines.
        gpus_per_actor: GPUs that each reserves; may be a part of one.
        cpus_per_actor: CPUs that each reserves, which is how many threads it computes with. Reading
            a file through Ray needs a CPU that no actor has reserved: without one Ray waits, and
                says nothing.
        batch_size: prompts that an actor takes at a time, and runs again when it dies; by default
            four times in_flight.
        options: see `specrej.generate`; the same for all prompts. Every actor opens the model on
            its own node, by default on its first GPU, on a CPU without one; an engine must be one
            that pickles. The module of "module:function" must be importable where the actors run:
            by PYTHONPATH, or `ray.init(runtime_env={"working_dir": "."})`.

    Raises:
        UsageError: an argument that cannot be honoured, or columns that are missing or there
            already.
    """
    size = BATCHES * in_flight if batch_size is None else batch_size
    opening, asked = read_options(options, settings)
    setup = ActorSetup(
        opening=opening, settings=asked, total_memory=total_memory, in_flight=in_flight
    )
    check_counts(actors=actors, in_flight=in_flight, num_kept=num_kept, batch_size=size)
    _check_columns(ds.columns() or [prompt_column], prompt_column)
    fleet = Fleet(actors, gpus_per_actor, cpus_per_actor)
    return map_on_actors(ds, _Columns, setup, fleet, size, prompt_column, num_kept)


def map_on_actors(
    ds: "Dataset", stage: type, setup: ActorSetup, fleet: Fleet, batch_size: int, *more: Any
) -> "Dataset":
    """The dataset, with its batches run by a stage that is made of the setup and more."""
    from ray.data import ActorPoolStrategy

    setup = replace(setup, opening=_on_actors(setup.opening, fleet.gpus))
    return ds.map_batches(
        stage,
        fn_constructor_args=(setup, *more),
        # Batches take long: one that waits behind another may be run by the next actor that is
        # free.
        compute=ActorPoolStrategy(size=fleet.actors, max_tasks_in_flight_per_actor=1),
        num_gpus=fleet.gpus,
        num_cpus=fleet.cpus,
        batch_size=batch_size,
        batch_format="pyarrow",
    )


class Worker:
    """What an actor holds: engine, reward and memory, opened once.

    What cannot be opened is said when there is work: an actor that fails to begin is reported by
        Ray at length.
    """

    def __init__(self, setup: ActorSetup) -> None:
        settle_threads()  # a node's Ray may not have the environment of the one that asks
        self._failure: SpecrejError | None = None
        try:
            self._open(setup)
        except SpecrejError as error:
            self._failure = error

    def _open(self, setup: ActorSetup) -> None:
        from specrej.batch.job import local_rows

        engine, reward = setup.opening.open([setup.settings])
        weakref.finalize(
            self, setup.opening.close, engine, reward
        )  # of an actor that ends by itself; nobody tells it
        pool = open_pool(engine, setup.settings, setup.total_memory)
        self._rows_of = local_rows(engine, reward, pool, setup.in_flight)

    def run(self, requests: Sequence["Request"]) -> Iterator["FinishedRequest"]:
        """One for each request, in their order.

        What was given before an actor died is not taken from the next one: so the order must be the
        same both times.
        """
        from specrej.batch.rows import row_id

        if self._failure is not None:
            raise self._failure
        running = self._rows_of(requests)
        waiting: dict[str, FinishedRequest] = {}
        for request in requests:
            while request.id not in waiting:
                ended = next(running)
                waiting[row_id(ended.row)] = ended
            yield waiting.pop(request.id)


class _Columns:
    """The stage of a dataset: a column of prompts in, the columns of their answers out."""

    def __init__(self, setup: ActorSetup, prompt_column: str, num_kept: int) -> None:
        self._worker = Worker(setup)
        self._settings = setup.settings
        self._prompt_column = prompt_column
        self._num_kept = num_kept

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        from specrej.batch.requests import Request

        requests = [
            Request(
                id=str(number),
                prompt=prompt,
                settings=self._settings,
                num_kept=self._num_kept,
                line=number + 1,
                form="plain",
            )
            for number, prompt in enumerate(batch[self._prompt_column].to_pylist())
        ]
        rows = [ended.row for ended in self._worker.run(requests)]
        for name, kind in _column_types().items():
            batch = batch.append_column(name, pa.array([row.get(name) for row in rows], kind))
        return batch


def _column_types() -> dict[str, "pa.DataType"]:
    """What `generate_dataset` adds; the same in every block, whatever is null in it."""
    import pyarrow as pa

    answer = pa.struct(
        {
            "text": pa.string(),
            "reward": pa.float64(),
            "num_tokens": pa.int64(),
            "finish_reason": pa.string(),
            "index": pa.int64(),
        }
    )
    usage = pa.struct(
        {
            **dict.fromkeys(
                ("prompt_tokens", "shared_prompt_tokens", "generated_tokens", "reward_tokens"),
                pa.int64(),
            ),
            **dict.fromkeys(
                ("prefill_s", "decode_s", "reward_s", "other_s", "total_s"), pa.float64()
            ),
            **dict.fromkeys(("peak_kv_bytes", "num_steps", "reward_kv_bytes"), pa.int64()),
            **dict.fromkeys(("unused_tokens", "reread_tokens", "num_preemptions"), pa.int64()),
            "reward_reuse": pa.string(),
            "reward_comparisons": pa.int64(),
        }
    )
    return {
        "text": pa.string(),
        "reward": pa.float64(),
        "answers": pa.list_(answer),
        "lowest": answer,
        "usage": usage,
        "num_candidates": pa.int64(),
        "num_decisions": pa.int64(),
        "seed": pa.uint64(),
        "memory_bytes": pa.int64(),
        "votes": pa.map_(pa.string(), pa.float64()),  # a struct would have every answer of a block
        "error": pa.struct(dict.fromkeys(("kind", "message", "hint"), pa.string())),
    }


def check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} must be at least 1, got {count}")


def _check_columns(there: Sequence[str], prompt_column: str) -> None:
    if prompt_column not in there:
        raise UsageError(
            f"the dataset has no column {prompt_column!r}", hint=f"it has: {', '.join(there)}"
        )
    if taken := sorted(_column_types().keys() & set(there)):
        raise UsageError(
            f"the dataset has columns {', '.join(taken)} already",
            hint="rename them by ds.rename_columns",
        )


def _on_actors(opening: Opening, gpus_per_actor: float) -> Opening:
    """What actors open. One without a GPU may see those of others; engines but ours find their
    device themselves.
    """
    is_ours = opening.engine == "torch" and isinstance(opening.model, str | Path)
    return (
        replace(opening, device="cpu")
        if is_ours and opening.device is None and not gpus_per_actor
        else opening
    )
