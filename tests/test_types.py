import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.errors import PromptError, UsageError
from specrej.messages import as_messages, with_answer
from specrej.types import Candidate, Decision, Prompt, Result, SamplingParams, Usage

USER = {"role": "user", "content": "Hello"}


def test_a_text_is_one_user_message() -> None:
    assert as_messages("Hello") == [USER]


def test_a_conversation_is_copied() -> None:
    given = [{"role": "system", "content": ""}, dict(USER)]
    messages = as_messages(given)
    assert messages == given
    messages[0]["content"] = "changed"
    assert given[0]["content"] == ""


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_an_error(prompt: Prompt) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        as_messages(prompt)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user"}, r"messages\[1\].content must be a text or a list of parts, got None"),
        (
            {"content": "Hello"},
            r"messages\[1\].role must be one of system, developer, user, assistant, tool, got None",
        ),
        ({"role": 1, "content": "Hello"}, r"messages\[1\].role must be one of .*, got 1"),
        (
            {"role": "human", "content": "Hello"},
            r"messages\[1\].role must be one of .*, got 'human'",
        ),
        ({**USER, "name": 1}, r"messages\[1\].name must be a text, got 1"),
        ({**USER, "type": "image"}, r"messages\[1\].type cannot be honoured"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
            r"messages\[1\].content\[1\] must be a",
        ),
        (
            {"role": "user", "content": "\ud800"},
            r"messages\[1\].content holds half a surrogate pair",
        ),
        ("Hello", r"messages\[1\] must be an object with role and content, got 'Hello'"),
    ],
)
def test_what_is_no_message_is_named_and_quoted(message: Any, expected: str) -> None:
    with pytest.raises(PromptError, match=expected):
        as_messages([USER, message])


@pytest.mark.parametrize("prompt", [None, 5, b"Hello", USER])
def test_what_is_neither_text_nor_conversation_is_quoted(prompt: Any) -> None:
    with pytest.raises(
        PromptError, match=r"a prompt must be a text or a list of messages, got (.*Hello|None|5)"
    ):
        as_messages(prompt)


def test_half_a_character_is_no_prompt() -> None:
    with pytest.raises(PromptError, match="the prompt holds half a surrogate pair"):
        as_messages("a\ud83d")


def test_a_developer_is_the_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    given: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief.", "name": None, "annotations": []},
        {"role": "user", "content": parts, "type": "text"},
    ]
    assert as_messages(given) == [{"role": "system", "content": "Be brief."}, USER]


def test_an_answer_goes_on_with_an_assistants_message() -> None:
    begun = {"role": "assistant", "content": "Well, "}
    assert with_answer([USER], "no.") == [USER, {"role": "assistant", "content": "no."}]
    assert with_answer([USER, begun], "no.") == [
        USER,
        {"role": "assistant", "content": "Well, no."},
    ]
    assert begun["content"] == "Well, "


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", "8"),
        ("max_new_tokens", 2**31),
        ("max_new_tokens", 10**400),
        ("temperature", -1e-300),
        ("temperature", -1.0),
        ("temperature", 10**400),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_k", 2**31),
        ("top_k", 2**63),
        ("top_k", 10**400),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", 10**400),
        ("top_p", math.nan),
        ("top_p", None),
        ("min_p", -0.1),
        ("min_p", 1.0),
        ("min_p", 1 - 1e-17),  # which is 1.0
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", 10**400),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan),
        ("stop", ("a", "")),
        ("stop", (1,)),
        ("stop", ["a"]),
        ("stop", "a"),
        ("ignore_eos", 1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 10**400),
        ("seed", 1.0),
    ],
)
def test_a_bad_sampling_parameter_is_named_and_quoted(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be ") as caught:
        SamplingParams(**{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


def test_sampling_parameters_at_the_edges_of_their_ranges_are_taken() -> None:
    SamplingParams(
        max_new_tokens=1,
        temperature=1,
        top_k=0,
        top_p=1,
        min_p=0,
        repetition_penalty=2,
        seed=2**64 - 1,
    )


@given(st.floats(min_value=0, allow_infinity=False) | st.integers(0, 10**308))
def test_a_temperature_divides_by_what_float32_holds_or_is_greedy(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    assert params.is_greedy == (params.divisor == 0) == (temperature < 1e-5)
    if not params.is_greedy:
        assert np.isfinite(np.float32(params.divisor))
        assert np.isfinite(1 / np.float32(params.divisor))
        assert params.divisor == min(float(temperature), 1e30)


def test_sampling_parameters_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().seed = 1  # type: ignore[misc]


def test_a_candidate_knows_its_latest_reward_and_its_perplexity() -> None:
    candidate = Candidate(3)
    assert (candidate.reward, candidate.perplexity) == (None, None)
    candidate.rewards[0] = 2.0
    candidate.rewards[4] = -1.0
    candidate.logprobs += [-math.log(2), -math.log(8)]
    assert candidate.reward == -1.0
    assert candidate.perplexity == pytest.approx(4.0)


@pytest.mark.parametrize("logprob", [-1000.0, float(np.finfo(np.float32).min)])
def test_a_token_that_can_hardly_be_has_a_perplexity_that_json_holds(logprob: float) -> None:
    candidate = Candidate(0, token_ids=[1], logprobs=[logprob])
    assert 1e300 < (candidate.perplexity or 0) < math.inf
    json.dumps(candidate.to_dict(), allow_nan=False)


def test_the_seconds_of_a_usage_add_up_to_its_total() -> None:
    usage = Usage(prefill_s=1.0, decode_s=2.0, reward_s=4.0, other_s=8.0)
    assert usage.total_s == usage.to_dict()["total_s"] == 15.0


def test_a_result_is_json_and_complete_at_that() -> None:
    best = Candidate(1, [5], [-0.5], "b", {0: 1.0}, "complete", "eos")
    decision = Decision(
        cause="complete",
        num_tokens=1,
        scored=(0, 1),
        rejected=(0,),
        cut=1.0,
        kv_bytes=4,
        kv_bytes_after=2,
    )
    result = Result(
        best=best,
        candidates=(Candidate(0, state="rejected"), best),
        decisions=(decision,),
        usage=Usage(),
        seed=7,
        settings={"n": 2},
        versions={"specrej": "1"},
    )
    read = json.loads(json.dumps(result.to_dict()))
    assert (read["text"], read["reward"], read["best"], read["seed"], read["is_complete"]) == (
        "b",
        1.0,
        1,
        7,
        True,
    )
    assert read["candidates"][1] == {
        "index": 1,
        "token_ids": [5],
        "logprobs": [-0.5],
        "text": "b",
        "rewards": {"0": 1.0},
        "reward": 1.0,
        "perplexity": pytest.approx(math.exp(0.5)),
        "state": "complete",
        "finish_reason": "eos",
    }
    assert read["decisions"][0]["rejected"] == [0]
    assert set(read["usage"]) == {*(field.name for field in dataclasses.fields(Usage)), "total_s"}
    assert set(read) == {*(field.name for field in dataclasses.fields(Result)), "text", "reward"}
