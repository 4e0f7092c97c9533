"""The server as OpenAI's own client sees it, and what it says to those who ask wrongly."""

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import specrej
from answers import answer, five, result_of
from endpoint import DEFAULTS, Scripted, client, fake_service, lines_of, live, until
from fakes import FakeEngine, FakeReward
from specrej.errors import (
    BudgetError,
    DeadlineError,
    DeviceMemoryError,
    EngineError,
    QueueFullError,
    RewardError,
    SamplingError,
    ShutdownError,
    SpecrejError,
    UsageError,
)
from specrej.search.events import Ended
from specrej.search.pool import Pool
from specrej.server.app import make_app
from specrej.server.service import Service
from specrej.settings import Settings
from specrej.types import Prompt
from tiny import make_engine, make_model

CHAT: Any = {"model": "bytes", "messages": [{"role": "user", "content": "Why?"}]}
BEGUN = {"role": "assistant", "content": "Well, "}
TEXT: Any = {"model": "bytes", "prompt": "Why?"}
SECRET = "the-prompt-is-nobodys-business"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_service()) as url:
        yield url


def alone(prompt: Prompt = "Why?", **options: Any) -> specrej.Result:
    settings: dict[str, Any] = {**DEFAULTS.to_dict(), **options}
    return specrej.generate(prompt, model=FakeEngine(), reward=FakeReward(), **settings)


def test_a_chat_is_answered_as_generate_would(url: str) -> None:
    completion = client(url).chat.completions.create(**CHAT, seed=3)
    result = alone(seed=3)
    assert completion.id.startswith("chatcmpl-")
    assert (completion.object, completion.model) == ("chat.completion", "bytes")
    [choice] = completion.choices
    assert choice.message.content == result.text
    assert choice.message.role == "assistant"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(result.best.token_ids)
    assert completion.usage.prompt_tokens == result.usage.prompt_tokens
    own = completion.model_extra["specrej"]
    assert own["rewards"] == [result.reward]
    assert (
        own["generated_tokens"]
        == result.usage.generated_tokens
        > completion.usage.completion_tokens
    )
    assert own["reward_tokens"] == result.usage.reward_tokens
    assert (own["seed"], own["is_late"]) == (3, False)


def test_a_text_is_answered_as_generate_would(url: str) -> None:
    completion = client(url).completions.create(**TEXT, seed=4, max_tokens=9)
    assert completion.choices[0].text == alone(seed=4, max_new_tokens=9).text
    assert (completion.object, completion.id[:5]) == ("text_completion", "cmpl-")


def test_openais_fields_are_honoured(url: str) -> None:
    completion = client(url).chat.completions.create(
        **CHAT,
        n=3,
        seed=11,
        stop=["bb"],
        temperature=0.7,
        top_p=0.9,
        max_completion_tokens=20,
        logprobs=True,
        user="somebody",
        extra_body={"specrej": {"algorithm": "best_of_n", "n": 6, "return": ["rewards"]}},
    )
    result = alone(seed=11, stop=["bb"], max_new_tokens=20, algorithm="best_of_n", n=6)
    assert len(completion.choices) == 3
    assert completion.choices[0].message.content == result.text
    rewards = completion.model_extra["specrej"]["rewards"]
    assert rewards == sorted(rewards, reverse=True)
    assert len(completion.model_extra["specrej"]["candidate_rewards"]) == 6
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert (
            "".join(token.token for token in choice.logprobs.content or [])
            == choice.message.content
        )
        assert "bb" not in (choice.message.content or "")


def test_an_assistants_message_is_gone_on_with(url: str) -> None:
    messages = [*CHAT["messages"], BEGUN]
    told = client(url).chat.completions.create(
        **{**CHAT, "messages": messages},
        seed=3,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    result = alone(messages, seed=3, continue_final_message=True)
    assert told.choices[0].message.content == result.text
    assert told.usage is not None
    assert told.usage.prompt_tokens == result.usage.prompt_tokens


def test_the_torch_engine_answers_the_same_client() -> None:
    engine = make_engine(make_model("llama"))
    service = Service(engine, FakeReward(), Pool(2**22))
    service.start()
    with live(service, defaults=Settings(n=4, max_new_tokens=8)) as url:
        told = client(url).completions.create(**TEXT, seed=2)
        stream = client(url).completions.create(**TEXT, seed=2, stream=True)
        streamed = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    result = specrej.generate(
        "Why?", model=engine, reward=FakeReward(), n=4, max_new_tokens=8, seed=2
    )
    assert told.choices[0].text == streamed == result.text


def test_requests_without_a_seed_have_one_each_and_say_which(url: str) -> None:
    def seed_of(**options: Any) -> int:
        completion = client(url).chat.completions.create(**CHAT, **options)
        seed: int = completion.model_extra["specrej"]["seed"]
        assert completion.choices[0].message.content == alone(seed=seed).text
        return seed

    assert seed_of() != seed_of()
    assert seed_of(seed=5) == 5


def test_an_operator_may_fix_the_seed() -> None:
    with live(fake_service(), seed=7) as url:
        own = [client(url).chat.completions.create(**CHAT).model_extra["specrej"] for _ in range(2)]
        assert [one["seed"] for one in own] == [7, 7]
        assert (
            client(url).chat.completions.create(**CHAT, seed=8).model_extra["specrej"]["seed"] == 8
        )


def test_models_are_listed(url: str) -> None:
    [model] = client(url).models.list().data
    assert (model.id, model.owned_by) == ("bytes", "specrej")
    assert client(url).models.retrieve("bytes") == model
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client(url).models.retrieve("gpt")


def test_what_is_served_is_said_with_its_defaults_and_without_its_places() -> None:
    reward = FakeReward()
    reward.name = "http:http://10.0.0.1/secret"
    with live(fake_service(reward=reward)) as url:
        [model] = httpx.get(f"{url}/v1/models").json()["data"]
    defaults = DEFAULTS.to_dict()
    del defaults["seed"]
    assert model["specrej"] == {"reward": "http", "defaults": defaults}


def test_a_model_with_a_slash_in_its_name_is_found() -> None:
    with live(fake_service(), model="org/bytes") as url:
        assert client(url).models.retrieve("org/bytes").id == "org/bytes"


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"tools": [{"type": "function"}]}, "tools", r"tools\[0\] must be a function"),
        ({"tool_choice": "any"}, "tool_choice", "tool_choice cannot be honoured"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty must be in"),
        ({"temprature": 1}, "temprature", "temprature cannot be honoured"),
        ({"temperature": -1}, "temperature", r"temperature must be 0 \(greedy\) or above"),
        ({"max_tokens": 0}, "max_tokens", "^max_tokens must be at least 1"),
        (
            {"max_completion_tokens": 10**6},
            "max_completion_tokens",
            "and max_completion_tokens=.* give max_comp",
        ),
        ({"n": 2, "specrej": {"n": 0}}, "specrej.n", "^specrej.n must be"),
        ({"specrej": {"keep": 0}}, "specrej.keep", "^specrej.keep must be"),
        ({"specrej": {"decide": "never"}}, "specrej.decide", "^specrej.decide must be"),
        ({"specrej": {"memory": "much"}}, "specrej.memory", "^specrej.memory must be"),
        ({"specrej": {"top_k": -1}}, "specrej.top_k", "^specrej.top_k must be"),
        ({"n": 0}, "n", "n must be"),
        ({"stream": 1}, "stream", "stream must be true or false"),
        (
            {"stream": True, "stream_options": {"all": 1}},
            "stream_options.all",
            "all cannot be honoured",
        ),
        ({"stream": True, "stream_options": []}, "stream_options", "must be an object"),
        (
            {"specrej": {"alpa": 1}},
            "specrej",
            "unknown field of specrej 'alpa'; did you mean 'alpha'",
        ),
        ({"specrej": {"alpha": 1}}, "specrej.alpha", "^specrej.alpha must be in"),
        ({"specrej": {"reward": "os:remove"}}, "specrej", "unknown field of specrej 'reward'"),
        ({"specrej": {"model": "/etc"}}, "specrej", "unknown field of specrej 'model'"),
        ({"specrej": {"progress": True}}, "specrej.progress", "progress needs stream"),
        ({"specrej": {"deadline_s": 0}}, "specrej.deadline_s", "deadline_s must be seconds"),
        ({"specrej": {"memory": "1GiB"}}, "specrej", "total_memory|in flight together"),
        ({"specrej": {"memory": "100B"}}, "specrej", "does not hold one candidate"),
        ({"specrej": 5}, "specrej", "specrej must be an object"),
        ({"messages": []}, "messages", "the prompt is empty"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", "the model's context"),
        ({"model": None}, "model", "model must be a text"),
        (
            {"messages": [{"role": "human", "content": "Hi"}]},
            "messages",
            r"messages\[0\].role must be one of system,",
        ),
        (
            {"messages": [*CHAT["messages"], BEGUN]},
            "messages",
            "ends in an assistant's message.*continue_final_message",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages",
            r"messages\[0\].content holds half",
        ),
        ({"stop": ["a", "\udfff"]}, "stop", r"stop\[1\] holds half a surrogate pair, \\udfff"),
    ],
)
def test_what_cannot_be_honoured_is_a_bad_request_that_names_it(
    url: str, fields: dict[str, Any], param: str, reason: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(
        f"{url}/v1/chat/completions", content=json.dumps({**CHAT, **fields}), headers=headers
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert re.search(reason, error["message"]), error
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    if not reason.startswith(("total", "does not")):
        assert error["param"] == param


def test_a_long_answer_gets_the_memory_there_is_where_nobody_says_how_much() -> None:
    """Eight candidates of so many tokens would need more than all requests share."""
    with live(fake_service(), defaults=Settings(n=100, max_new_tokens=24, min_tokens=5)) as url:
        asked = {**CHAT, "max_tokens": 300, "seed": 1, "extra_body": {}}
        asked["extra_body"] = {"specrej": {"return": ["candidates"]}}
        answer = client(url).chat.completions.create(**asked)
        with pytest.raises(openai.BadRequestError, match="all prompts in flight together"):
            client(url).chat.completions.create(**CHAT, extra_body={"specrej": {"memory": 30_001}})
    own = answer.model_extra["specrej"]
    assert own["num_candidates"] == len(own["candidates"]) == 100
    assert own["peak_kv_bytes"] <= 30_000
    [choice] = answer.choices
    alike = alone(seed=1, n=100, max_new_tokens=300, memory=30_000)
    assert choice.message.content == alike.text


def test_a_request_that_gives_no_number_does_not_begin_with_thousands() -> None:
    engine = FakeEngine(context_tokens=100_000)
    service = Service(engine, FakeReward(), Pool(10**9))
    service.start()
    with live(service, defaults=Settings(max_new_tokens=5000, min_tokens=5, stop=["a"])) as url:
        answer = client(url).completions.create(**TEXT, seed=1)
    assert answer.model_extra is not None
    assert answer.model_extra["specrej"]["num_candidates"] == 256


@pytest.mark.parametrize(
    "fields",
    [
        {"specrej": {"memory": "1GiB"}},
        {"specrej": {"memory": "100B"}},
        {"max_tokens": 10**6},
        {"messages": []},
    ],
)
def test_a_stream_that_cannot_be_is_refused_before_it_begins(
    url: str, fields: dict[str, Any]
) -> None:
    response = httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True, **fields})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")


def test_the_client_gets_its_own_exceptions(url: str) -> None:
    asking = client(url).chat.completions
    with pytest.raises(openai.BadRequestError, match="logit_bias cannot be honoured by") as bad:
        asking.create(**CHAT, logit_bias={"5": 1})
    assert (bad.value.param, bad.value.code) == ("logit_bias", "invalid_value")
    with pytest.raises(
        openai.NotFoundError, match="there is no model 'gpt-4' here; there is 'bytes'"
    ) as unknown:
        asking.create(**{**CHAT, "model": "gpt-4"})
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    image: Any = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    with pytest.raises(openai.BadRequestError, match="must be a text"):
        asking.create(model="bytes", messages=[{"role": "user", "content": image}])


@pytest.mark.parametrize(
    ("error", "expected", "status", "code"),
    [
        (
            QueueFullError("9 are waiting", retry_after_s=7),
            openai.RateLimitError,
            429,
            "queue_full",
        ),
        (ShutdownError("being stopped"), openai.InternalServerError, 503, "shutting_down"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_request_that_is_not_taken_hears_why(
    error: SpecrejError,
    expected: type[openai.APIStatusError],
    status: int,
    code: str,
    is_streamed: bool,
) -> None:
    with live(Scripted(error=error)) as url, pytest.raises(expected) as caught:
        client(url).chat.completions.create(**CHAT, stream=is_streamed)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.response.headers.get("retry-after") == ("7" if status == 429 else None)


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (DeadlineError("no candidate was complete", hint="wait"), 504, "deadline"),
        (ShutdownError("stopped"), 503, "shutting_down"),
        (RewardError(f"the reward 'http://10.0.0.1' failed: {SECRET}"), 500, "reward_failed"),
        (DeviceMemoryError(SECRET), 500, "out_of_memory"),
        (
            EngineError(
                f"no candidate is left: the engine lost 4 of 4, the last one because {SECRET}"
            ),
            502,
            "engine_failed",
        ),
        (SpecrejError(SECRET), 500, "internal"),
        (UsageError(f"cannot read /srv/{SECRET}"), 500, "internal"),
        (BudgetError("too small"), 400, "invalid_value"),
        (SamplingError("temperature must be in [0, 2]"), 400, "invalid_value"),
    ],
)
def test_a_request_that_fails_hears_no_internals(
    outcome: SpecrejError, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted([Ended(outcome)])
    with caplog.at_level(logging.INFO, "specrej.server"), live(scripted) as url:
        response = httpx.post(f"{url}/v1/completions", json=TEXT)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert SECRET not in response.text
    assert SECRET not in "".join(lines_of(caplog))
    failures = [line for line in lines_of(caplog) if '"failure"' in line]
    assert len(failures) == (status in (500, 502))
    assert all(
        type(outcome).__name__ in line and response.headers["x-request-id"] in line
        for line in failures
    )


def test_a_late_answer_says_so() -> None:
    late = Ended(result_of(answer(0, "so far", 1.0), best=0), is_late=True)
    with live(Scripted([late])) as url:
        completion = client(url).chat.completions.create(
            **CHAT, extra_body={"specrej": {"deadline_s": 30}}
        )
    assert completion.choices[0].message.content == "so far"
    assert completion.model_extra["specrej"]["is_late"] is True


def test_the_deadline_of_a_real_race_is_kept() -> None:
    class Slow(FakeEngine):
        def step(self, *given: Any) -> Any:
            threading.Event().wait(0.02)
            return super().step(*given)

    with live(
        fake_service(Slow(eos=0.0)), defaults=Settings(n=8, max_new_tokens=200, memory=28_000)
    ) as url:
        with pytest.raises(openai.InternalServerError, match="no candidate was complete") as caught:
            client(url).chat.completions.create(**CHAT, extra_body={"specrej": {"deadline_s": 1}})
        assert (caught.value.status_code, caught.value.code) == (504, "deadline")


def test_a_reward_that_fails_fails_its_request_only() -> None:
    calls: list[str] = []

    def rate(text: str) -> float:
        calls.append(text)
        if len(calls) == 1:
            raise ValueError(SECRET)
        return 1.0

    with live(fake_service(reward=FakeReward(rate))) as url:
        with pytest.raises(openai.InternalServerError, match="the reward failed") as caught:
            client(url).chat.completions.create(**CHAT, seed=1)
        assert SECRET not in str(caught.value)
        assert client(url).chat.completions.create(**CHAT, seed=1).choices


def test_an_unforeseen_error_says_nothing_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.INFO, "specrej.server"),
        live(Scripted(error=KeyError(SECRET))) as url,
    ):
        response = httpx.post(f"{url}/v1/completions", json=TEXT)
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    logged = "".join(lines_of(caplog))
    assert SECRET not in response.text + logged
    assert "KeyError" in logged
    assert "endpoint.py" in logged


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_is_not_waited_for(is_streamed: bool) -> None:
    scripted = Scripted([None])
    body = json.dumps({**CHAT, "stream": is_streamed}).encode()
    with live(scripted) as url:
        _ask_and_go(url, body, scripted)
        until(lambda: scripted.tickets[0].is_cancelled)
        counted = 'path="/v1/chat/completions",status="' + ("200" if is_streamed else "499")
        until(lambda: counted in httpx.get(f"{url}/metrics").text)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_memory_of_a_client_that_goes_is_free(is_streamed: bool) -> None:
    class Slow(FakeEngine):
        def step(self, *given: Any) -> Any:
            threading.Event().wait(0.01)
            return super().step(*given)

    engine = Slow(eos=0.0)
    service = fake_service(engine)
    body = json.dumps(
        {**CHAT, "stream": is_streamed, "max_tokens": 200, "specrej": {"memory": 28_000}}
    ).encode()
    with live(service) as url:
        _ask_and_go(url, body, service)
        until(lambda: not engine.groups and service.num_active == 0)
    assert engine.num_steps < 199, "it ended before it was asked to"


def _ask_and_go(url: str, body: bytes, service: Any) -> None:
    """Send a request, and close the connection when it has been taken."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: "
            "application/json\r\n"
        )
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(
            lambda: bool(service.tickets if isinstance(service, Scripted) else service.num_active)
        )


def test_ids_are_given_or_made_and_never_what_breaks_a_log(url: str) -> None:
    def id_for(given: str) -> str:
        response = httpx.get(f"{url}/health", headers={b"x-request-id": given.encode()})
        assert len(response.headers.get_list("x-request-id")) == 1
        return str(response.headers["x-request-id"])

    assert id_for("job-7.a:b") == "job-7.a:b"
    for unfit in ('a"b', "a b", "x" * 65, "é"):
        assert re.fullmatch(r"req-[0-9a-f]{16}", id_for(unfit))


def test_the_log_has_a_line_a_request_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    for logs_prompts in (False, True):
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "specrej.server"),
            live(fake_service(), logs_prompts=logs_prompts) as url,
        ):
            response = httpx.post(
                f"{url}/v1/completions", json={**TEXT, "prompt": SECRET, "seed": 1}
            )
            httpx.get(f"{url}/health")
            until(lambda: len(caplog.records) > 0)
        [line] = [json.loads(line) for line in lines_of(caplog)]
        assert line["request_id"] == response.headers["x-request-id"]
        assert (line["event"], line["path"], line["status"]) == ("request", "/v1/completions", 200)
        assert line["num_candidates"] == 8
        assert line["answer_tokens"] == response.json()["usage"]["completion_tokens"]
        assert line.get("prompt") == (SECRET if logs_prompts else None)
        assert ("answer" in line) == logs_prompts


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/nowhere", 404, "not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/page/index.html", 404, "not_found"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_other_paths_get_errors_of_the_same_form(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    response = httpx.request(method, url + path, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json().keys() == {"error"}
    assert "access-control-allow-origin" not in response.headers


def test_the_page_and_its_files_are_served_with_a_strict_policy(url: str) -> None:
    response = httpx.get(f"{url}/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["cache-control"] == "no-cache"
    for path in re.findall(r'(?:src|href)="([^"#:]+)"', response.text):
        file = httpx.get(f"{url}/{path}")
        assert file.status_code == 200, path
        assert file.headers["x-content-type-options"] == "nosniff"


def test_health_says_when_the_server_is_being_stopped() -> None:
    scripted = Scripted()
    with live(scripted) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        scripted.is_stopping = True
        assert (httpx.get(f"{url}/health").status_code, httpx.get(f"{url}/health").json()) == (
            503,
            {"status": "stopping"},
        )


def test_defaults_beyond_the_limit_are_refused() -> None:
    from specrej.server.asked import Limits

    with pytest.raises(UsageError, match="exceeds the 10"):
        make_app(Scripted(), model="bytes", defaults=DEFAULTS, limits=Limits(new_tokens=10))  # type: ignore[arg-type]


def test_the_best_answers_come_in_order() -> None:
    with live(Scripted([Ended(five())])) as url:
        completion = client(url).chat.completions.create(**CHAT, n=2)
    assert [choice.message.content for choice in completion.choices] == ["better é", "good"]
