"""/v1/score: the reward of answers that are given, as the searches have it."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from live import ForgetfulReward, serving

import specrej
from endpoint import DEFAULTS, fake_service, live, until
from fakes import FakeEngine, FakeReward, by_hash
from specrej.errors import UsageError
from specrej.rewards.pairwise import FunctionComparer, PairwiseReward
from specrej.server.asked import Limits
from specrej.server.score import parse_score

ANSWERS = ["Air.", "", "é" * 20, "Air."]
ASKED: Any = {"model": "bytes", "prompt": "Why?", "answers": ANSWERS}
PATH = "/v1/score"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service(), limits=Limits(candidates=8, new_tokens=64)) as url:
        yield url


def test_answers_are_scored_in_their_order(url: str) -> None:
    body = httpx.post(url + PATH, json=ASKED).json()
    assert [one["score"] for one in body["data"]] == [by_hash(text) for text in ANSWERS]
    assert [one["index"] for one in body["data"]] == [0, 1, 2, 3]
    assert {one["object"] for one in body["data"]} == {"score"}
    assert (body["object"], body["model"], body["id"][:6]) == ("list", "bytes", "score-")
    usage = body["usage"]
    assert usage.pop("seconds") >= 0
    assert set(usage.values()) == {sum(len(text) for text in ANSWERS)}


@pytest.mark.parametrize(
    "form",
    [
        {"prompt": "Why?", "answers": ANSWERS},
        {"messages": [{"role": "user", "content": "Why?"}], "answers": ANSWERS},
        {"text_1": "Why?", "text_2": ANSWERS},
        {"text_1": "Why?", "text_2": ANSWERS, "user": "somebody", "answers": None},
    ],
)
def test_all_forms_are_answered_alike(url: str, form: dict[str, Any]) -> None:
    def asked(body: dict[str, Any]) -> Any:
        return httpx.post(url + PATH, json={"model": "bytes", **body}).json()["data"]

    assert asked(form) == asked(ASKED)
    assert asked({"text_1": "Why?", "text_2": "Air."}) == asked(ASKED)[:1]


def test_a_reward_that_compares_does_so_within_a_request() -> None:
    longer = FunctionComparer(lambda prompt, a, b: float(len(a) > len(b)))
    with live(fake_service(reward=PairwiseReward(longer))) as url:
        told = httpx.post(url + PATH, json={**ASKED, "answers": ["abc", "a", "ab"]}).json()["data"]
        asked = {"model": "bytes", "messages": [{"role": "user", "content": "Why?"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked).json()
    assert [one["score"] for one in told] == [1.0, 0.0, 0.5]
    assert answer["specrej"]["is_relative"] is True
    assert "say nothing beside those of another" in answer["specrej"]["note"]


@hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_searchs_answers_have_the_rewards_that_it_gave_them(seed: int) -> None:
    """With a reward that sees the prompt and the beginning of the answer."""
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Well, "}]
    options: dict[str, Any] = {**DEFAULTS.to_dict(), "continue_final_message": True, "seed": seed}
    options["algorithm"] = "best_of_n"
    result = specrej.generate(messages, model=FakeEngine(), reward=FakeReward(), **options)
    complete = [one for one in result.candidates if one.state == "complete"]
    with live(fake_service()) as url:
        body = {"model": "bytes", "messages": messages, "answers": [one.text for one in complete]}
        told = httpx.post(url + PATH, json=body).json()["data"]
    assert [one["score"] for one in told] == [one.reward for one in complete]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answers": []}, "^answers must be 1 to 8 texts on this server, got 0"),
        ({"answers": ["a"] * 9}, "^answers must be 1 to 8 texts on this server, got 9"),
        ({"answers": "a"}, "^answers must be a list of texts"),
        ({"answers": ["a", 5]}, "^answers must be a list of texts"),
        ({"prompt": ["a", "b"]}, "^prompt must be a text"),
        ({"prompt": " "}, "^the prompt is empty"),
        ({"prompt": None}, "^the body must have a prompt and answers, got answers, model"),
        ({"answers": None}, "^the body must have a prompt and answers"),
        ({"text_1": "a"}, "^the body must have a prompt and answers"),
        ({"messages": "a", "prompt": None}, "^messages must be a list of messages"),
        ({"model": 5}, "^model must be a text"),
        ({"stream": True}, "^stream cannot be honoured"),
        ({"truncate_prompt_tokens": 5}, "^truncate_prompt_tokens cannot be honoured"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_score({**ASKED, **fields}, 8)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"answers": ["x" * 5000]}, 400, "invalid_value"),
        ({"prompt": "x" * 50_000}, 400, "invalid_value"),
        ({"answers": ["\ud800"]}, 400, "invalid_value"),
        ({"model": "gpt"}, 404, "model_not_found"),
    ],
)
def test_more_than_there_may_be_is_refused(
    url: str, fields: dict[str, Any], status: int, code: str
) -> None:
    content, headers = json.dumps({**ASKED, **fields}), {"Content-Type": "application/json"}
    response = httpx.post(url + PATH, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def raising(error: BaseException) -> Callable[[str], float]:
    def rate(text: str) -> float:
        if text == "bad":
            raise error
        return 1.0

    return rate


@pytest.mark.parametrize(
    "rate",
    [
        raising(ValueError("no idea")),
        raising(SystemExit()),
        raising(KeyboardInterrupt()),
        lambda text: math.nan if text == "bad" else 1.0,
        lambda text: math.inf if text == "bad" else 1.0,
    ],
)
def test_a_reward_that_fails_fails_its_request_only(rate: Any) -> None:
    async def go() -> None:
        reward = ForgetfulReward(rate)
        async with serving(FakeEngine(), reward) as served:
            asked = [{"prompt": "Why?", "answers": [text]} for text in ("good", "bad", "good")]
            answers = await asyncio.gather(*(served.ask(body, PATH) for body in asked))
            assert [answer.status_code for answer in answers] == [200, 500, 200]
            assert answers[1].json()["error"]["code"] == "reward_failed"

    asyncio.run(go())


def test_what_a_filter_rejects_has_no_score() -> None:
    reward = FakeReward(lambda text: -math.inf if text == "" else 2.0)
    with live(fake_service(reward=reward)) as url:
        told = httpx.post(url + PATH, json=ASKED).json()["data"]
    assert [one["score"] for one in told] == [2.0, None, 2.0, 2.0]


def test_a_reward_that_hangs_is_given_up_and_others_are_answered() -> None:
    release = threading.Event()

    def rate(text: str) -> float:
        if text == "hang":
            assert release.wait(120)
        return 1.0

    async def go() -> None:
        async with serving(FakeEngine(), ForgetfulReward(rate), reward_timeout_s=0.3) as served:
            hanging = asyncio.create_task(served.ask({"prompt": "a", "answers": ["hang"]}, PATH))
            answer = await served.ask({"prompt": "Why?"})
            assert answer.status_code == 200
            refused = await hanging
            assert (refused.status_code, refused.json()["error"]["code"]) == (500, "reward_failed")
            release.set()

    asyncio.run(go())


class Held(FakeReward):
    """Scores when it may."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.name = "held"
        self.go_on, self.is_there, self.num_calls = threading.Event(), threading.Event(), 0

    def _wait(self, text: str) -> float:
        self.num_calls += 1
        self.is_there.set()
        assert self.go_on.wait(120)
        return 1.0


def ask_aside(url: str, told: list[httpx.Response]) -> threading.Thread:
    one: Any = {**ASKED, "answers": ["a"]}
    thread = threading.Thread(
        target=lambda: told.append(httpx.post(url + PATH, json=one, timeout=120))
    )
    thread.start()
    return thread


def test_a_full_queue_turns_away_and_takes_again() -> None:
    reward, told = Held(), list[httpx.Response]()
    service = fake_service(reward=reward, max_queue=2)
    with live(service) as url:
        threads = [ask_aside(url, told) for _ in range(2)]
        until(lambda: service.given.num_open == 2)
        refused = httpx.post(url + PATH, json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        reward.go_on.set()
        for thread in threads:
            thread.join()
        assert [one.status_code for one in told] == [200, 200]
        assert httpx.post(url + PATH, json=ASKED).status_code == 200


def test_the_deadline_comes_and_what_was_not_asked_is_not() -> None:
    reward, told = Held(), list[httpx.Response]()
    service = fake_service(reward=reward)
    with live(service, limits=Limits(deadline_s=2)) as url:
        threads = [ask_aside(url, told)]
        until(reward.is_there.is_set)
        threads.append(ask_aside(url, told))
        for thread in threads:
            thread.join()
        assert [one.status_code for one in told] == [504, 504]
        assert {one.json()["error"]["code"] for one in told} == {"deadline"}
        reward.go_on.set()
        until(lambda: service.given.num_open == 0)
        assert reward.num_calls == 1
        until(lambda: all(session.is_closed for session in reward.sessions))


def test_a_client_that_goes_is_not_scored_for() -> None:
    reward, told = Held(), list[httpx.Response]()
    service = fake_service(reward=reward)
    with live(service) as url:
        thread = ask_aside(url, told)
        until(reward.is_there.is_set)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + PATH, json=ASKED, timeout=0.5)
        until(lambda: service.given.num_open == 1)  # who has left is noticed in 0.1 s
        reward.go_on.set()
        thread.join()
        until(lambda: service.given.num_open == 0)
        until(lambda: all(session.is_closed for session in reward.sessions))
    assert (told[0].status_code, reward.num_calls) == (200, 1)


@pytest.mark.parametrize("grace_s", [0.0, 60.0])
def test_stopping_lets_what_is_scored_end_or_tells_it(grace_s: float) -> None:
    async def go() -> int:
        reward = Held()
        service = fake_service(reward=reward)
        asked = service.given.submit([{"role": "user", "content": "Why?"}], ["a"])
        assert await asyncio.to_thread(reward.is_there.wait, 60)
        stopping = asyncio.create_task(service.stop(grace_s))
        while not service.is_stopping:
            await asyncio.sleep(0)
        with pytest.raises(specrej.ShutdownError):
            service.given.submit([{"role": "user", "content": "Why?"}], ["a"])
        if grace_s:
            reward.go_on.set()
        try:
            await asyncio.wait_for(asyncio.wrap_future(asked), 60)
            return 200
        except specrej.ShutdownError:
            return 503
        finally:
            reward.go_on.set()
            await stopping

    assert asyncio.run(go()) == (200 if grace_s else 503)


def test_scores_do_not_wait_for_what_is_decoded() -> None:
    """Nor does the search that is under way notice."""

    async def go() -> None:
        async with serving(FakeEngine(eos=0.0)) as served:
            alone = (await served.ask({"prompt": "Why?", "seed": 3})).json()["choices"]
            search = asyncio.create_task(served.ask({"prompt": "Why?", "seed": 3}))
            scores = [served.ask({"prompt": "a", "answers": ["b"]}, PATH) for _ in range(8)]
            answers = await asyncio.gather(*scores)
            assert {answer.status_code for answer in answers} == {200}
            assert (await search).json()["choices"] == alone

    asyncio.run(go())


def test_tokens_of_the_reward_are_counted(url: str) -> None:
    def counted() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        said = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return float(said["specrej_reward_tokens_total"])

    before = counted()
    number = httpx.post(url + PATH, json=ASKED).json()["usage"]["reward_tokens"]
    assert counted() == before + number > before
