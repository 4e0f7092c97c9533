"""vLLM in process against the list of what every engine must do."""

from functools import cache

import pytest
from in_process import generator

from specrej.testing import EngineSuite, Subject
from specrej.testing.subject import in_pages

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@cache
def in_process() -> Subject:
    return in_pages(generator(), hottest=2.0)


class TestInProcess(EngineSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return in_process()
