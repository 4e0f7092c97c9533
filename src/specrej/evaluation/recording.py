"""Best-of-N, recorded: the rewards of all candidates at checkpoints and at their end, with tokens
and hidden states.

    settings = Settings(n=64, max_new_tokens=128)
    lengths = (8, 16, 32, 64)
    for step in record(loaded, engine, reward, directory, settings=settings, checkpoints=lengths):
        print(step.num_done, step.num_tasks, step.error)

Speculative Rejection with alpha = 0 scores at the checkpoints and rejects nobody, so its candidates
are those of Best-of-N. One Parquet file a prompt, there as a whole or not at all; a prompt that
failed has a line in `failures.jsonl`. Of a conversation of several turns the first is recorded.
Each prompt has the seed that a bench with the same seed gives it (`Loaded.seeds`).
`trace` reads what is written here.
"""

import json
import os
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from specrej.api import run_one, unobserved
from specrej.engines.base import Engine
from specrej.errors import DeviceMemoryError, SpecrejError, UsageError
from specrej.evaluation.bench import describe_run
from specrej.evaluation.folder import open_run
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.trace import FAILURES, METADATA, failure_row
from specrej.files.journal import Journal
from specrej.rewards.base import Reward
from specrej.search.search import Search
from specrej.settings import Settings
from specrej.types import Candidate, Cause, Result

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class RecordedPrompt(NamedTuple):
    """One prompt that was recorded, or that failed."""

    num_done: int
    """Prompts that are done, those of earlier runs included."""
    num_tasks: int
    prompt_id: str
    error: SpecrejError | None


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
        resume: go on with the run that the directory holds, of these prompts or the first of them.

    Raises:
        UsageError: checkpoints that are no lengths; a directory that holds something else, or
            cannot be written.
    """
    directory, lengths = Path(directory), lengths_of(checkpoints)
    words = ",".join(map(str, lengths))
    settings = replace(
        settings, algorithm="speculative_rejection", alpha=0.0, keep=None, decide=f"at:{words}"
    )
    info = describe_run("trace", loaded, engine, reward, settings, [f"best_of_n:{settings.n}"])
    with (
        open_run(directory, info, resume=resume, sha256_of_first=loaded.sha256_of_first),
        Journal(directory / FAILURES) as journal,
    ):
        failed = {row["prompt_id"] for row in journal.rows}
        seeds = loaded.seeds(settings.seed)
        paths = [directory / f"{number:05d}.parquet" for number in range(len(loaded.tasks))]
        left = [
            (p, t)
            for p, t in zip(paths, loaded.tasks, strict=True)
            if t.id not in failed and not p.exists()
        ]
        for num_done, (path, task) in enumerate(left, len(paths) - len(left) + 1):
            own = replace(settings, seed=seeds[task.id])
            error = _record(path, task, engine, reward, own, lengths)
            if error is not None:
                journal.append(failure_row(task.id, own.seed, error))
            yield RecordedPrompt(num_done, len(paths), task.id, error)


def _record(
    path: Path,
    task: Task,
    engine: Engine,
    reward: Reward,
    settings: Settings,
    lengths: Sequence[int],
) -> SpecrejError | None:
    """Write the trace of a prompt, or say why there is none."""
    states = _HiddenStates(engine, lengths) if engine.has_hidden_states else None
    try:
        result = _run(engine, reward, task, settings, states)
    except SpecrejError as error:
        return error
    write_table(path, _table(task, result, lengths, states, engine, reward))
    return None


def lengths_of(checkpoints: Sequence[int]) -> tuple[int, ...]:
    """Checkpoints in order, each once.

    Raises:
        UsageError: there are none, or one is no length.
    """
    lengths = tuple(sorted(set(checkpoints)))
    if not lengths or lengths[0] < 1:
        raise UsageError(
            f"checkpoints must be lengths of at least one token, got {list(checkpoints)}"
        )
    return lengths


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
        raise lost({decision.cause for decision in result.decisions if decision.rejected})
    return result


def lost(causes: Collection[Cause]) -> DeviceMemoryError:
    """That candidates are missing, so that there is no trace."""
    return DeviceMemoryError(
        f"candidates were lost ({', '.join(sorted(causes))}): a trace needs all of them",
        hint="give less memory if the device ran out of it; record without a filter",
    )


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
    columns = {
        "token_ids": pa.array([c.token_ids for c in candidates], pa.list_(pa.int32())),
        "logprobs": pa.array([c.logprobs for c in candidates], pa.list_(pa.float64())),
        "text": pa.array([c.text for c in candidates], pa.string()),
        "finish_reason": pa.array([c.finish_reason for c in candidates], pa.string()),
        **reward_columns(candidates, scored_at, checkpoints),
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
    about = _about(task, result, checkpoints, engine, reward)
    return pa.table(columns).replace_schema_metadata({METADATA: json.dumps(about)})


def reward_columns(
    candidates: Sequence[Candidate], scored_at: Sequence[int], checkpoints: Sequence[int]
) -> dict[str, pa.Array]:
    """The rewards of complete candidates at the checkpoints, and at their end.

    Args:
        candidates: with their rewards by decision.
        scored_at: length at each decision, in tokens.
        checkpoints: rising.
    """
    rewards = []
    for candidate in candidates:
        by_length = {scored_at[number]: reward for number, reward in candidate.rewards.items()}
        end = len(candidate.token_ids)
        rewards.append(
            [by_length[point] if end > point else candidate.reward for point in checkpoints]
        )
    return {
        "rewards": _fixed(np.array(rewards)),
        "final_reward": pa.array([candidate.reward for candidate in candidates], pa.float64()),
    }


def _about(
    task: Task, result: Result, checkpoints: Sequence[int], engine: Engine, reward: Reward
) -> dict[str, Any]:
    """What a trace says of the whole prompt, in JSON's types."""
    return {
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


def _fixed(values: NDArray[Any]) -> pa.Array:
    """An array `[rows, ...]` as one list of fixed length a row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    path = Path(path)
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
