"""OpenAI's bodies: what is honoured, what is refused by name, and what comes back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import specrej
from answers import answer, five, result_of
from fakes import ByteReader, FakeEngine, FakeReward
from specrej import registry
from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.server.answering import best_answers, to_body
from specrej.server.protocol import ENDPOINTS, CompletionRequest, parse_chat, parse_text
from specrej.settings import Settings
from specrej.types import Continuation, Piece, Result

DEFAULTS = Settings(seed=5, top_k=20, max_new_tokens=32)
USER = {"role": "user", "content": "Hello"}


def chat(**fields: Any) -> CompletionRequest:
    return parse_chat({"model": "m", "messages": [USER], **fields}, DEFAULTS)


def text(**fields: Any) -> CompletionRequest:
    return parse_text({"model": "m", "prompt": "Hello", **fields}, DEFAULTS)


def body_of(request: CompletionRequest, result: Result) -> dict[str, Any]:
    return to_body(
        request, result, completion_id="c-1", created=17, model="opened", detokenizer=ByteReader
    )


def test_a_bare_body_takes_the_defaults() -> None:
    assert chat() == CompletionRequest(
        kind="chat",
        model="m",
        prompt=[USER],
        settings=DEFAULTS,
        num_answers=1,
        has_logprobs=False,
        returned=(),
    )
    assert text() == replace(chat(), kind="text", prompt="Hello")
    assert {path: parse.__name__ for path, parse in ENDPOINTS.items()} == {
        "/v1/chat/completions": "parse_chat",
        "/v1/completions": "parse_text",
    }


def test_openais_fields_say_how_tokens_are_drawn() -> None:
    given = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "seed": 9, "stop": ["a", "b"]}
    expected = replace(
        DEFAULTS, max_new_tokens=7, temperature=0.5, top_p=0.25, seed=9, stop=["a", "b"]
    )
    assert chat(**given).settings == text(**given).settings == expected
    assert chat(stop="END").settings.stop == ["END"]
    assert chat(max_completion_tokens=7).settings.max_new_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=7).settings.max_new_tokens == 7


def test_our_fields_are_the_settings_of_the_same_names() -> None:
    own = {
        "algorithm": "best_of_n",
        "n": 12,
        "alpha": 0.25,
        "keep": 3,
        "decide": "every:8",
        "min_tokens": 4,
        "memory": "2MiB",
        "top_k": 9,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
    }
    request = chat(n=4, specrej={**own, "return": ["rewards", "candidates"]})
    assert request.settings == replace(DEFAULTS, **own)  # type: ignore[arg-type]
    assert (request.num_answers, request.returned) == (4, ("rewards", "candidates"))


def test_a_null_is_as_good_as_nothing() -> None:
    names = [
        "n",
        "temperature",
        "stop",
        "logprobs",
        "specrej",
        "tools",
        "stream",
        "reasoning_effort",
        "anything",
    ]
    assert chat(**dict.fromkeys(names)) == chat()
    assert chat(specrej={"n": None, "return": None}) == chat()


@pytest.mark.parametrize("parse", [chat, text])
def test_what_asks_for_nothing_is_taken(parse: Any) -> None:
    nothing = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
    }
    nothing |= {
        "tools": [],
        "stream": False,
        "store": False,
        "top_logprobs": 0,
        "best_of": 1,
        "echo": False,
    }
    labels = {
        "user": "u",
        "metadata": {"job": "1"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    assert parse(**nothing, **labels) == parse()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("parallel_tool_calls", [True, False]),
        ("tool_choice", ["none", "auto"]),
        ("function_call", ["none", "auto"]),
        ("functions", [[]]),
        ("service_tier", ["auto", "default"]),
        ("suffix", [""]),
        ("modalities", [["text"]]),
        ("verbosity", ["medium"]),
    ],
)
@pytest.mark.parametrize("parse", [chat, text])
def test_every_way_to_ask_for_nothing_is_taken(
    parse: Any, field: str, values: list[object]
) -> None:
    for value in values:
        assert parse(**{field: value}) == parse()
    with pytest.raises(UsageError, match=f"{field} cannot be honoured"):
        parse(**{field: ["something"]})


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert text(prompt=["Once"]) == text(prompt="Once")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("store", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logit_bias", {"50256": -100}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("top_logprobs", 2),
        ("best_of", 4),
        ("echo", True),
        ("suffix", "."),
        ("reasoning_effort", "low"),
        ("top_k", 5),
        ("temprature", 1.0),
    ],
)
@pytest.mark.parametrize("parse", [chat, text])
def test_what_cannot_be_honoured_is_refused_by_name(parse: Any, field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{field} cannot be honoured, got") as caught:
        parse(**{field: value})
    assert "temperature" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("parse", "field"),
    [(chat, "prompt"), (text, "messages"), (text, "logprobs"), (text, "max_completion_tokens")],
)
def test_a_field_of_the_other_endpoint_is_refused(parse: Any, field: str) -> None:
    with pytest.raises(UsageError, match=f"^{field} cannot be honoured"):
        parse(**{field: 5})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": None}, "model must be a text, got None"),
        ({"model": 5}, "model must be a text, got 5"),
        ({"model": ""}, "model must be a text"),
        ({"n": 0}, "n must be a number of at least 1, got 0"),
        ({"n": True}, "n must be a number"),
        ({"n": 1.0}, "n must be a number"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "one limit, got 5 and 6"),
        ({"max_tokens": 0}, r"^max_tokens must be at least 1, and below 2\^31, got 0"),
        ({"max_tokens": "5"}, "^max_tokens must be a whole number, got '5'"),
        ({"max_completion_tokens": "5"}, "^max_completion_tokens must be a whole number, got '5'"),
        ({"temperature": -1}, r"temperature must be 0 \(greedy\) or above, and finite, got -1"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"temperature": 10**400}, "temperature must be 0"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 2}, r"top_p must be in \(0, 1\]"),
        ({"seed": -1}, "seed must be in"),
        ({"stop": 5}, "stop must be a list of strings"),
        ({"stop": ""}, "stop must be made of strings that are not empty"),
        ({"stop": ["a", 5]}, "stop must be made of strings"),
        ({"logprobs": 5}, "logprobs must be true or false"),
        ({"specrej": []}, r"specrej must be an object, got \[\]"),
        ({"specrej": {"alpa": 0.5}}, "unknown field of specrej 'alpa'"),
        ({"specrej": {"alpha": 2}}, r"^specrej.alpha must be in \[0, 1\), got 2"),
        ({"n": 2, "specrej": {"n": 0}}, "^specrej.n must be 'auto' or a number"),
        ({"specrej": {"memory": "much"}}, "memory must be like"),
        ({"specrej": {"memory": True}}, "memory must be like"),
        ({"specrej": {"algorithm": "beam"}}, "unknown algorithm 'beam'"),
        ({"specrej": {"return": "rewards"}}, "return must be a list of names, got 'rewards'"),
        ({"specrej": {"return": ["reward"]}}, "unknown thing to return 'reward'"),
    ],
)
def test_a_value_out_of_its_range_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        chat(**fields)


@pytest.mark.parametrize(
    "own",
    [
        {"algorithm": "request_code:run"},
        {"algorithm": "request_code:policy"},
        {"policy": "request_code:policy"},
    ],
)
def test_a_request_makes_the_server_import_nothing(
    own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the command line, and so the defaults, may name code."""
    (tmp_path / "request_code.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    defaults = replace(DEFAULTS, algorithm="request_code:run", policy="request_code:policy")
    [(name, value)] = own.items()
    said = (
        f"^unknown algorithm '{value}'"
        if name == "algorithm"
        else "^unknown field of specrej 'policy'"
    )
    for body in ({"model": "m", "messages": [USER]}, {"model": "m", "prompt": "Hello"}):
        parse = parse_chat if "messages" in body else parse_text
        with pytest.raises(UnknownNameError, match=said):
            parse({**body, "specrej": own}, defaults)
        assert parse(body, defaults).settings == defaults


def test_a_request_may_name_an_algorithm_that_a_package_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        registry, "entry_points", lambda kind: {"beam": None} if kind == "algorithm" else {}
    )
    assert chat(specrej={"algorithm": "beam"}).settings.algorithm == "beam"


def test_where_the_server_has_a_policy_a_request_cannot_say_when_to_decide() -> None:
    defaults = replace(DEFAULTS, policy="mine:policy")
    with pytest.raises(
        UsageError, match=r"^specrej\.alpha must be left out where there is a policy, got 0\.25"
    ):
        parse_chat({"model": "m", "messages": [USER], "specrej": {"alpha": 0.25}}, defaults)
    assert (
        parse_chat(
            {"model": "m", "messages": [USER], "specrej": {"n": 3}}, defaults
        ).settings.policy
        == "mine:policy"
    )


def test_a_misspelt_field_of_ours_gets_suggestions() -> None:
    with pytest.raises(UnknownNameError) as caught:
        chat(specrej={"alpa": 0.5})
    assert "'alpha'" in str(caught.value.hint)


@pytest.mark.parametrize("body", [None, [], "Hello", 5])
def test_a_body_is_an_object(body: object) -> None:
    for parse in (parse_chat, parse_text):
        with pytest.raises(UsageError, match="a body must be an object"):
            parse(body, DEFAULTS)


def test_a_text_to_complete_goes_past_the_chat_template() -> None:
    assert isinstance(text(prompt="Once upon").prompt, Continuation)
    assert not isinstance(chat(messages=[{"role": "user", "content": "Hi"}]).prompt, Continuation)


def test_messages_may_be_in_parts_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None},
        {"role": "user", "content": parts},
    ]
    assert chat(messages=messages).prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages must be a list of messages, got None"),
        ("Hello", "messages must be a list"),
        ([], "the prompt is empty"),
        (["Hello"], r"messages\[0\] must be an object"),
        ([{"role": "user", "content": " "}], "the prompt is empty"),
        ([{"role": "user"}], "content must be a text or a list of parts, got None"),
        ([{"role": "user", "content": {"type": "text"}}], "content must be a text or a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
            "must be a text, got .*image",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "must be a text"),
        ([{"role": "user", "content": ["Hello"]}], "must be a text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}],
            "must be a text",
        ),
        ([{"role": "tool", "content": "5"}], "role must be one of .*, got 'tool'"),
        ([{"role": ["user"], "content": "5"}], "role must be one of"),
        ([{"content": "5"}], "role must be one of .*, got None"),
        ([{**USER, "name": "Ann"}], r"messages\[0\].name cannot be honoured, got 'Ann'"),
        (
            [USER, {"role": "assistant", "content": "Well"}],
            "the conversation ends in an assistant's message",
        ),
        ([{**USER, "tool_calls": [{}]}], r"messages\[0\].tool_calls cannot be honoured"),
    ],
)
def test_what_is_no_conversation_of_texts_is_refused(messages: object, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        chat(messages=messages)


def test_an_assistants_message_is_gone_on_with_when_asked() -> None:
    messages = [USER, {"role": "assistant", "content": "Well, "}]
    for more in ({}, {"add_generation_prompt": False}):
        asked = chat(messages=messages, continue_final_message=True, **more)
        assert asked.settings.continue_final_message
        assert asked.prompt == messages
    assert not chat(
        messages=[USER], continue_final_message=False, add_generation_prompt=True
    ).settings.to_dict()["continue_final_message"]
    with pytest.raises(UsageError, match="continue_final_message must be True or False, got 1"):
        chat(messages=messages, continue_final_message=1)
    with pytest.raises(PromptError, match="alone answers nothing"):
        chat(messages=messages[1:], continue_final_message=True)
    with pytest.raises(PromptError, match=r"needs a conversation .*, this one ends in a user's"):
        chat(messages=[USER], continue_final_message=True)
    for more in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        with pytest.raises(
            UsageError, match=r"assistant's message|add_generation_prompt cannot be honoured"
        ):
            chat(messages=messages, **{"continue_final_message": True, **more})
    with pytest.raises(UsageError, match="add_generation_prompt cannot be honoured"):
        chat(messages=[USER], add_generation_prompt=False)
    with pytest.raises(UsageError, match="continue_final_message cannot be honoured"):
        text(continue_final_message=True)


def test_a_default_to_continue_is_for_those_that_end_so() -> None:
    defaults = replace(DEFAULTS, continue_final_message=True)
    begun = [USER, {"role": "assistant", "content": "Well, "}]
    for messages, continues in (([USER], False), (begun, True)):
        asked = parse_chat({"model": "m", "messages": messages}, defaults)
        assert asked.settings.continue_final_message is continues
    asked = parse_text({"model": "m", "prompt": "Hello"}, defaults)
    assert not asked.settings.continue_final_message


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [5], [1, 2], [[1, 2]], 5, "", " \n"])
def test_a_prompt_is_one_text(prompt: object) -> None:
    with pytest.raises(PromptError, match=r"prompt must be a text|the prompt is empty"):
        text(prompt=prompt)


def test_answers_are_the_complete_ones_that_were_not_rejected_best_first() -> None:
    assert [candidate.index for candidate in best_answers(five(), 9)] == [4, 0]
    assert best_answers(five(), 1) == [five().best]
    tied = result_of(answer(0, "a", 1.0), answer(1, "b", 1.0), answer(2, "c", 2.0), best=2)
    assert [candidate.index for candidate in best_answers(tied, 3)] == [2, 0, 1]


def test_a_chat_completion_holds_the_best_answers() -> None:
    assert body_of(chat(n=2), five()) == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 17,
        "model": "opened",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "better é", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "good", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            },
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 15, "total_tokens": 22},
        "specrej": {
            "rewards": [3.5, 2.0],
            "num_answers": 2,
            "num_candidates": 5,
            "generated_tokens": 90,
            "reward_tokens": 40,
            "seconds": 2.0,
            "seed": 3,
            "peak_kv_bytes": 640,
        },
    }


def test_a_text_completion_holds_texts() -> None:
    body = body_of(text(), five())
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "better é", "finish_reason": "stop", "logprobs": None}
    ]
    assert body["usage"]["completion_tokens"] == 10


def test_fewer_answers_than_asked_for_are_said() -> None:
    body = body_of(chat(n=4), five())
    assert (len(body["choices"]), body["specrej"]["num_answers"]) == (2, 2)


def test_an_answer_that_was_cut_off_says_so() -> None:
    cut_off = result_of(answer(0, "and so", 1.0, finish_reason="length"), best=0)
    assert body_of(chat(), cut_off)["choices"][0]["finish_reason"] == "length"


def test_more_is_returned_when_asked_for() -> None:
    own = body_of(chat(specrej={"return": ["rewards", "decisions", "candidates"]}), five())[
        "specrej"
    ]
    assert own["candidate_rewards"] == [2.0, -5.0, -9.0, -7.0, 3.5]
    assert [decision["rejected"] for decision in own["decisions"]] == [(3,), (1, 2)]
    assert own["candidates"] == [candidate.to_dict() for candidate in five().candidates]
    assert (
        body_of(chat(specrej={"return": ["rewards"]}), five())["specrej"].keys()
        & {"decisions", "candidates"}
        == set()
    )


def test_tokens_and_their_logprobs_make_up_the_answer() -> None:
    content = body_of(chat(logprobs=True), five())["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == [*"better ", "", "é"]
    assert [token["logprob"] for token in content] == [-0.5 - position for position in range(9)]
    assert [token["bytes"] for token in content][-2:] == [[], [0xC3, 0xA9]]
    assert all(token["top_logprobs"] == [] for token in content)


def test_logprobs_end_where_a_stop_string_begins() -> None:
    stopped = result_of(answer(0, "ab", 1.0, finish_reason="stop", token_ids=b"ab##"), best=0)
    content = body_of(chat(logprobs=True), stopped)["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == ["a", "b"]

    class Words:
        def add(self, token_id: int) -> Piece:
            return Piece(["x", "ab##c", "d"][token_id])

    within = result_of(answer(0, "xab", 1.0, finish_reason="stop", token_ids=[0, 1, 2]), best=0)
    body = to_body(
        chat(logprobs=True),
        within,
        completion_id="",
        created=0,
        model="",
        detokenizer=lambda _: Words(),
    )
    assert [token["token"] for token in body["choices"][0]["logprobs"]["content"]] == ["x", "ab"]


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(["", "a", "é", "b c"]))
def test_bodies_of_real_runs_hold_what_the_run_found(seed: int, n: int, stop: str) -> None:
    request = chat(
        n=n,
        seed=seed,
        max_tokens=24,
        logprobs=True,
        stop=stop or None,
        specrej={"n": 9, "top_k": 50},
    )
    options: dict[str, Any] = request.settings.to_dict()
    result = specrej.generate(request.prompt, model=FakeEngine(), reward=FakeReward(), **options)
    body = json.loads(json.dumps(body_of(request, result), allow_nan=False))
    assert body["choices"][0]["message"]["content"] == result.text
    assert body["specrej"]["rewards"] == sorted(body["specrej"]["rewards"], reverse=True)
    assert body["specrej"]["rewards"][0] == result.reward
    num_complete = sum(candidate.state == "complete" for candidate in result.candidates)
    assert len(body["choices"]) == body["specrej"]["num_answers"] == min(n, num_complete)
    for choice in body["choices"]:
        tokens = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
        assert (
            b"".join(bytes(token["bytes"]) for token in tokens).decode()
            == choice["message"]["content"]
        )


@pytest.mark.parametrize(
    "value",
    [
        "json_object",
        {"type": "json"},
        {"type": "json_object", "schema": {}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": [], "name": "a"}},
        {"type": "json_schema", "json_schema": {"schema": {}, "names": "a"}},
        {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
    ],
)
@pytest.mark.parametrize("parse", [chat, text])
def test_a_response_format_of_another_form_is_refused(parse: Any, value: object) -> None:
    with pytest.raises(UsageError, match=r"^response_format cannot be honoured, got"):
        parse(response_format=value)


@pytest.mark.parametrize("parse", [chat, text])
def test_a_response_format_is_a_schema_that_replaces_another_constraint(parse: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    whole = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    assert parse(response_format=whole).settings.json_schema == schema
    free = parse(response_format={"type": "json_object"})
    assert free.settings.json_schema == {"type": "object"}
    with pytest.raises(UsageError, match=r"^response_format must be left out beside specrej.regex"):
        parse(response_format=whole, specrej={"regex": "a"})
