"""Answers to 200 random JSON schemas, side by side: those that are whole validate, and those that
are cut begin something that would.
"""

import json
import random
from typing import Any

import jsonschema
from llguidance import LLMatcher

from fakes import FakeReward
from specrej.api import RunRequest, run_many
from specrej.constraint import Constraint
from specrej.engines.constraints import checked
from specrej.engines.torch.loading import wrap
from specrej.search.pool import Pool
from specrej.settings import Settings
from specrej.types import Result
from tiny import CHAT_TEMPLATE, EOS_ID, make_model, make_tokenizer

NUM_SCHEMAS, NUM_ANSWERS, NUM_TOKENS = 200, 3, 80
DEFINED = {"type": "object", "properties": {"id": {"type": "integer", "maximum": 99, "minimum": 0}},
           "required": ["id"], "additionalProperties": False}  # fmt: skip


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """Of bounded answers: objects, arrays, choices and plain values, at most two deep."""
    plain: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["integer", "null"], "minimum": -5, "maximum": draw.randint(0, 500)},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "maxLength": draw.randint(0, 6)},
        {"type": "string", "minLength": 1, "maxLength": 4, "pattern": "^[a-f]+$"},
        {"enum": draw.sample(["red", "green", 3, None, 2.5, "é"], draw.randint(1, 4))},
        {"const": draw.choice(["x", 7, False])},
        {"$ref": "#/$defs/defined"},
    ]
    if depth == 2 or draw.random() < 0.3:
        return draw.choice(plain)

    def inner() -> dict[str, Any]:
        return random_schema(draw, depth + 1)

    names = draw.sample(["name", "a b", "größe", "n", "z"], draw.randint(0, 3))
    return draw.choice(
        [
            {"type": "object", "properties": {name: inner() for name in names},
             "required": [name for name in names if draw.random() < 0.7],
             "additionalProperties": False},
            {"type": "array", "items": inner(), "minItems": draw.randint(0, 1), "maxItems": 2},
            {"anyOf": [inner(), inner()]},
        ]
    )  # fmt: skip


def test_answers_to_random_schemas_validate() -> None:
    draw = random.Random(0)
    schemas = [{**random_schema(draw), "$defs": {"defined": DEFINED}} for _ in range(NUM_SCHEMAS)]
    model = make_model("llama")
    model.generation_config.eos_token_id = [EOS_ID]
    engine = wrap(model, make_tokenizer(CHAT_TEMPLATE), weights="fp32")
    requests = (
        RunRequest(
            "hi",
            Settings(n=NUM_ANSWERS, max_new_tokens=NUM_TOKENS, alpha=0.0, seed=seed,
                     json_schema=schema, memory="1MiB"),
        )
        for seed, schema in enumerate(schemas)
    )  # fmt: skip
    outcomes = dict(
        run_many(engine, FakeReward(), requests, pool=Pool(2**30), in_flight=NUM_SCHEMAS)
    )
    whole = 0
    for number, schema in enumerate(schemas):
        result = outcomes[number]
        assert isinstance(result, Result), (schema, result)
        for one in result.candidates:
            if one.finish_reason == "eos":
                whole += 1
                jsonschema.validate(json.loads(one.text), schema)
            else:
                assert one.finish_reason == "length"
                assert begins(schema, one.text, engine._grammars._read_vocabulary())
    assert whole > 0.8 * NUM_SCHEMAS * NUM_ANSWERS


def begins(schema: dict[str, Any], text: str, vocabulary: Any) -> bool:
    """Whether an answer may begin so, read anew as a text."""
    matcher = LLMatcher(vocabulary, checked(Constraint("json_schema", json.dumps(schema))))
    ids = vocabulary.tokenize_str(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids))
