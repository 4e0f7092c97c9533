"""vLLM in process against the list of what every engine must do."""

from collections.abc import Callable
from functools import cache

import pytest

from conformance import CHECKS, Subject, in_pages
from specrej.engines.opening import open_engine

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@cache
def in_process() -> Subject:
    """With a cache of 180 blocks, some three times what the checks need."""
    arguments = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**28}
    return in_pages(open_engine("smollm2", engine="vllm", engine_args=arguments))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_process(check: Callable[[Subject], None]) -> None:
    check(in_process())
