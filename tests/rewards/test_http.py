"""Rewards of our protocol and of vLLM's, against a real server in a thread that plays them."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine
from servers import Server, record_waits, serving
from specrej.api import Interrupted
from specrej.errors import RewardError, UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import BatchedReward, Reward
from specrej.rewards.http import (
    HttpReward,
    VllmReward,
    parse_http,
    parse_vllm_classify,
    parse_vllm_pooling,
)
from specrej.rewards.together import score_together
from specrej.types import Candidate

KEY = "sk-very-secret"
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
ANSWERS = [
    Candidate(index=3, text="a"),
    Candidate(index=5, text="bb", finish_reason="eos"),
    Candidate(index=9, text="", finish_reason="length"),
]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.answer = lambda request: {
            "scores": [len(answer["text"]) for answer in request["answers"]]
        }
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


def score(reward: Reward, candidates: list[Candidate] = ANSWERS) -> tuple[list[float], int]:
    session = reward.open(PROMPT)
    try:
        return list(session.score(candidates)), session.num_tokens
    finally:
        session.close()


def names_of_new_threads(before: set[threading.Thread]) -> set[str]:
    return {thread.name for thread in set(threading.enumerate()) - before}


def failure(reward: Reward) -> RewardError:
    with pytest.raises(RewardError) as caught:
        score(reward)
    return caught.value


def test_the_protocol(server: Server) -> None:
    server.answer = lambda request: {"scores": [1, -2.5, 0], "num_tokens": 17}
    assert score(HttpReward(f"{server.url}/score?kind=a", api_key=KEY)) == ([1.0, -2.5, 0.0], 17)
    assert server.requests == [
        {
            "messages": PROMPT,
            "answers": [
                {"index": 3, "text": "a", "is_complete": False},
                {"index": 5, "text": "bb", "is_complete": True},
                {"index": 9, "text": "", "is_complete": True},
            ],
        }
    ]
    assert (server.paths, server.keys) == ({"/score?kind=a"}, {f"Bearer {KEY}"})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 7), st.integers(1, 4))
def test_batches_come_back_in_order(lengths: list[int], batch_size: int, concurrency: int) -> None:
    candidates = [
        Candidate(index=2 * number, text="x" * length) for number, length in enumerate(lengths)
    ]
    with serving() as server:
        server.answer = lambda request: {
            "scores": [len(answer["text"]) for answer in request["answers"]],
            "num_tokens": len(request["answers"]),
        }
        reward = HttpReward(server.url, batch_size=batch_size, concurrency=concurrency)
        assert score(reward, candidates) == ([float(length) for length in lengths], len(lengths))
        sizes = [len(request["answers"]) for request in server.requests]
        indices = [answer["index"] for request in server.requests for answer in request["answers"]]
    assert len(sizes) == math.ceil(len(lengths) / batch_size)
    assert all(size == batch_size for size in sorted(sizes)[1:])
    assert sorted(indices) == [candidate.index for candidate in candidates]
    assert server.most_running <= concurrency


def test_tokens_add_up_over_decisions_and_are_0_where_nobody_counts(server: Server) -> None:
    counts = iter([5, 7, None, "many", -1, 1.5, float("inf")])
    server.answer = lambda request: {"scores": [1], "num_tokens": next(counts)}
    session = HttpReward(server.url).open(PROMPT)
    totals = []
    for _ in range(7):
        session.score(ANSWERS[:1])
        totals.append(session.num_tokens)
    session.close()
    assert totals == [5, 12, 12, 12, 12, 13, 13]


@pytest.mark.parametrize(("count", "culprit"), [(0, 3), (1, 5), (2, 9), (4, 9)])
def test_a_wrong_count_names_where_they_part_ways(server: Server, count: int, culprit: int) -> None:
    server.answer = lambda request: {"scores": [1.0] * count}
    expected = f"gave {count} scores for 3 candidates; they part ways at candidate {culprit}"
    assert expected in str(failure(HttpReward(server.url)))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, None, "0.5", True, [1.0], {}, 10**400]
)
def test_what_is_no_finite_number_is_named_with_its_candidate(server: Server, value: Any) -> None:
    server.answer = lambda request: {"scores": [1, value, value]}
    error = str(failure(HttpReward(server.url)))
    assert "for candidate 5, not a finite number" in error
    assert len(error) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"1",
        b"null",
        b"{}",
        b'{"scores": null}',
        b'{"scores": "123"}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_body_of_another_form_names_the_candidates(server: Server, body: bytes) -> None:
    server.answer = lambda request: (200, {}, body)
    error = str(failure(HttpReward(server.url)))
    assert f"the reward 'http:{server.url}' failed on candidates [3, 5, 9]: its reply is " in error
    assert len(error) < 400
    assert "failed on candidate 3: its reply is" in str(
        failure(HttpReward(server.url, batch_size=1, concurrency=1))
    )


def test_a_busy_server_is_waited_for(server: Server, waits: list[float]) -> None:
    replies: Iterator[Any] = iter(
        [(429, {"Retry-After": "5"}, b""), (500, {}, b""), {"scores": [1, 2, 3]}]
    )
    server.answer = lambda request: next(replies)
    assert score(HttpReward(server.url)) == ([1.0, 2.0, 3.0], 0)
    assert 5.5 <= waits[0] <= 6


def test_a_server_that_stays_broken_names_the_candidate(server: Server) -> None:
    def answer(request: dict[str, Any]) -> Any:
        return (
            (500, {}, f"no {KEY}".encode())
            if request["answers"][0]["index"] == 5
            else {"scores": [1]}
        )

    server.answer = answer
    error = str(failure(HttpReward(server.url, batch_size=1, api_key=KEY, tries=3)))
    assert error.endswith("failed on candidate 5: after 3 tries: status 500: 'no ***'")


def test_a_server_that_hangs_is_ended_by_the_timeout(server: Server) -> None:
    release = threading.Event()
    server.answer = lambda request: release.wait(120)
    error = str(
        failure(HttpReward(server.url, batch_size=1, timeout_s=0.05, tries=2, concurrency=1))
    )
    release.set()
    assert error.endswith("failed on candidate 3: after 2 tries: no reply within 0.05 s")


def test_a_server_that_is_not_there() -> None:
    error = failure(HttpReward("http://127.0.0.1:1"))
    assert "failed on candidates [3, 5, 9]: cannot be reached" in str(error)
    assert error.hint == "check the URL"


def test_classify_asks_for_the_logits_of_the_conversation(server: Server) -> None:
    server.answer = lambda request: {
        "data": [
            {"index": 0, "label": "LABEL_0", "probs": [len(request["messages"][-1]["content"])]}
        ],
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    reward = VllmReward(f"{server.url}/", "org/rm", api_key=KEY)
    assert reward.name == f"vllm-classify:{server.url}/#org/rm"
    assert score(reward) == ([1.0, 2.0, 0.0], 33)
    assert (server.paths, server.keys) == ({"/classify"}, {f"Bearer {KEY}"})
    assert sorted(server.requests, key=lambda request: len(request["messages"][-1]["content"])) == [
        {
            "model": "org/rm",
            "messages": [*PROMPT, {"role": "assistant", "content": text}],
            "use_activation": False,
        }
        for text in ("", "a", "bb")
    ]


@pytest.mark.parametrize("data", [[7.5], [[1.0], [2.0], [7.5]], [[7.5]]])
def test_pooling_gives_the_sequences_number_or_the_last_tokens(server: Server, data: Any) -> None:
    server.answer = lambda request: {"data": [{"index": 0, "object": "pooling", "data": data}]}
    assert score(VllmReward(server.url, "rm", endpoint="pooling")) == ([7.5] * 3, 0)
    assert server.paths == {"/pooling"}


def test_an_output_is_chosen_by_number(server: Server) -> None:
    server.answer = lambda request: {"data": [{"probs": [0.1, 0.2, 0.3]}]}
    assert score(VllmReward(server.url, "rm", output=2))[0] == [0.3] * 3
    error = failure(VllmReward(server.url, "rm", concurrency=1))
    assert "failed on candidate 3: the model gives 3 numbers" in str(error)
    assert "output=NUMBER" in str(error.hint)
    assert "none with the number 3" in str(failure(VllmReward(server.url, "rm", output=3)))


def test_an_open_turn_is_asked_for_while_the_answer_is_unfinished(server: Server) -> None:
    server.answer = lambda request: {"data": [{"probs": [1]}]}
    score(VllmReward(server.url, "rm", partial="open"))
    is_open = {
        request["messages"][-1]["content"]: request.get("continue_final_message", False)
        for request in server.requests
    }
    assert is_open == {"a": True, "bb": False, "": False}


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"data": []},
        {"data": [{}]},
        {"data": [{"probs": "1", "data": "1"}]},
        {"data": [{"data": 1.0}] * 2},
    ],
)
def test_a_reply_without_scores_names_the_candidate(
    server: Server, endpoint: Any, reply: Any
) -> None:
    server.answer = lambda request: reply
    reward = VllmReward(server.url, "rm", endpoint=endpoint, concurrency=1)
    assert "failed on candidate 3: its reply holds no scores" in str(failure(reward))


@pytest.mark.parametrize("outputs", [[], ["1"], [None], [math.nan]])
def test_outputs_are_checked_as_scores_are(server: Server, outputs: list[Any]) -> None:
    server.answer = lambda request: {"data": [{"probs": outputs}]}
    assert "candidate 3" in str(failure(VllmReward(server.url, "rm", concurrency=1)))


def meeting(
    num_requests: int, answer: Callable[[dict[str, Any]], Any]
) -> Callable[[dict[str, Any]], Any]:
    """Answers when so many requests are there at once."""
    barrier = threading.Barrier(num_requests)

    def wait(request: dict[str, Any]) -> Any:
        barrier.wait(timeout=120)
        return answer(request)

    return wait


@pytest.mark.parametrize("endpoint", ["http", "vllm"])
def test_prompts_that_are_due_together_are_asked_about_at_once(
    server: Server, endpoint: str
) -> None:
    reward: BatchedReward = HttpReward(server.url)
    sizes = [3, 1, 2]
    tokens = [7, 7, 7]
    answer = server.answer
    server.answer = meeting(3, lambda request: {**answer(request), "num_tokens": 7})
    expected = [[1.0, 2.0, 0.0], [1.0], [1.0, 2.0]]
    if endpoint == "vllm":
        reward, tokens = VllmReward(server.url, "some-model"), [33, 11, 22]
        server.answer = meeting(6, classified)
    sessions = [reward.open(PROMPT) for _ in sizes]
    outcomes = score_together(
        reward, [(s, ANSWERS[:size]) for s, size in zip(sessions, sizes, strict=True)]
    )
    assert outcomes == expected
    assert [session.num_tokens for session in sessions] == tokens
    for session in sessions:
        session.close()


def classified(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": [{"probs": [len(request["messages"][-1]["content"])]}],
        "usage": {"prompt_tokens": 11},
    }


def test_the_limit_of_a_service_holds_for_all_prompts_together(server: Server) -> None:
    reward = HttpReward(server.url, batch_size=1, concurrency=2)
    sessions = [reward.open(PROMPT) for _ in range(3)]
    answer = server.answer
    server.answer = meeting(2, answer)
    assert (
        score_together(reward, [(session, ANSWERS[:2]) for session in sessions]) == [[1.0, 2.0]] * 3
    )
    assert server.most_running == 2
    for session in sessions:
        session.close()


def test_a_prompt_on_which_the_server_fails_fails_alone_and_the_others_are_asked_once(
    server: Server,
) -> None:
    answer = server.answer

    def refuse(request: dict[str, Any]) -> Any:
        if request["messages"] != PROMPT:
            return 400, {}, b"no such prompt"
        return answer(request)

    server.answer = refuse
    reward = HttpReward(server.url)
    sessions = [reward.open(messages) for messages in (PROMPT, PROMPT[1:], PROMPT)]
    one, other, another = score_together(reward, [(session, ANSWERS) for session in sessions])
    assert (one, another) == ([1.0, 2.0, 0.0], [1.0, 2.0, 0.0])
    assert isinstance(other, RewardError)
    assert "failed on candidates [3, 5, 9]: status 400" in str(other)
    assert len(server.requests) == 3
    for session in sessions:
        session.close()


def test_spec_strings_of_http(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    url = f"{server.url}/score?a=1&b=2"
    assert score(parse_http(url))[0] == [1.0, 2.0, 0.0]
    assert len(server.requests) == 1
    reward = as_reward(f"http:{url}#?batch_size=2&timeout_s=7&concurrency=3&tries=4&key_env=MINE")
    assert isinstance(reward, HttpReward)
    assert score(reward)[0] == [1.0, 2.0, 0.0]
    assert len(server.requests) == 3
    assert (server.paths, server.keys) == ({"/score?a=1&b=2"}, {None, f"Bearer {KEY}"})
    service = reward._service
    assert (service.timeout_s, service.concurrency, service.tries) == (7.0, 3, 4)


def test_spec_strings_of_vllm(server: Server) -> None:
    server.answer = lambda request: {"data": [{"probs": [1, 2], "data": [3, 4]}]}
    assert score(parse_vllm_classify(f"{server.url}#org/rm?output=1&partial=open"))[0] == [2.0] * 3
    assert score(parse_vllm_pooling(f"{server.url}#org/rm?output=1"))[0] == [4.0] * 3
    assert {request["model"] for request in server.requests} == {"org/rm"}
    assert [request.get("continue_final_message") for request in server.requests].count(True) == 1
    assert (
        as_reward(f"vllm-pooling:{server.url}#rm?output=1").name == f"vllm-pooling:{server.url}#rm"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "http",
        "http:",
        "http:localhost:9000",
        "http:ftp://host/score",
        "http:http://",
        "http:http://h#batch_size=3",
        "http:http://h#?batch_size=0",
        "http:http://h#?batch_size=many",
        "http:http://h#?batch=3",
        "http:http://h#?timeout_s=0",
        "http:http://h#?key_env=NOBODY_SETS_THIS",
        "vllm-classify",
        "vllm-classify:http://h",
        "vllm-classify:http://h#?output=1",
        "vllm-classify:h#rm",
        "vllm-pooling:http://h#rm?output=-1",
        "vllm-pooling:http://h#rm?partial=half",
        "vllm-pooling:http://h#rm?batch_size=2",
    ],
)
def test_specs_of_another_form_are_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_reward(spec)
    assert not isinstance(caught.value, UnknownNameError) or "option" in str(caught.value)


@pytest.mark.parametrize("scheme", ["http://", "https://", "", "ftp://"])
def test_secrets_of_the_url_are_not_shown(scheme: str) -> None:
    url = f"{scheme}user:{KEY}@host/a@b?token={KEY}"
    try:
        shown = HttpReward(url).name
    except UsageError as error:
        shown = str(error)
    assert KEY not in shown
    assert "host/a@b" in shown


def test_through_generate(server: Server) -> None:
    server.answer = lambda request: {
        "scores": [answer["text"].count("a") for answer in request["answers"]],
        "num_tokens": 10 * len(request["answers"]),
    }
    reward = f"http:{server.url}#?batch_size=3"
    result = specrej.generate(
        "Hi", model=FakeEngine(), reward=reward, n=8, decide="every:5", max_new_tokens=30
    )
    assert result.reward == result.text.count("a") > 0
    assert result.usage.reward_tokens == 10 * sum(
        len(decision.scored) for decision in result.decisions
    )
    assert result.settings["reward"] == f"http:{server.url}"
    assert {
        answer["is_complete"] for request in server.requests for answer in request["answers"]
    } == {True, False}
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Hi"}]


def test_a_failure_ends_generate(server: Server) -> None:
    server.answer = lambda request: {"scores": [None] * len(request["answers"])}
    before = set(threading.enumerate())
    with closing(HttpReward(server.url)) as reward, pytest.raises(RewardError) as caught:
        specrej.generate("Hi", model=FakeEngine(), reward=reward, n=4)
    assert "gave 'null' for candidate 0" in str(caught.value)
    assert "specrej-remote" not in names_of_new_threads(before)


def test_ctrl_c_ends_generate_and_keeps_what_there_is(server: Server) -> None:
    ended, outcomes = threading.Event(), []

    def answer(request: dict[str, Any]) -> Any:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        outcomes.append(ended.wait(120))

    server.answer = answer
    before = set(threading.enumerate())
    with closing(HttpReward(server.url)) as reward, pytest.raises(Interrupted) as caught:
        specrej.generate("Hi", model=FakeEngine(), reward=reward, n=4)
    ended.set()
    assert caught.value.result is not None
    assert "specrej-remote" not in names_of_new_threads(before)
    while not outcomes:
        threading.Event().wait(0.01)
    assert outcomes == [True]
