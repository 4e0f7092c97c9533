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
    with pytest.raises(UsageError, match=f"{field} (cannot be honoured|must be a text)"):
        parse(**{field: ["something"]})


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert text(prompt=["Once"]) == text(prompt="Once")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", True),
        ("stream_options", {"include_usage": True}),
        ("store", True),
        ("top_a", 5),
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
    [
        *((chat, field) for field in ("prompt", "suffix", "echo", "best_of")),
        *((text, field) for field in ("messages", "top_logprobs", "max_completion_tokens")),
    ],
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
        ({"top_logprobs": 2}, "top_logprobs needs logprobs, which is not true"),
        ({"top_logprobs": 21, "logprobs": True}, "^top_logprobs must be from 0 to 20"),
        ({"presence_penalty": 2.5}, r"presence_penalty must be in \[-2, 2\]"),
        ({"frequency_penalty": "x"}, "frequency_penalty must be a number"),
        ({"logit_bias": [5]}, "logit_bias must be an object"),
        ({"logit_bias": {"a": 5}}, "logit_bias must name tokens by their ids, got 'a'"),
        ({"logit_bias": {"5": 101}}, "logit_bias must add from -100 to 100, got 101 for 5"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias must name each token once"),
        ({"top_k": -2}, "^top_k must be"),
        ({"top_k": 5, "specrej": {"top_k": 6}}, "^top_k and specrej.top_k are one setting"),
        ({"min_p": 1}, "^min_p must be"),
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
        ([{"role": "function", "content": "5"}], "role must be one of .*, got 'function'"),
        ([{"role": "tool", "content": "5"}], r"messages\[0\] is a tool's: no call"),
        ([{"role": ["user"], "content": "5"}], "role must be one of"),
        ([{"content": "5"}], "role must be one of .*, got None"),
        ([{**USER, "name": ["Ann"]}], r"messages\[0\].name must be a text, got"),
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


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (None, "prompt must be a text or token ids, got None"),
        ([], "prompt must be a text, token ids"),
        (5, "prompt must be a text or token ids, got 5"),
        ([None], "prompt must be a text or token ids, got None"),
        ([[]], r"prompt must be a text or token ids, got \[\]"),
        ([[[1]]], "prompt must be a text or token ids"),
        ([1.0], "prompt must be a text or token ids, got 1.0"),
        ([True], "prompt must be a text or token ids, got True"),
        ([-1], "prompt must be a text or token ids, got -1"),
        ([[1], [2**31]], r"prompt\[1\] must be a text or token ids"),
        ([1, -1], r"prompt\[0\] must be a text or token ids, got 1"),
        (["a", [1]], "prompt must be a list of one kind"),
        (["a", None], "prompt must be a list of one kind"),
        ([1, "a"], "prompt must be a list of one kind"),
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        (["a", " "], r"prompt\[1\]: the prompt is empty"),
        ([""], "the prompt is empty"),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_a_list_of_either(prompt: object, reason: str) -> None:
    with pytest.raises(PromptError, match=f"^{reason}"):
        text(prompt=prompt)


def test_a_list_of_texts_or_of_lists_of_ids_is_as_many_prompts() -> None:
    assert text(prompt=["a", "b", "a"]).prompts == ("a", "b", "a")
    for one, ids in (([[5, 6], [7]], [(5, 6), (7,)]), ([5, 6], [(5, 6)]), ([[5, 6]], [(5, 6)])):
        prompts: Any = text(prompt=one).prompts
        assert [prompt.token_ids for prompt in prompts] == ids
        assert set(prompts) == {""}


def test_best_of_is_the_number_of_candidates() -> None:
    assert text(best_of=6, n=2).settings.n == 6
    assert text(best_of=6, specrej={"n": 6}).settings.n == 6
    assert text(best_of=1, n=2).settings.n == DEFAULTS.n  # OpenAI's default: asks for nothing
    wrong: list[dict[str, Any]] = [
        {"best_of": 2, "n": 3},
        {"best_of": 4, "specrej": {"n": 5}},
        {"best_of": 4, "specrej": {"n": "auto"}},
        {"best_of": 2.0},
        {"best_of": "2"},
        {"best_of": 0},
    ]
    for fields in wrong:
        with pytest.raises(UsageError, match=r"^best_of "):
            text(**fields)


def test_an_echo_may_stand_alone() -> None:
    assert not text().has_echo
    assert text(echo=True).decodes
    alone = text(echo=True, max_tokens=0, logprobs=2)
    assert (alone.has_echo, alone.decodes, alone.has_logprobs, alone.settings.top_logprobs) == (
        *(True, False, True),
        2,
    )
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 0, "echo": False}, "max_tokens must be at least 1"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n must be 1 where max_tokens is 0"),
        ({"echo": 1}, "echo must be true or false"),
        ({"echo": True, "suffix": "."}, "echo cannot be honoured beside suffix"),
        ({"prompt": [1, 2], "suffix": "."}, "suffix cannot be honoured beside token ids"),
        ({"suffix": 5}, "suffix must be a text"),
        ({"logprobs": 21}, "logprobs must be a whole number from 0 to 20"),
        ({"logprobs": True}, "logprobs must be a whole number from 0 to 20"),
    ]
    for fields, reason in wrong:
        with pytest.raises(UsageError, match=f"^{reason}"):
            text(**fields)


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


def test_what_clients_of_vllm_put_beside_openais_fields_is_a_setting() -> None:
    own = {"top_k": 7, "min_p": 0.25, "repetition_penalty": 1.5}
    for parse in (chat, text):
        assert parse(**own) == parse(specrej=own) == parse(**own, specrej=own)
        assert parse(top_k=-1) == parse(specrej={"top_k": 0})


def test_logprobs_of_a_text_completion_are_a_number() -> None:
    for number in (0, 1, 5, 20):
        request = text(logprobs=number)
        assert (request.has_logprobs, request.settings.top_logprobs) == (True, number)
    assert not text().has_logprobs
    for wrong in (True, -1, 21, 1.5, "1"):
        with pytest.raises(UsageError, match="logprobs must be a whole number from 0 to 20"):
            text(logprobs=wrong)


def likely() -> Result:
    """Tokens of bytes, an é in two of them, with two likely ones in the place of each."""
    result = result_of(answer(0, "ab é", 1.0, token_ids="ab é".encode()), best=0)
    tops = [((98, -0.1), (97, -0.5)), ((98, -1.5), (99, -2.0))]
    tops += [((32, -2.5), (0xC3, -3.0)), ((0xC3, -3.5), (97, -4.0)), ((97, -1.0), (0xA9, -4.5))]
    result.best.top_logprobs += tops
    return result


def test_a_chat_holds_the_likeliest_tokens_in_each_place() -> None:
    content = body_of(chat(logprobs=True, top_logprobs=2), likely())["choices"][0]["logprobs"][
        "content"
    ]
    assert "".join(token["token"] for token in content) == "ab é"
    assert content[0]["top_logprobs"] == [
        {"token": "b", "logprob": -0.1, "bytes": [98]},
        {"token": "a", "logprob": -0.5, "bytes": [97]},
    ]
    assert content[3]["top_logprobs"][0] == {"token": "", "logprob": -3.5, "bytes": []}


def test_a_text_completion_holds_tokens_by_place() -> None:
    logprobs = body_of(text(logprobs=2), likely())["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", " ", "", "é"]
    assert logprobs["token_logprobs"] == [-0.5, -1.5, -2.5, -3.5, -4.5]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 3]
    assert logprobs["top_logprobs"] == [
        {"b": -0.1, "a": -0.5},
        {"b": -1.5, "c": -2.0},
        {" ": -2.5, "": -3.0},
        {"": -3.5, "a": -4.0},
        {"a": -1.0, "é": -4.5},
    ]
    bare = body_of(text(logprobs=0), result_of(answer(0, "ab", 1.0), best=0))
    assert bare["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}, {"b": -1.5}, {"": -2.5}]


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
