"""vLLM in process against the list of what every engine must do."""

import json
import re
from functools import cache
from typing import Any

import pytest
from in_process import generator

import specrej
from specrej.engines.opening import EngineOptions
from specrej.engines.vllm import open_as_asked
from specrej.errors import SamplingError
from specrej.testing import EngineSuite, Subject
from specrej.testing.subject import in_pages
from specrej.types import Candidate, SamplingParams

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


@cache
def in_process() -> Subject:
    return in_pages(generator(), hottest=2.0)


class TestInProcess(EngineSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return in_process()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "is_red": {"type": "boolean"}},
    "required": ["name", "is_red"],
    "additionalProperties": False,
}


def test_what_vllm_cannot_draw_is_said_before_it_opens_a_model() -> None:
    options = EngineOptions(arguments={}, must_draw=[SamplingParams(temperature=3.0)])
    with pytest.raises(SamplingError, match="temperature"):
        open_as_asked("no-such-model", options)


def test_candidates_obey_in_vllm() -> None:
    """Those that are rejected too, as far as they came."""

    def length(_: str, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    def candidates(**options: Any) -> list[Candidate]:
        given: dict[str, Any] = {"n": 4, "max_new_tokens": 40, "seed": 1, **options}
        result = specrej.generate("Name a fruit.", model=generator(), reward=length, **given)
        return list(result.candidates)

    for one in candidates(json_schema=SCHEMA, alpha=0.0):
        assert json.loads(one.text).keys() == {"name", "is_red"}
    for one in candidates(json_schema=SCHEMA, alpha=0.5, decide="every:4"):
        assert one.text.startswith('{"name": "'[: len(one.text)])
    for one in candidates(regex="[a-z]{3,9} tree", alpha=0.0):
        assert re.fullmatch("[a-z]{3,9} tree", one.text)
    for one in candidates(grammar='start: "red" | "green"', alpha=0.0):
        assert one.text in ("red", "green")
    with pytest.raises(SamplingError, match=r"^regex must be"):
        candidates(regex="(a")
