"""Every engine that this environment has, against the one list of what engines must do. vLLM's:
tests/with_vllm."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from fakes import FakeEngine
from paging import PAGE, FakeBackend, paged_engine
from real import smollm2, smollm2_on_openvino
from specrej.engines.base import Engine
from specrej.engines.opening import open_engine
from specrej.engines.torch.loading import wrap
from specrej.testing import EngineSuite, Subject
from specrej.testing.subject import ENDING, in_pages
from tiny import CHAT_TEMPLATE, make_model, make_tokenizer


def fake() -> Subject:
    return Subject(FakeEngine())


def paged() -> Subject:
    backend = FakeBackend()
    engine = paged_engine(backend)
    return Subject(engine, reread=PAGE, measured=lambda: backend.pages_in_use() * PAGE * 10)


def tiny_torch() -> Subject:
    """In float64, where no draw comes as close to a boundary as rounding."""
    model = make_model("llama", dtype=torch.float64)
    model.generation_config.eos_token_id = list(range(5))
    return Subject(wrap(model, make_tokenizer(CHAT_TEMPLATE)))


def open_torch() -> Engine:
    return open_engine("smollm2", device="cpu")


def open_openvino() -> Engine:
    pytest.importorskip("openvino_genai")
    return open_engine("smollm2", engine="openvino", engine_args={"cache_size": 1})


@cache
def real_torch() -> Subject:
    return Subject(smollm2(), flips=500, ending=ENDING)


@cache
def openvino() -> Subject:
    pytest.importorskip("openvino_genai")
    return in_pages(smollm2_on_openvino())


SUBJECTS = [
    fake,
    paged,
    tiny_torch,
    *(pytest.param(real, marks=pytest.mark.slow) for real in (real_torch, openvino)),
]
OPENINGS = [
    FakeEngine,
    lambda: paged_engine(FakeBackend()),
    lambda: tiny_torch().engine,
    *(pytest.param(real, marks=pytest.mark.slow) for real in (open_torch, open_openvino)),
]


class TestEngine(EngineSuite):
    @pytest.fixture(params=SUBJECTS)
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        make: Callable[[], Subject] = request.param
        return make()

    @pytest.fixture(params=OPENINGS)
    def opening(self, request: pytest.FixtureRequest) -> Callable[[], Engine]:
        make: Callable[[], Engine] = request.param
        return make
