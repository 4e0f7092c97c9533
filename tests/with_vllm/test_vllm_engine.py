"""vLLM, in process and behind its own server, against the list of what every engine must do."""

from collections.abc import Callable
from functools import cache

import pytest

from conformance import CHECKS, Subject
from specrej.engines.opening import open_engine

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

ENDING = "Answer with one word: is water wet?"


@cache
def in_process() -> Subject:
    """A cache of 128 blocks: as much as the checks need, so that one that took more would preempt."""
    engine = open_engine("smollm2", engine="vllm", engine_args={"max_model_len": 2048, "kv_cache_memory_bytes": 2**28})
    page_bytes = engine.layout.page * engine.layout.bytes_per_token
    backend = engine.backend  # type: ignore[attr-defined]
    return Subject(
        engine,
        flips=500,
        reread=engine.layout.page,
        ending=ENDING,
        measured=lambda: backend.pages_in_use() * page_bytes,
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_process(check: Callable[[Subject], None]) -> None:
    check(in_process())
