"""A judge that ranks a group, against a real server in a thread that plays the endpoint."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine
from servers import Server, completion, record_waits, serving
from specrej.errors import RewardError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import Reward, is_relative
from specrej.rewards.group_judge import RankingReward, ranking_rubric, read_ranking
from specrej.rewards.together import score_together
from specrej.testing import RewardSuite
from specrej.types import Candidate, Message

KEY = "sk-very-secret"
PROMPT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
]
_ANSWER = re.compile(r"<answer (\d+)(, unfinished,)? (\w+)>\n(.*?)\n</answer \1\2? \3>", re.DOTALL)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(completion) as server:
        server.answer = longest_first
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


def shown(request: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """The answers that a request shows by label, with whether they are complete."""
    found = _ANSWER.finditer(request["messages"][1]["content"])
    return {int(one[1]): (one[4], one[2] is None) for one in found}


def longest_first(request: dict[str, Any]) -> str:
    answers = shown(request)
    return json.dumps({"ranking": sorted(answers, key=lambda one: -len(answers[one][0]))})


def candidate(index: int, text: str, *, is_complete: bool = False) -> Candidate:
    return Candidate(index=index, text=text, finish_reason="eos" if is_complete else None)


def ranker(server: Server, **options: Any) -> RankingReward:
    return RankingReward("some-judge", **{"base_url": f"{server.url}/v1", "api_key": KEY} | options)


def test_a_group_is_one_request(server: Server) -> None:
    session = ranker(server).open(PROMPT)
    batch = [candidate(7, "ab"), candidate(4, "abcd", is_complete=True), candidate(2, "a")]
    assert session.score(batch) == [0.5, 1.0, 0.0]
    [request] = server.requests
    assert sorted(shown(request).values()) == [("a", False), ("ab", False), ("abcd", True)]
    assert request["temperature"] == 0
    instruction, asked = (message["content"] for message in request["messages"])
    assert "each number from 1 to 3 once" in instruction
    assert "how helpful, correct" in instruction
    assert "Be brief." in asked
    assert (session.num_comparisons, session.num_tokens) == (1, 103)
    session.close()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=9))
def test_scores_are_shares_of_the_others(texts: list[str]) -> None:
    """By brute force, with equal texts that share a place."""
    with serving(completion) as server:
        server.answer = lambda request: json.dumps(
            {"ranking": sorted(shown(request), key=lambda label: shown(request)[label][0])}
        )
        batch = [candidate(index, text) for index, text in enumerate(texts)]
        reward = ranker(server)
        session = reward.open(PROMPT)
        found = session.score(batch)
        again = session.score(batch[::-1])[::-1]
        session.close()
        reward.close()
    for place, text in enumerate(texts):
        others = texts[:place] + texts[place + 1 :]
        won = sum(1.0 if text < other else 0.5 if text == other else 0.0 for other in others)
        assert found[place] == pytest.approx(won / len(others) if others else 0.5)
    assert again == found
    assert len(server.requests) == (1 if len(set(texts)) > 1 else 0)


def test_those_who_are_left_are_not_asked_about_again(server: Server) -> None:
    session = ranker(server).open(PROMPT)
    batch = [candidate(0, "aaa"), candidate(1, "a"), candidate(2, "aa"), candidate(3, "")]
    assert session.score(batch) == pytest.approx([1, 1 / 3, 2 / 3, 0])
    session.drop([0, 3])
    assert session.score(batch[1:3]) == [0.0, 1.0]
    assert len(server.requests) == 1
    batch[1].finish_reason = "eos"  # the judge is told so
    assert session.score(batch[1:3]) == [0.0, 1.0]
    assert len(server.requests) == 2
    session.close()


def test_prompts_are_ranked_side_by_side(server: Server) -> None:
    reward = ranker(server)
    sessions = [reward.open(PROMPT), reward.open(PROMPT[1:])]
    batches = [[candidate(0, "a"), candidate(1, "bb")], [candidate(0, "ccc"), candidate(1, "d")]]
    asked = list(zip(sessions, batches, strict=True))
    assert score_together(reward, asked) == [[0.0, 1.0], [1.0, 0.0]]
    assert len(server.requests) == 2
    reward.close()


@pytest.mark.parametrize(
    ("text", "ranking"),
    [
        ('{"ranking": [2, 1, 3]}', [2, 1, 3]),
        ('{"ranking": ["2", "[1]", " 3"], "why": "so"}', [2, 1, 3]),
        ('```json\n{"ranking": [3, 2, 1]}\n```', [3, 2, 1]),
        ('<think>{"ranking": [1, 2, 3]}</think>\n{"ranking": [3, 2, 1]}.', [3, 2, 1]),
        ('{"ranking": [2, 1]}', None),
        ('{"ranking": [2, 1, 3, 3]}', None),
        ('{"ranking": [0, 1, 2]}', None),
        ('{"ranking": [1, 2, 4]}', None),
        ('{"ranking": [1.0, 2, 3]}', None),
        ('{"ranking": [true, 2, 3]}', None),
        ('{"ranking": [null, [2], {}]}', None),
        ('{"ranking": "2 > 1 > 3"}', None),
        ('{"ranking": ["1", "2", "²"]}', None),
        ('{"order": [2, 1, 3]}', None),
        ("2 > 1 > 3", None),
        ("", None),
        ("[2, 1, 3]", None),
        ('{"ranking": [' + "9" * 5000 + ", 1, 2]}", None),
    ],
)
def test_rankings_that_can_be_read(text: str, ranking: list[int] | None) -> None:
    assert read_ranking(text, 3) == ranking


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_no_text_can_close_its_mark(question: str, texts: list[str]) -> None:
    messages: list[Message] = [{"role": "user", "content": question}]
    answers = [(text, bool(place % 2)) for place, text in enumerate(texts)]
    system, user = ranking_rubric(messages, answers, "x")
    mark = user["content"].split()[1].rstrip(">")
    assert len(mark) == 16
    assert system["content"].count(mark) == 1
    assert user["content"].count(mark) == 2 * (2 + len(texts))


def test_what_cannot_be_read_is_asked_for_again_once_and_then_a_failure(server: Server) -> None:
    server.answer = lambda request: '{"ranking": [1, 1]}'
    session = ranker(server).open(PROMPT)
    with pytest.raises(RewardError, match=r"failed on candidates \[3, 5\]: no \{\"ranking\""):
        session.score([candidate(3, "a"), candidate(5, "b")])
    assert len(server.requests) == session.num_comparisons == 2
    replies: Iterator[str] = iter(["hm", '{"ranking": [2, 1]}'])
    server.answer = lambda request: next(replies)
    assert sorted(session.score([candidate(3, "a"), candidate(5, "b")])) == [0.0, 1.0]
    assert session.num_tokens == 206
    session.close()


def test_specs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = as_reward(f"ranking:{server.url}/v1#org/judge:free?criteria=how%20brief&timeout_s=9")
    assert reward.name == f"ranking:{server.url}/v1#org/judge:free"
    assert is_relative(reward)
    assert reward.flops_per_token is None
    reward.open(PROMPT).score([candidate(0, "a"), candidate(1, "")])
    assert "What counts: how brief." in server.requests[0]["messages"][0]["content"]
    assert server.requests[0]["model"] == "org/judge:free"
    reward.close()
    assert as_reward("ranking:some-model").name == "ranking:some-model"
    for spec in ("ranking", "ranking:http://h/v1", "ranking:h/v1#m", "ranking:m?colour=red"):
        with pytest.raises(UsageError, match=r"ranking|URL|colour"):
            as_reward(spec)


def test_a_ranked_run_ends_with_the_judges_best(server: Server) -> None:
    """The judge's order is a total one, so the answer is the longest text that was not rejected."""
    asked: Callable[[dict[str, Any]], str] = longest_first
    server.answer = asked
    result = specrej.generate(
        "What?",
        engine=FakeEngine(),
        reward=ranker(server),
        n=8,
        decide="at:6,12",
        max_new_tokens=24,
    )
    complete = [one for one in result.candidates if one.state == "complete"]
    assert len(result.text) == max(len(one.text) for one in complete)
    assert result.usage.reward_comparisons == len(server.requests)
    assert result.usage.reward_tokens == 103 * len(server.requests)


class TestRanking(RewardSuite):
    @pytest.fixture
    def reward(self, server: Server) -> Iterator[Reward]:
        reward = ranker(server)
        yield reward
        reward.close()

    @pytest.fixture
    def opening(self, server: Server) -> Callable[[], Reward]:
        return lambda: ranker(server)
