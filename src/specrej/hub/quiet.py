"""Keeps off the terminal what transformers and the hub's client say while something loads; failures
are raised. And has transformers save what it opened from GGUF.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, notices or reports of retries within the block."""
    # Imported here: it takes half as long as torch, and a model's weights can be packed meanwhile.
    import huggingface_hub.utils
    import transformers.utils

    transformers_logging: Any = transformers.utils.logging
    hub_logging: Any = huggingface_hub.utils.logging
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(50)  # its retries are reported as warnings and errors
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if had_bars:
            transformers_logging.enable_progress_bar()


def as_plain(model: Any) -> Any:
    """A model that was opened from GGUF, without the marks that its weights are quantized. They are
    plain float32 by now; `save_pretrained` refuses while the marks say otherwise.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
