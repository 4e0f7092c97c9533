"""The HTTP engine against a real `vllm serve`."""

from collections.abc import Iterator

import pytest
from serving import serving

from specrej.engines.opening import open_engine
from specrej.hub.defaults import locate
from specrej.testing import EngineSuite, Subject

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

CHUNK = 8
BLOCK = 32


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with serving(locate("smollm2")) as url:
        engine = open_engine(
            "smollm2", engine=f"openai:{url}/v1", engine_args={"chunk_tokens": CHUNK}
        )
        # Of each submission a block is read again at most; an answer of 32 tokens is submitted four
        # times.
        yield Subject(
            engine,
            flips=500,
            reread=4 * BLOCK,
            unused=CHUNK - 1,
            ending="Answer with one word: is water wet?",
            hottest=2.0,
        )


class TestServed(EngineSuite):
    """With the fixture above."""


def test_it_knows_the_server(subject: Subject) -> None:
    engine = subject.engine
    about = engine.describe()
    assert about["engine"] == "openai"
    assert engine.context_tokens == 2048
    assert engine.capacity_bytes is not None
