"""Traces on the engine without a model, by way of the disk."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fakes import FakeEngine, FakeReward
from specrej.engines.base import Engine
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.recording import record
from specrej.evaluation.trace import Trace, load
from specrej.rewards.base import Reward
from specrej.settings import Settings


def loaded_of(prompts: Sequence[str]) -> Loaded:
    """Tasks "0", "1", ..."""
    tasks = [
        Task(
            id=str(number),
            turns=([{"role": "user", "content": prompt}],),
            category=None,
            line=number + 1,
        )
        for number, prompt in enumerate(prompts)
    ]
    return Loaded(source="-", tasks=tuple(tasks), broken=(), sha256="-".join(prompts))


def trace_of(
    prompt: str,
    checkpoints: Sequence[int],
    engine: Engine | None = None,
    reward: Reward | None = None,
    **options: Any,
) -> Trace:
    """What `record` wrote of one prompt and `load` read."""
    (trace,) = traces_of([prompt], checkpoints, engine, reward, **options)
    return trace


def traces_of(
    prompts: Sequence[str],
    checkpoints: Sequence[int],
    engine: Engine | None = None,
    reward: Reward | None = None,
    **options: Any,
) -> list[Trace]:
    """The same of several; their files, which hold the hidden states, are gone."""
    with tempfile.TemporaryDirectory() as name:
        return traces_in(Path(name), prompts, checkpoints, engine, reward, **options)


def traces_in(
    folder: Path,
    prompts: Sequence[str],
    checkpoints: Sequence[int],
    engine: Engine | None = None,
    reward: Reward | None = None,
    **options: Any,
) -> list[Trace]:
    """The same in a folder that stays."""
    engine, reward, settings = engine or FakeEngine(), reward or FakeReward(), Settings(**options)
    for progress in record(
        loaded_of(prompts), engine, reward, folder, settings=settings, checkpoints=checkpoints
    ):
        assert progress.error is None
    return list(load(folder))
