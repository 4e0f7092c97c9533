import dataclasses
import json
import math
from typing import Any

import pytest

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.search.resolving import policy_of
from specrej.settings import Options, Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 2**31),
        ("n", 10**400),
        ("n", -1),
        ("n", "8"),
        ("n", 1.0),
        ("n", True),
        ("n", None),
        ("alpha", -0.1),
        ("alpha", 1.0),
        ("alpha", math.nan),
        ("alpha", "0.5"),
        ("alpha", None),
        ("keep", 0),
        ("keep", 1.5),
        ("keep", "2"),
        ("keep", True),
        ("decide", ""),
        ("decide", "sometimes"),
        ("decide", "budget:3"),
        ("decide", "every"),
        ("decide", "every:"),
        ("decide", "every:0"),
        ("decide", "every:1,2"),
        ("decide", "every:-3"),
        ("decide", "at:"),
        ("decide", "at:3,"),
        ("decide", "at:3,x"),
        ("decide", 32),
        ("min_tokens", 0),
        ("min_tokens", 1.5),
        ("min_tokens", None),
        ("policy", 5),
        ("policy", ["module:object"]),
        ("reward_sees", "nothing"),
        ("extract", 5),
        ("threshold", math.inf),
        ("threshold", "high"),
        ("threshold", 10**400),
        ("threshold", True),
        ("window", 0),
        ("warm_up", 1),
        ("memory", "64MB"),
        ("memory", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("alpha", 10**400),
        ("decide", "every:" + "9" * 5000),
        ("decide", "at:" + "9" * 10),
        ("memory", 10**400),
        ("memory", 2**63),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0),
        ("min_p", 1),
        ("repetition_penalty", 0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -3),
        ("logit_bias", "much"),
        ("top_logprobs", 21),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", "###"),
        ("stop", None),
        ("continue_final_message", "yes"),
        ("strict", "yes"),
        ("json_schema", 5),
        ("json_schema", "[1]"),
        ("regex", 5),
        ("grammar", 5),
        ("refill", "some"),
        ("max_thinking_tokens", -1),
        ("max_thinking_tokens", True),
        ("max_thinking_tokens", 2.5),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_a_bad_value_is_an_error_that_names_and_quotes_it(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be ") as caught:
        Settings(**{name: value})
    assert repr(value).strip("[]") in str(caught.value)


def test_every_setting_has_a_bad_value_in_the_test_above() -> None:
    marks = test_a_bad_value_is_an_error_that_names_and_quotes_it.pytestmark
    assert {name for name, _ in marks[0].args[1]} | {"algorithm"} == set(Options.__annotations__)


@pytest.mark.parametrize("algorithm", ["best_of_m", "", 5, None])
def test_an_unknown_algorithm_is_an_error_with_the_known_ones(algorithm: Any) -> None:
    with pytest.raises(UsageError, match="algorithm") as caught:
        Settings(algorithm=algorithm)
    assert repr(algorithm) in str(caught.value)
    if isinstance(algorithm, str):
        assert isinstance(caught.value, UnknownNameError)
        assert "speculative_rejection" in str(caught.value.hint)


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(TypeError, match="tempature"):
        Settings(tempature=1.0)  # type: ignore[call-arg]


def test_n_is_a_number_or_as_many_as_memory_carries() -> None:
    assert Settings(n=3).num_candidates == 3
    assert Settings(n="auto").num_candidates is None


def test_memory_is_read_once_and_none_is_left_to_the_engine() -> None:
    assert Settings(memory="1KiB").memory_bytes == Settings(memory=1024).memory_bytes == 1024
    assert Settings().memory_bytes is None


@pytest.mark.parametrize(
    ("options", "first_tokens"),
    [
        ({}, 16),
        ({"min_tokens": 5}, 5),
        ({"decide": "every:7"}, 7),
        ({"decide": "at:9,4"}, 4),
        ({"keep": 2, "alpha": 0.0}, 16),
        ({"alpha": 0.0}, None),
        ({"alpha": 0.0, "decide": "every:7"}, None),
    ],
)
def test_the_initial_batch_reaches_the_first_decision(
    options: dict[str, Any], first_tokens: int | None
) -> None:
    assert policy_of(Settings(**options)).first_tokens == first_tokens


def test_settings_are_json_and_make_equal_settings() -> None:
    given = Settings(n=4, stop=("a", "b"), memory="1KiB", keep=2)
    again = Settings(**json.loads(json.dumps(given.to_dict())))
    assert dataclasses.replace(again, stop=tuple(again.stop)) == given
    assert given.sampling.stop == ("a", "b")


def test_half_a_character_stops_nothing() -> None:
    with pytest.raises(
        UsageError, match=r"^stop\[1\] holds half a surrogate pair, \\ud83d"
    ) as caught:
        Settings(stop=["a", "\ud83d"])
    assert not isinstance(caught.value, PromptError)
