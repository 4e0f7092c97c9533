"""How float16 weights are multiplied on this CPU, and from how many rows on by another form, such
as its matrix units: measured once a machine.

    turning_point(model)      # 64; None: the form for few rows is never slower

Which is faster depends on the processor. All compute with the same rounded weights, in float32.
What was measured stays in the user's cache, so that a machine goes on giving the same tokens.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from specrej.attention.fused import Fused, compile_fused, processor
from specrej.attention.linear import (
    HalfForms,
    PackedCall,
    half_forms,
    linears_of,
    weight_and_bias,
)
from specrej.attention.products import Products
from specrej.errors import UsageError
from specrej.files.journal import write_json
from specrej.hub.defaults import cache_dir

SIZES = (8, 16, 32, 64, 128, 256)
"""Rows that are multiplied. Fewer than the first never go through the form for many: there the
bytes that are read decide."""
GAIN = 1.1
"""It must be so much faster, since oneDNN's needs twice as much memory again."""
ROUNDS = 8
_LEAST_NUMBERS = 1 << 18
"""Layers with fewer weights are not worth a second form."""
_LOG = logging.getLogger("specrej")


def fused(device: torch.device, dtype: torch.dtype) -> Fused | None:
    """The parts between matrix products, compiled; None where torch runs them, as on a GPU, or in
    another precision than float32.
    """
    return _fused() if device.type == "cpu" and dtype == torch.float32 else None


@cache
def _fused() -> Fused | None:
    """Once a process."""
    return compile_fused(cache_dir() / "kernels")


def products_here(device: torch.device) -> Products | None:
    """The compiled products; None where there are none."""
    compiled = fused(device, torch.float32)
    return None if compiled is None else compiled.products


def turning_point(model: Any) -> int | None:
    """From how many rows on the form for many; as of the cache, or measured and put there. Never
    where the cache cannot be written: the next process could measure something else.

    Args:
        model: of float32 on a CPU, not packed yet.
    """
    forms = half_forms(products_here(model.device))
    weights = _of_each_shape(model)
    if not weights or forms is None or forms.many is None:
        return None
    path = cache_dir() / "kernels" / f"{_key(weights, forms)}.json"
    try:
        found: int | None = json.loads(path.read_text())["many_rows"]
        if found not in (None, *SIZES):
            raise ValueError(found)
    except (OSError, ValueError, KeyError, TypeError):
        found = measure(weights, forms)
        try:
            write_json(path, {"many_rows": found})
        except UsageError as error:
            _LOG.info("float16 weights are held in one form only: %s", error)
            return None
    return found


def _of_each_shape(model: Any) -> list[Tensor]:
    """One weight of each shape, of the layers that are worth it; the head goes as they do."""
    head = model.get_output_embeddings()
    layers = (parent.get_submodule(name) for parent, name in linears_of(model))
    weights = [weight_and_bias(layer)[0] for layer in layers if layer is not head]
    shapes = {weight.shape: weight for weight in weights if weight.numel() >= _LEAST_NUMBERS}
    return list(shapes.values())


def _key(weights: Sequence[Tensor], forms: HalfForms) -> str:
    """What a measurement holds for."""
    what = [
        f"{forms.few}, {forms.many}",
        processor(),
        torch.backends.cpu.get_cpu_capability(),
        torch.__version__,
        str(torch.get_num_threads()),
        *sorted(str(tuple(weight.shape)) for weight in weights),
    ]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


@torch.inference_mode()
def measure(
    weights: Sequence[Tensor], forms: HalfForms, sizes: Sequence[int] = SIZES
) -> int | None:
    """The first of these sizes from which the form for many is faster at it and at all that
    follow.
    """
    packed = [forms.pack(weight, None) for weight in weights]
    few, many = [form for form, _ in packed], [make() for _, make in packed]
    found = None
    for size in sorted(sizes, reverse=True):
        inputs = [torch.ones(size, weight.shape[1]) for weight in weights]
        slow, fast = _in_turns(partial(_run, few, inputs), partial(_run, many, inputs))
        if slow < fast * GAIN:
            break
        found = size
    return found


def _run(calls: Sequence[PackedCall], inputs: Sequence[Tensor]) -> None:
    for call, rows in zip(calls, inputs, strict=True):
        call(rows)


def _in_turns(*runs: Callable[[], None]) -> list[float]:
    """Seconds of the fastest of some rounds of each."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, seconds, strict=True):
            begun = time.perf_counter()
            run()
            taken.append(time.perf_counter() - begun)
    return list(map(min, seconds))
