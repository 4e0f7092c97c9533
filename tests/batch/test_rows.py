"""Rows out: of both forms, of answers and of failures; each names its request."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import specrej
from answers import answer, decided, five, result_of
from fakes import ByteReader, FakeEngine, FakeReward, in_thirds, text_of
from specrej.batch.requests import BrokenRequest, Form, Request
from specrej.batch.rows import failure_of, row_id, row_of
from specrej.errors import DeviceMemoryError, PromptError, SpecrejError, UnknownNameError
from specrej.files.journal import Journal, read_rows
from specrej.search.choosing import lowest
from specrej.server.answering import to_body
from specrej.server.protocol import parse_chat, parse_text
from specrej.settings import Settings
from specrej.types import Prompt

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def plain(prompt: Prompt = "Hello", num_kept: int = 1) -> Request:
    return Request(
        id="a", prompt=prompt, settings=Settings(), num_kept=num_kept, line=3, form="plain"
    )


def openai(row: str = "a", **fields: Any) -> Request:
    body = {"model": "asked", **fields}
    asked = (parse_text if "prompt" in body else parse_chat)(body, Settings())
    return Request(
        id=row,
        prompt=asked.prompt,
        settings=asked.settings,
        num_kept=asked.num_answers,
        line=3,
        form="openai",
        completion=asked,
    )


BEST = {"text": "better é", "reward": 3.5, "num_tokens": 10, "finish_reason": "eos", "index": 4}
GOOD = {"text": "good", "reward": 2.0, "num_tokens": 5, "finish_reason": "stop", "index": 0}
WORST = {"text": "worst", "reward": -5.0, "num_tokens": 6, "finish_reason": "length", "index": 1}


def test_a_plain_row_holds_the_answer_and_what_it_cost() -> None:
    result = five()
    assert row_of(plain(), result, ByteReader) == {
        "id": "a",
        "prompt": "Hello",
        "text": "better é",
        "reward": 3.5,
        "answers": [BEST],
        "usage": result.usage.to_dict(),
        "num_candidates": 5,
        "num_decisions": 2,
        "seed": 3,
        "memory_bytes": 1024,
        "error": None,
    }


@pytest.mark.parametrize("votes", [{"42": 9.0, "41": 2.5}, {}])
def test_a_plain_row_holds_the_votes_where_there_was_a_vote(votes: dict[str, float]) -> None:
    row = json.loads(json.dumps(row_of(plain(), replace(five(), votes=votes), ByteReader)))
    assert row["votes"] == votes
    assert list(row["votes"]) == list(votes)
    assert "votes" not in row_of(plain(), five(), ByteReader)
    asked = openai(messages=MESSAGES, specrej={"return": ["run"]})
    body = row_of(asked, replace(five(), votes=votes), ByteReader)["response"]["body"]
    assert body["specrej"]["run"]["votes"] == votes


def test_a_conversation_comes_back_as_one() -> None:
    row = row_of(plain(MESSAGES), five(), ByteReader)
    assert row["messages"] == MESSAGES
    assert "prompt" not in row


def test_several_answers_come_with_the_lowest_that_finished() -> None:
    row = row_of(plain(num_kept=4), five(), ByteReader)
    assert row["answers"] == [BEST, GOOD]
    assert row["lowest"] == WORST
    assert row_of(plain(num_kept=2), five(), ByteReader)["lowest"] == WORST
    assert "lowest" not in row_of(plain(num_kept=1), five(), ByteReader)


def test_the_lowest_is_never_the_best() -> None:
    alike = result_of(answer(0, "a", 1.0), answer(1, "b", 1.0), best=0)
    assert row_of(plain(num_kept=2), alike, ByteReader)["lowest"]["index"] == 1
    alone = result_of(
        answer(0, "a", 1.0), answer(1, "b", 0.0, state="rejected", finish_reason=None), best=0
    )
    assert row_of(plain(num_kept=2), alone, ByteReader)["lowest"] is None


def test_an_answer_that_a_filter_took_out_has_no_reward_to_be_compared_by() -> None:
    """Its reward is that of a text which had not ended when it was scored."""
    ends = [answer(0, "a", 1.0), answer(1, "b", -1.0, state="rejected")]
    assert lowest(ends, [decided("filter", [1])]) is None
    assert lowest(ends, [decided("budget", [1])]) == ends[1]


@hypothesis_settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["speculative_rejection", "best_of_n"]),
    st.integers(1, 5),
    st.booleans(),
)
def test_rows_of_real_runs(seed: int, algorithm: str, num_kept: int, is_tied: bool) -> None:
    reward = FakeReward(in_thirds) if is_tied else FakeReward()
    result = specrej.generate(
        "Hello",
        model=FakeEngine(),
        reward=reward,
        n=8,
        max_new_tokens=24,
        seed=seed,
        algorithm=algorithm,
    )
    row = json.loads(
        json.dumps(row_of(plain(num_kept=num_kept), result, ByteReader), allow_nan=False)
    )
    rewards = [each["reward"] for each in row["answers"]]
    assert row["answers"][0]["index"] == result.best.index
    assert (row["text"], row["reward"]) == (result.text, result.reward)
    assert rewards == sorted(rewards, reverse=True)
    assert len(rewards) == min(
        num_kept, sum(candidate.state == "complete" for candidate in result.candidates)
    )
    finished = {c.index: c for c in result.candidates if c.finish_reason is not None}
    if num_kept > 1 and len(finished) > 1:
        lowest = finished[row["lowest"]["index"]]
        assert lowest.index != result.best.index
        assert lowest.reward == min(c.reward for c in finished.values() if c.reward is not None)
        assert row["lowest"]["text"] == text_of(lowest.token_ids)
    elif num_kept > 1:
        assert row["lowest"] is None


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        ({"messages": MESSAGES, "n": 2, "logprobs": True}, "chatcmpl-"),
        ({"prompt": "Hello"}, "cmpl-"),
    ],
)
def test_a_row_in_openais_form_holds_the_completion(fields: dict[str, Any], prefix: str) -> None:
    request = openai(**fields)
    row = row_of(request, five(), ByteReader)
    body = row["response"]["body"]
    number = body["id"].removeprefix(prefix)
    assert len(number) == 24
    assert row == {
        "id": f"batch_req_{number}",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": f"req_{number}", "body": body},
        "error": None,
    }
    assert request.completion is not None
    assert body == to_body(
        request.completion,
        five(),
        completion_id=prefix + number,
        created=0,
        model="bytes",
        detokenizer=ByteReader,
    )


def test_a_row_is_a_function_of_request_and_result() -> None:
    assert row_of(openai(prompt="Hello"), five(), ByteReader) == row_of(
        openai(prompt="Hello"), five(), ByteReader
    )
    other = row_of(openai("b", prompt="Hello"), five(), ByteReader)
    assert other["id"] != row_of(openai(prompt="a"), five(), ByteReader)["id"]


def test_a_request_that_failed_says_why() -> None:
    error = PromptError("too long", hint="shorten it")
    assert failure_of(plain(), error) == {
        "id": "a",
        "prompt": "Hello",
        "text": None,
        "reward": None,
        "answers": [],
        "error": {"kind": "prompt_error", "message": "too long", "hint": "shorten it"},
        "line": 3,
    }
    failure = failure_of(openai(prompt="Hello"), error)
    assert failure == {
        "id": row_of(openai(prompt="Hello"), five(), ByteReader)["id"],
        "custom_id": "a",
        "response": None,
        "error": {"code": "prompt_error", "message": "too long; shorten it"},
    }


def test_a_broken_row_has_no_prompt_to_show() -> None:
    error = UnknownNameError("model", "x", ["y"])
    broken = BrokenRequest(id="line-3", line=3, error=error, form="plain")
    row = failure_of(broken, broken.error)
    assert (row["id"], row["error"]["kind"], row["line"]) == ("line-3", "unknown_name_error", 3)
    assert not {"prompt", "messages"} & row.keys()


@pytest.mark.parametrize(
    ("error", "name"),
    [(SpecrejError("a"), "specrej_error"), (DeviceMemoryError("a"), "device_memory_error")],
)
def test_an_error_is_called_by_its_class(error: SpecrejError, name: str) -> None:
    assert failure_of(plain(), error)["error"] == {"kind": name, "message": "a", "hint": None}
    assert failure_of(openai(prompt="a"), error)["error"] == {"code": name, "message": "a"}


@pytest.mark.parametrize("form", ["plain", "openai"])
def test_every_row_names_its_request_when_it_is_read_again(tmp_path: Path, form: Form) -> None:
    broken = BrokenRequest(id="line-3", line=3, error=PromptError("é"), form=form)
    request = plain() if form == "plain" else openai(prompt="Hello")
    with Journal(tmp_path / "out.jsonl") as journal:
        journal.append(row_of(request, five(), ByteReader))
        journal.append(failure_of(request, PromptError("é")))
        journal.append(failure_of(broken, broken.error))
    assert [row_id(row) for row in read_rows(tmp_path / "out.jsonl")] == ["a", "a", "line-3"]
