"""The default generator, opened once for all tests of a process: each opening takes seconds.

Whoever uses it closes its prompts, and leaves it open.
"""

from functools import cache

import pytest

from specrej.engines.base import Engine
from specrej.opening import Opening, open_engine


@cache
def smollm2(weights: str | None = None) -> Engine:
    return open_engine("smollm2", weights=weights, device="cpu")


@cache
def smollm2_on_openvino() -> Engine:
    return open_engine("smollm2", engine="openvino", engine_args={"cache_size": 1})


def lend_to_commands(patch: pytest.MonkeyPatch) -> None:
    """Commands of this process that would open the default generator take this one."""
    engine = smollm2()
    patch.setattr(Opening, "open_engine", lambda *_: engine)
    patch.setattr(engine, "shutdown", lambda: None)
