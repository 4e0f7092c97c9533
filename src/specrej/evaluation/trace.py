"""Best-of-N, recorded: the rewards of all candidates at checkpoints and at their end, with tokens
and hidden states.

    settings = Settings(n=64, max_new_tokens=128)
    lengths = (8, 16, 32, 64)
    for step in record(loaded, engine, reward, directory, settings=settings, checkpoints=lengths):
        print(step.num_done, step.num_tasks, step.error)
    for trace in load(directory):
        trace.rewards                   # [candidates, checkpoints]
        trace.hidden_states()           # [candidates, checkpoints, hidden], read when asked for

Speculative Rejection with alpha = 0 scores at the checkpoints and rejects nobody, so its candidates
are those of Best-of-N. One Parquet file a prompt, there as a whole or not at all; a prompt that
failed has a line in `failures.jsonl`. Of a conversation of several turns the first is recorded.
"""

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from specrej.api import run_one, unobserved
from specrej.attention.layout import KvLayout
from specrej.engines.base import Engine
from specrej.errors import DeviceMemoryError, SpecrejError, UsageError
from specrej.evaluation.bench import describe_run
from specrej.evaluation.folder import claim, read_info
from specrej.evaluation.prompts import Loaded, Task
from specrej.flops import ModelFlops
from specrej.journal import Journal, read_rows
from specrej.resuming import completed
from specrej.rewards.base import Reward
from specrej.search.search import Search
from specrej.settings import Settings
from specrej.types import Result

FAILURES = "failures.jsonl"
_METADATA = b"specrej"
_STATES = ("hidden_states", "final_hidden_states")
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class RecordedPrompt(NamedTuple):
    """One prompt that was recorded, or that failed."""

    num_done: int
    """Prompts that are done, those of earlier runs included."""
    num_tasks: int
    prompt_id: str
    error: SpecrejError | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The candidates of one prompt. Candidates that ended by a checkpoint have their final reward
    there.

    Attributes:
        prompt_id: the task's.
        messages: the prompt.
        num_prompt_tokens: tokens of the prompt.
        checkpoints: lengths at which live candidates were scored, in tokens, rising.
        memory_bytes: the KV budget of the recorded run.
        layout: how KV grows in the engine that ran.
        flops: what prefilling and decoding cost it; None where it does not know.
        reward_flops_per_token: what the reward says that reading a token costs it; None where it
            does not.
        settings: of the recorded run, seed and sampling included; one that was added since has its
            default.
        usage: see `specrej.types.Usage`.
        lengths: `[n]` tokens of each candidate.
        rewards: `[n, checkpoints]` float64.
        final_rewards: `[n]` float64.
        finish_reasons: "eos", "stop" or "length" of each candidate.
        texts: the answers.
        token_ids: one array a candidate.
        logprobs: one array a candidate, nats.
        path: the file it came from.
    """

    prompt_id: str
    messages: list[dict[str, str]]
    num_prompt_tokens: int
    checkpoints: tuple[int, ...]
    memory_bytes: int
    layout: KvLayout
    flops: ModelFlops | None
    reward_flops_per_token: float | None
    settings: Mapping[str, Any]
    usage: Mapping[str, Any]
    lengths: NDArray[np.int64]
    rewards: NDArray[np.float64]
    final_rewards: NDArray[np.float64]
    finish_reasons: tuple[str, ...]
    texts: tuple[str, ...]
    token_ids: list[NDArray[np.int32]]
    logprobs: list[NDArray[np.float64]]
    path: Path

    @property
    def num_candidates(self) -> int:
        return len(self.lengths)

    @property
    def max_new_tokens(self) -> int:
        """Length limit of an answer."""
        return int(self.settings["max_new_tokens"])

    def hidden_states(self) -> NDArray[np.float16]:
        """`[n, checkpoints, hidden]`: what the token at each checkpoint was drawn from, or the
        last token before it.
        """
        return self._states("hidden_states").reshape(self.num_candidates, len(self.checkpoints), -1)

    def final_hidden_states(self) -> NDArray[np.float16]:
        """`[n, hidden]`: what each candidate's last token was drawn from."""
        return self._states("final_hidden_states").reshape(self.num_candidates, -1)

    def _states(self, column: str) -> NDArray[np.float16]:
        table = _read(self.path, [column])
        if column not in table.column_names:
            raise UsageError(
                f"{self.path} has no hidden states: the engine that recorded it gives none",
                hint="record with --engine torch",
            )
        values = table[column].combine_chunks().flatten()
        states: NDArray[np.float16] = values.to_numpy(zero_copy_only=False)
        return states


def record(
    loaded: Loaded,
    engine: Engine,
    reward: Reward,
    directory: str | Path,
    *,
    settings: Settings,
    checkpoints: Sequence[int],
    resume: bool = False,
) -> Generator[RecordedPrompt, None, None]:
    """Record every prompt that the directory does not hold yet; yield when it is on the disk.

    Args:
        loaded: the prompts.
        engine: decodes.
        reward: scores.
        directory: gets run.json, a Parquet file for each prompt, and failures.jsonl.
        settings: n, memory and sampling; algorithm, alpha, keep and decide are set here.
        checkpoints: lengths to score at, in tokens.
        resume: go on with the run that the directory holds.

    Raises:
        UsageError: checkpoints that are no lengths; a directory that holds something else, or
            cannot be written.
    """
    directory, lengths = Path(directory), tuple(sorted(set(checkpoints)))
    if not lengths or lengths[0] < 1:
        raise UsageError(
            f"checkpoints must be lengths of at least one token, got {list(checkpoints)}"
        )
    words = ",".join(map(str, lengths))
    settings = replace(
        settings, algorithm="speculative_rejection", alpha=0.0, keep=None, decide=f"at:{words}"
    )
    info = describe_run("trace", loaded, engine, reward, settings, [f"best_of_n:{settings.n}"])
    with claim(directory, info, resume=resume), Journal(directory / FAILURES) as journal:
        failed = {row["prompt_id"] for row in journal.rows}
        paths = [directory / f"{number:05d}.parquet" for number in range(len(loaded.tasks))]
        left = [
            (p, t)
            for p, t in zip(paths, loaded.tasks, strict=True)
            if t.id not in failed and not p.exists()
        ]
        for num_done, (path, task) in enumerate(left, len(paths) - len(left) + 1):
            states = _HiddenStates(engine, lengths) if engine.has_hidden_states else None
            error = None
            try:
                result = _run(engine, reward, task, settings, states)
            except SpecrejError as raised:
                error = raised
                journal.append(
                    {"prompt_id": task.id, "kind": type(error).__name__, "message": str(error)}
                )
            else:
                _write(path, _table(task, result, lengths, states, engine, reward))
            yield RecordedPrompt(num_done, len(paths), task.id, error)


def load(directory: str | Path) -> Iterator[Trace]:
    """The traces of a folder, in the order of the prompts.

    Raises:
        UsageError: it is no folder of traces, there are none, or a file is no trace.
    """
    if (kind := read_info(directory)["kind"]) != "trace":
        raise UsageError(
            f"{directory} holds a {kind}, not traces", hint="record some with `specrej trace`"
        )
    paths = sorted(Path(directory).glob("*.parquet"))
    if not paths:
        raise UsageError(
            f"{directory} holds no trace yet", hint="go on with `specrej trace --resume`"
        )
    for path in paths:
        yield _load(path)


def load_failures(directory: str | Path) -> list[dict[str, Any]]:
    """Prompts that have no trace, as they failed: `prompt_id`, `kind` and `message` of the
    error.
    """
    return read_rows(Path(directory) / FAILURES)


class _HiddenStates:
    """Takes hidden states on the way: of candidates at a checkpoint, and of those that end."""

    def __init__(self, engine: Engine, checkpoints: Sequence[int]) -> None:
        self._engine = engine
        self._checkpoints = checkpoints
        self._taken: dict[tuple[int, int], NDArray[np.float16]] = {}

    def __call__(self, search: Search) -> None:
        standing = [
            (candidate.index, length)
            for candidate in search.batch
            if (length := len(candidate.token_ids)) in self._checkpoints or candidate.finish_reason
        ]
        wanted = [place for place in standing if place not in self._taken]
        if wanted:
            states = self._engine.hidden_states(search.handle)
            for index, length in wanted:
                # Beyond the range of half precision the sign is what can be kept.
                state = np.clip(states[index], -_FLOAT16_MAX, _FLOAT16_MAX)
                self._taken[index, length] = state.astype(np.float16)

    def of(self, index: int, length: int) -> NDArray[np.float16]:
        """The state that a candidate's token number `length` was drawn from."""
        return self._taken[index, length]


def _run(
    engine: Engine, reward: Reward, task: Task, settings: Settings, states: _HiddenStates | None
) -> Result:
    result = run_one(engine, reward, task.turns[0], settings, watch=states or unobserved)
    if any(candidate.state == "rejected" for candidate in result.candidates):
        causes = {decision.cause for decision in result.decisions if decision.rejected}
        raise DeviceMemoryError(
            f"candidates were lost ({', '.join(sorted(causes))}): a trace needs all of them",
            hint="give less memory if the device ran out of it; record without a filter",
        )
    return result


def _table(
    task: Task,
    result: Result,
    checkpoints: Sequence[int],
    states: _HiddenStates | None,
    engine: Engine,
    reward: Reward,
) -> pa.Table:
    candidates = result.candidates
    scored_at = [decision.num_tokens for decision in result.decisions]
    ends = [len(candidate.token_ids) for candidate in candidates]
    by_length = [{scored_at[d]: reward for d, reward in c.rewards.items()} for c in candidates]
    rewards = [
        [by_length[c.index][point] if end > point else c.reward for point in checkpoints]
        for c, end in zip(candidates, ends, strict=True)
    ]
    columns = {
        "token_ids": pa.array([c.token_ids for c in candidates], pa.list_(pa.int32())),
        "logprobs": pa.array([c.logprobs for c in candidates], pa.list_(pa.float64())),
        "text": pa.array([c.text for c in candidates], pa.string()),
        "finish_reason": pa.array([c.finish_reason for c in candidates], pa.string()),
        "rewards": _fixed(np.array(rewards)),
        "final_reward": pa.array([c.reward for c in candidates], pa.float64()),
    }
    if states is not None:
        finals = [states.of(index, end) for index, end in enumerate(ends)]
        middles = [
            [states.of(index, min(end, point)) for point in checkpoints]
            for index, end in enumerate(ends)
        ]
        columns |= {
            "hidden_states": _fixed(np.array(middles)),
            "final_hidden_states": _fixed(np.array(finals)),
        }
    about = {
        "prompt_id": task.id,
        "messages": task.turns[0],
        "num_prompt_tokens": result.usage.prompt_tokens,
        "checkpoints": checkpoints,
        "memory_bytes": result.settings["memory_bytes"],
        "layout": engine.layout._asdict(),
        "flops": None if engine.flops is None else engine.flops.to_dict(),
        "reward_flops_per_token": reward.flops_per_token,
        "settings": dict(result.settings),
        "usage": result.usage.to_dict(),
    }
    return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about)})


def _fixed(values: NDArray[Any]) -> pa.Array:
    """An array `[rows, ...]` as one list of fixed length a row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)


def _load(path: Path) -> Trace:
    table = _read(path, None)
    about = json.loads(table.schema.metadata[_METADATA])
    token_ids = [np.array(ids, dtype=np.int32) for ids in table["token_ids"].to_pylist()]
    num_rows = len(token_ids)
    return Trace(
        prompt_id=about["prompt_id"],
        messages=about["messages"],
        num_prompt_tokens=about["num_prompt_tokens"],
        checkpoints=tuple(about["checkpoints"]),
        memory_bytes=about["memory_bytes"],
        layout=KvLayout(**about["layout"]),
        flops=about["flops"] and ModelFlops.from_dict(about["flops"]),
        reward_flops_per_token=about["reward_flops_per_token"],
        settings=completed(about["settings"]),
        usage=about["usage"],
        lengths=np.array([len(ids) for ids in token_ids]),
        rewards=np.array(table["rewards"].to_pylist(), dtype=np.float64).reshape(num_rows, -1),
        final_rewards=table["final_reward"].to_numpy(),
        finish_reasons=tuple(table["finish_reason"].to_pylist()),
        texts=tuple(table["text"].to_pylist()),
        token_ids=token_ids,
        logprobs=[np.array(values, dtype=np.float64) for values in table["logprobs"].to_pylist()],
        path=path,
    )


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    """Columns of a trace; None is all but the hidden states."""
    try:
        with pq.ParquetFile(path) as file:
            names = columns or [name for name in file.schema_arrow.names if name not in _STATES]
            table = file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as a trace: {error}",
            hint="remove the file and record it again with --resume",
        ) from error
    if _METADATA not in (table.schema.metadata or {}):
        raise UsageError(
            f"{path} is a Parquet file, but no trace",
            hint="give a folder that `specrej trace` wrote",
        )
    return table


def _write(path: Path, table: pa.Table) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="the prompts before it are whole: make room, and go on with --resume",
        ) from error
