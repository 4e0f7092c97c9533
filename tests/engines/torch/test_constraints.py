"""Answers of the torch engine that obey a schema, a regex or a grammar."""

import json
import re
from typing import Any

import jsonschema
import pytest

import specrej
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.errors import SamplingError
from specrej.types import Result
from tiny import CHAT_TEMPLATE, EOS_ID, make_model, make_tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 5},
        "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    model = make_model("llama")
    model.generation_config.eos_token_id = [EOS_ID]
    return wrap(model, make_tokenizer(CHAT_TEMPLATE), weights="fp32")


def answers(engine: TorchEngine, **options: Any) -> Result:
    def length(_: str, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    given = {"n": 8, "max_new_tokens": 60, "alpha": 0.0, **options}
    return specrej.generate("hi", model=engine, reward=length, **given)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_candidates_obey(engine: TorchEngine, temperature: float) -> None:
    for one in answers(engine, json_schema=SCHEMA, temperature=temperature).candidates:
        assert one.finish_reason == "eos"
        jsonschema.validate(json.loads(one.text), SCHEMA)
    for one in answers(engine, regex="a[0-9]{1,4}", temperature=temperature).candidates:
        assert re.fullmatch("a[0-9]{1,4}", one.text)
    grammar = 'start: "x" /[ab]{2,5}/'
    for one in answers(engine, grammar=grammar, temperature=temperature).candidates:
        assert re.fullmatch("x[ab]{2,5}", one.text)


def test_rejections_change_no_token_of_those_that_stay(engine: TorchEngine) -> None:
    free = answers(engine, json_schema=SCHEMA, n=16)
    cut = answers(engine, json_schema=SCHEMA, n=16, alpha=0.5, decide="every:4")
    assert any(one.state == "rejected" and not one.finish_reason for one in cut.candidates)
    for mine, whole in zip(cut.candidates, free.candidates, strict=True):
        assert mine.token_ids == whole.token_ids[: len(mine.token_ids)]


@pytest.mark.parametrize(
    "wrong", [{"regex": "(a"}, {"json_schema": {"not": {}}}, {"grammar": "start: foo"}]
)
def test_what_does_not_compile_is_refused_with_the_compilers_words(
    engine: TorchEngine, wrong: dict[str, Any]
) -> None:
    with pytest.raises(SamplingError, match=f"^{next(iter(wrong))} must be .* llguidance says: "):
        answers(engine, **wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json_schema", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        ("grammar", 'start: "a" start'),
    ],
)
def test_what_nobody_can_follow_to_its_end_is_the_fault_of_what_was_asked(
    engine: TorchEngine, name: str, value: Any
) -> None:
    with pytest.raises(SamplingError, match=f"^{name} must be one that can be followed"):
        answers(engine, **{name: value})
