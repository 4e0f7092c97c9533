"""The rewards of Best-of-N's candidates at checkpoints and at their end, as they were recorded.

    for trace in load(directory):
        trace.rewards                   # [candidates, checkpoints]
        trace.hidden_states()           # [candidates, checkpoints, hidden], read when asked for

`recording` writes them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from specrej.attention.layout import KvLayout
from specrej.errors import SpecrejError, UsageError
from specrej.evaluation.folder import read_info
from specrej.files.journal import read_rows
from specrej.files.resuming import completed
from specrej.flops import ModelFlops
from specrej.types import Prompt

FAILURES = "failures.jsonl"
METADATA = b"specrej"
_STATES = ("hidden_states", "final_hidden_states")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The candidates of one prompt. Candidates that ended by a checkpoint have their final reward
    there.

    Attributes:
        prompt_id: the task's.
        messages: the prompt as it was given: a text or a conversation.
        num_prompt_tokens: tokens of the prompt.
        checkpoints: lengths at which live candidates were scored, in tokens, rising.
        memory_bytes: the KV budget of the recorded run.
        layout: how KV grows in the engine that ran.
        flops: what prefilling and decoding cost it; None where it does not know.
        reward_flops_per_token: what the reward says that reading a token costs it; None where it
            does not.
        settings: of the recorded run, sampling included, with the seed of this prompt; one that was
            added since has its default.
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
    messages: Prompt
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
        table = read_table(self.path, [column])
        if column not in table.column_names:
            raise UsageError(
                f"{self.path} has no hidden states: the engine that recorded it gives none",
                hint="record with --engine torch",
            )
        values = table[column].combine_chunks().flatten()
        states: NDArray[np.float16] = values.to_numpy(zero_copy_only=False)
        return states


def load(directory: str | Path) -> Iterator[Trace]:
    """The traces of a folder, in the order of the prompts.

    Raises:
        UsageError: it is no folder of traces, there are none, or a file is no trace.
    """
    for path in trace_files(directory):
        yield load_file(path)


def trace_files(directory: str | Path) -> list[Path]:
    """The files of a folder's traces, in the order of the prompts.

    Raises:
        UsageError: it is no folder of traces, or there are none.
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
    return paths


def failure_row(prompt_id: str, seed: int, error: SpecrejError) -> dict[str, Any]:
    """A prompt that has no trace, as `load_failures` gives it."""
    kind, message = type(error).__name__, str(error)
    return {"prompt_id": prompt_id, "seed": seed, "kind": kind, "message": message}


def load_failures(directory: str | Path) -> list[dict[str, Any]]:
    """Prompts that have no trace, as they failed: `prompt_id`, `seed` (older folders lack it),
    `kind` and `message` of the error.
    """
    return read_rows(Path(directory) / FAILURES)


def load_file(path: str | Path) -> Trace:
    """The trace of one prompt.

    Raises:
        UsageError: the file is no trace.
    """
    path = Path(path)
    table = read_table(path, without=_STATES)
    about = json.loads(table.schema.metadata[METADATA])
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


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, *, without: Sequence[str] = ()
) -> pa.Table:
    """A trace as its file has it.

    Args:
        path: the file.
        columns: those that are wanted, where the file has them; None is all.
        without: columns that are left out.

    Raises:
        UsageError: the file is no trace.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = columns or file.schema_arrow.names
            table = file.read(columns=[name for name in names if name not in without])
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as a trace: {error}",
            hint="remove the file and record it again with --resume",
        ) from error
    if METADATA not in (table.schema.metadata or {}):
        raise UsageError(
            f"{path} is a Parquet file, but no trace",
            hint="give a folder that `specrej trace` wrote",
        )
    return table
