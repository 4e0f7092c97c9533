"""vLLM in process against the list of what every engine must do."""

from collections.abc import Callable
from functools import cache

import pytest
from in_process import generator

from conformance import CHECKS, Subject, in_pages

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@cache
def in_process() -> Subject:
    return in_pages(generator(), hottest=2.0)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_process(check: Callable[[Subject], None]) -> None:
    check(in_process())
