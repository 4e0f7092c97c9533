"""Machines and models for a roofline: by data sheets, and as measured.

machine = h100()
plant = Plant(machine=machine, model=llama_3_8b(VOCABULARY))
steps = [TimedStep(rows=8, context=800, seconds=0.1), ...]
cpu = fit_machine(model, steps, memory_bytes=2**33)
write_cpu("cpu.json", Cpu(cpu, reward_machine, 0.01))
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from specrej.engines.base import Engine
from specrej.errors import UsageError
from specrej.evaluation.roofline import Machine, ModelShape, Plant, Reading
from specrej.evaluation.trace import Trace
from specrej.files.reading import read_text
from specrej.flops import AttentionFlops, ModelFlops
from specrej.messages import as_messages
from specrej.rewards.base import Reward, open_session
from specrej.types import Candidate, SamplingParams

VOCABULARY = 128_256
"""Tokens that a Llama-3 knows."""
_LAYERS, _HIDDEN, _INNER, _HEADS, _KV_HEADS, _HEAD_DIM = 32, 4096, 14_336, 32, 8, 128
_QUESTION = "Explain how a bicycle stays upright, and why it falls when it stands still."
SPILL_ROWS = 32
"""Rows of SmolLM2 whose logits (49,152 numbers of 4 bytes) are 6 MB, about what a core's share of
the cache holds."""


def h100(
    *,
    memory_gb: float = 80,
    bandwidth_share: float = 0.7,
    flops_share: float = 0.5,
    overhead: float = 0.001,
) -> Machine:
    """An H100 SXM, by NVIDIA's data sheet: 3.35 TB/s, 989 TFLOP/s in dense bf16, 80 GB.

    Args:
        memory_gb: of which a tenth is left to activations and the allocator.
        bandwidth_share: of the peak, that kernels which decode achieve.
        flops_share: of the peak, that large matrix products in a whole forward pass achieve.
        overhead: seconds of a step for launches, sampling and the scheduler.
    """
    bandwidth = bandwidth_share * 3.35e12
    return Machine(
        name=f"H100 SXM of {memory_gb:g} GB",
        bandwidth=bandwidth,
        kv_bandwidth=bandwidth,
        flops=flops_share * 989e12,
        memory_bytes=int(0.9e9 * memory_gb),
        overhead=overhead,
    )


def llama_3_8b(num_outputs: int) -> ModelShape:
    """By its config.json, in bf16, with a head of so many outputs: 1 makes a reward model."""
    attention = _HIDDEN * _HEAD_DIM * (2 * _HEADS + 2 * _KV_HEADS)
    weights = _LAYERS * (attention + 3 * _HIDDEN * _INNER)
    flops = ModelFlops(
        linear=2.0 * weights,
        head=2.0 * _HIDDEN * num_outputs,
        attention=(AttentionFlops(None, 4.0 * _HEADS * _HEAD_DIM * _LAYERS),),
        chunk=8192,
    )
    return ModelShape(
        name="Llama-3-8B",
        flops=flops,
        bytes_per_weight=2,
        resident_bytes=2 * (weights + _HIDDEN * (VOCABULARY + num_outputs)),
        kv_bytes=2 * 2 * _LAYERS * _KV_HEADS * _HEAD_DIM,
    )


def small_model(name: str, flops: ModelFlops | None, kv_bytes: int) -> ModelShape:
    """A model of a trace or an engine, with float16 weights.

    Raises:
        UsageError: what it costs is not known.
    """
    if flops is None:
        raise UsageError(
            f"the engine that ran {name!r} does not know what a token costs it",
            hint="take traces of the torch engine",
        )
    return ModelShape(
        name=name,
        flops=flops,
        bytes_per_weight=2,
        resident_bytes=int(flops.linear + flops.head),
        kv_bytes=kv_bytes,
    )


def small_reading(flops_per_token: float | None, machine: Machine, text_seconds: float) -> Reading:
    """A reward by what a token costs it, with int8 weights; it reads anew.

    Raises:
        UsageError: that is not known.
    """
    if flops_per_token is None:
        raise UsageError(
            "the reward does not say what a token costs it",
            hint="take traces of the reward 'relevance'",
        )
    flops = ModelFlops(linear=flops_per_token, head=0.0, attention=(), chunk=512)
    model = ModelShape(name="reward", flops=flops, bytes_per_weight=1, resident_bytes=0, kv_bytes=0)
    return Reading(model=model, machine=machine, text_seconds=text_seconds)


class TimedStep(NamedTuple):
    """A decoding step, as measured."""

    rows: int
    context: int
    """Tokens of KV that all rows meet together."""
    seconds: float


def fit_machine(model: ModelShape, steps: Sequence[TimedStep], memory_bytes: int) -> Machine:
    """The machine on which the model takes these steps, by least squares of relative errors.

    Four numbers above 0: a constant (reading the weights, with the step's overhead), the seconds of
    a row, those of a row beyond `SPILL_ROWS`, and those of a token of context. They add up: a CPU's
    float16 kernel unpacks the weights before it multiplies.

    Raises:
        UsageError: the steps do not tell these apart; a machine that others use does that.
    """
    rows, context, seconds = np.array(steps, dtype=np.float64).T
    columns = np.stack([np.ones_like(rows), rows, np.maximum(rows - SPILL_ROWS, 0), context], 1)
    scale = columns.max(axis=0)
    found, _ = nnls(columns / scale / seconds[:, None], np.ones_like(seconds))
    constant, row, spill, token = (found / scale).tolist()
    if not min(constant, row, token) > 0:
        raise UsageError(
            f"the measured steps have no seconds of their own for the constant ({constant:.2g}), a "
            f"row ({row:.2g}) and a token of context ({token:.2g})",
            hint="measure again while nothing else runs",
        )
    return Machine(
        name="this CPU",
        bandwidth=model.weight_bytes / constant,
        kv_bandwidth=model.kv_bytes / token,
        flops=(model.flops.linear + model.flops.head) / row,
        memory_bytes=memory_bytes,
        overhead=0.0,
        is_overlapping=False,
        spill_rows=SPILL_ROWS,
        spill_seconds=spill,
    )


class Cpu(NamedTuple):
    """What was measured of a CPU."""

    machine: Machine
    reward_machine: Machine
    """As the reward's kernels see it."""
    text_seconds: float
    """Of each text that the reward reads, beside its tokens."""

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "machine": asdict(self.machine),
            "reward_machine": asdict(self.reward_machine),
            "text_seconds": self.text_seconds,
        }


def cpu_plant(cpu: Cpu, trace: Trace) -> Plant:
    """The trace's own models on a CPU.

    Raises:
        UsageError: what they cost is not known.
    """
    name, layout = str(trace.settings["model"]), trace.layout
    return Plant(
        machine=cpu.machine,
        model=small_model(name, trace.flops, layout.bytes_per_token),
        reward=small_reading(trace.reward_flops_per_token, cpu.reward_machine, cpu.text_seconds),
    )


def write_cpu(path: str | Path, cpu: Cpu) -> None:
    """A file that `read_cpu` reads.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(cpu.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write what was measured to {path}: {error.strerror or error}",
            hint="name a file in a folder that exists",
        ) from error


def read_cpu(path: str | Path) -> Cpu:
    """What `write_cpu` wrote.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        given = json.loads(read_text(path))
        machine, reward_machine = (Machine(**given[key]) for key in ("machine", "reward_machine"))
        reading = small_reading(1.0, reward_machine, float(given["text_seconds"]))
        return Cpu(machine, reward_machine, reading.text_seconds)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{path} holds no measured CPU: {type(error).__name__}: {error}",
            hint="give a file that `benchmarks/roofline.py --validate --output` wrote",
        ) from error


def measure(engine: Engine, reward: Reward, model: ModelShape, say: Callable[[str], None]) -> Cpu:
    """Steps of a few sizes, the faster of two rounds, and readings of three lengths: about a minute
    on two cores that nobody else uses.

    Args:
        engine: decodes.
        reward: reads.
        model: the engine's.
        say: is told what was measured, and how well it fits.

    Raises:
        UsageError: the seconds tell nothing apart.
    """
    sizes = (1, 4, 16, 32, 96)
    rounds = [[_write(engine, rows, 10, window=10)[0][0] for rows in sizes] for _ in range(2)]
    steps = [min(same, key=lambda step: step.seconds) for same in zip(*rounds, strict=True)]
    longer, written = _write(engine, 16, 160, window=40)
    steps += longer
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = fit_machine(model, steps, memory)
    for step in steps:
        fitted = float(model.step_seconds(machine, step.rows, step.context)) / step.seconds
        say(
            f"{step.rows:>4} rows, {step.context:>6} tokens of KV: {step.seconds * 1e3:7.1f} ms, "
            f"fitted / measured {fitted:.2f}"
        )
    token_seconds, text_seconds = _read(engine, reward, written)
    if reward.flops_per_token is None or token_seconds <= 0:
        raise UsageError(
            f"the reward {reward.name!r} takes {token_seconds:.2g} seconds a token, and says "
            f"{reward.flops_per_token} FLOPs",
            hint="measure the reward relevance while nothing else runs",
        )
    reader = replace(machine, name="its reward", flops=reward.flops_per_token / token_seconds)
    return Cpu(machine, reader, text_seconds)


def _write(
    engine: Engine, rows: int, num_steps: int, window: int
) -> tuple[list[TimedStep], Mapping[int, list[int]]]:
    """Steps of so many candidates, the median of each window; and what they wrote."""
    ids = engine.encode(_QUESTION)
    sampling = SamplingParams(max_new_tokens=num_steps + 1, ignore_eos=True, seed=0)
    prompt = engine.open(ids, sampling, 1 << 40)
    engine.add(prompt, range(rows))
    tokens = {token.candidate: [token.token_id] for token in engine.step()}
    seconds = []
    for _ in range(num_steps):
        begun = time.perf_counter()
        output = engine.step()
        seconds.append(time.perf_counter() - begun)
        for token in output:
            tokens[token.candidate].append(token.token_id)
    engine.close(prompt)
    steps = []
    for start in range(0, num_steps, window):
        context = rows * (len(ids) + start + window // 2)
        steps.append(TimedStep(rows, context, float(np.median(seconds[start : start + window]))))
    return steps, tokens


def _read(engine: Engine, reward: Reward, written: Mapping[int, list[int]]) -> tuple[float, float]:
    """Seconds of a token that the reward reads, as the engine counts them, and of a text."""
    num_prompt, points = len(engine.encode(_QUESTION)), []
    with closing(open_session(reward, as_messages(_QUESTION))) as session:
        for length in (24, 80, 150):
            answers = [
                Candidate(index, ids[:length], [], engine.decode(ids[:length]))
                for index, ids in written.items()
            ]
            taken = []
            for _ in range(3):
                begun = time.perf_counter()
                session.score(answers)
                taken.append(time.perf_counter() - begun)
            points.append((num_prompt + length, min(taken) / len(answers)))
    tokens, seconds = np.array(points).T
    columns = np.stack([tokens, np.ones_like(tokens)], 1)
    found, _ = nnls(columns / seconds[:, None], np.ones_like(seconds))
    return float(found[0]), float(found[1])
