"""What servers do to candidates: refuse, stumble, hang, die, cut short, go too far; and who hears
of it.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import specrej
from completions_server import CompletionsServer, playing
from fakes import FakeReward
from servers import record_waits
from specrej.engines.openai import OpenAIEngine
from specrej.errors import EngineError, SamplingError, UsageError
from specrej.types import Result, SamplingParams
from tiny import EOS_ID, save_model

CHUNK = 6
LENGTH = 16
PROMPT = "Why?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model")
    return save_model(directory)


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with playing() as server:
        server.eos = 0.0
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


def open_engine(model: str, server: CompletionsServer, **arguments: Any) -> OpenAIEngine:
    given = {"chunk_tokens": CHUNK, "tries": 3, "timeout_s": 30, **arguments}
    opened = specrej.open_engine(model, engine=f"openai:{server.base}", engine_args=given)
    assert isinstance(opened, OpenAIEngine)
    return opened


def run(engine: OpenAIEngine, **options: Any) -> Result:
    given = {
        "n": 4,
        "max_new_tokens": LENGTH,
        "seed": 1,
        "memory": "2MiB",
        "algorithm": "best_of_n",
        **options,
    }
    return specrej.generate(PROMPT, model=engine, reward=FakeReward(), **given)


def ids(result: Result) -> list[list[int]]:
    return [candidate.token_ids for candidate in result.candidates]


def is_part(request: dict[str, Any]) -> bool:
    return bool(request["max_tokens"] > 1)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_changes_nothing(
    model: str, server: CompletionsServer, waits: list[float], status: int
) -> None:
    engine = open_engine(model, server, tries=6)
    expected = run(engine)
    left = iter(range(5))
    server.intercept = lambda request: (
        None if next(left, None) is None else (status, {"Retry-After": "2"}, b"busy")
    )
    assert ids(run(engine)) == ids(expected)
    assert len(waits) == 5
    assert all(wait >= 2 for wait in waits)


def _as_json(reply: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(reply).encode()


def _overlong(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0]["token_ids"] *= 2
    return reply


def _nothing(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0] |= {"token_ids": [], "text": ""}
    reply["usage"]["completion_tokens"] = 0
    return reply


def _unknown(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0]["token_ids"][0] = 10**6
    return reply


def _aborted(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0]["finish_reason"] = "abort"
    return reply


TAMPERED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_overlong, "gave 12 tokens where it was asked for 6"),
    (_nothing, "gave no token"),
    (_unknown, "the token 1000000, which the tokenizer does not know"),
    (_aborted, 'ended for the reason "abort"'),
    (lambda reply: (200, {}, b"<html>"), "no JSON object"),
    (lambda reply: _as_json([]), "no JSON object"),
    (lambda reply: _as_json({"choices": []}), "no completion is in the reply"),
    (lambda reply: (500, {}, b"out of order"), "after 3 tries: status 500"),
    (lambda reply: (400, {}, b"too long"), "status 400: 'too long'"),
]


@pytest.mark.parametrize(("tamper", "reason"), TAMPERED)
def test_a_candidate_that_is_lost_is_counted_and_the_others_go_on(
    model: str, server: CompletionsServer, tamper: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    engine = open_engine(model, server)
    expected = run(engine)
    # The second chunk of one candidate: the one whose first chunk is this.
    begun = expected.candidates[2].token_ids[:CHUNK]
    num_prompt = len(engine.encode(PROMPT))
    reasons: list[str] = []

    def answer(request: dict[str, Any]) -> Any:
        given = server.complete(request)
        return tamper(given) if request["prompt"][num_prompt:][:CHUNK] == begun else given

    server.answer = answer
    step = engine.step

    def listen(limits: Any = None) -> Any:
        tokens = step(limits)
        reasons.extend(token.reason for token in tokens if token.finish_reason == "lost")
        return tokens

    engine.step = listen  # type: ignore[method-assign]
    result = run(engine)
    lost = result.candidates[2]
    assert (lost.state, lost.finish_reason, lost.token_ids) == ("rejected", "lost", begun)
    assert [decision.rejected for decision in result.decisions if decision.cause == "lost"] == [
        (2,)
    ]
    assert result.best.index != 2
    assert [one for one in ids(result) if one != begun] == [
        one for one in ids(expected) if one[:CHUNK] != begun
    ]
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_a_lost_candidate_does_not_move_the_schedule(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server, tries=1)
    options: dict[str, Any] = {"algorithm": "speculative_rejection", "decide": "every:8", "keep": 4}

    def moments(result: Result) -> list[int]:
        return [decision.num_tokens for decision in result.decisions if decision.cause != "lost"]

    expected = run(engine, **options)
    begun = expected.candidates[2].token_ids[:CHUNK]
    num_prompt = len(engine.encode(PROMPT))

    server.intercept = lambda request: (
        (500, {}, b"") if request["prompt"][num_prompt:][:CHUNK] == begun else None
    )
    result = run(engine, **options)
    assert result.candidates[2].finish_reason == "lost"
    assert moments(result) == moments(expected) == [8, 16]


def test_a_reply_that_does_not_come_loses_the_candidate(
    model: str, server: CompletionsServer
) -> None:
    engine = open_engine(model, server, timeout_s=1, tries=2)
    first = run(engine).candidates[0].token_ids[:CHUNK]
    num_prompt = len(engine.encode(PROMPT))
    server.hangs = lambda request: request["prompt"][num_prompt:][:CHUNK] == first
    result = run(engine)
    assert result.candidates[0].finish_reason == "lost"
    assert server.num_gone == 2


def test_a_server_that_dies_loses_all_and_the_run_says_why(model: str) -> None:
    with playing() as server:
        server.eos = 0.0
        engine = open_engine(model, server, tries=2)
        numbers = count()

        def break_off(request: dict[str, Any]) -> None:
            if is_part(request) and next(numbers) >= 6:  # in the middle of the second chunks
                raise ConnectionAbortedError

        server.intercept = break_off
        with pytest.raises(
            EngineError,
            match=r"lost 4 of 4, the last one because http.* does not answer: after 2 tries",
        ):
            run(engine)


def test_complete_candidates_survive_a_server_that_dies(
    model: str, server: CompletionsServer
) -> None:
    engine = open_engine(model, server, tries=2)
    server.eos = 0.15
    expected = run(engine, n=8)
    short = {c.index for c in expected.candidates if len(c.token_ids) <= CHUNK}
    assert 0 < len(short) < 8
    num_prompt = len(engine.encode(PROMPT))
    server.intercept = lambda request: (
        (502, {}, b"gone") if len(request["prompt"]) > num_prompt else None
    )
    result = run(engine, n=8)
    assert result.best.index in short
    assert {c.index for c in result.candidates if c.finish_reason != "lost"} == short


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_all_requests_will_meet_ends_the_run_at_once(
    model: str, server: CompletionsServer, status: int
) -> None:
    engine = open_engine(model, server)
    server.intercept = lambda request: (status, {}, b"no more") if is_part(request) else None
    with pytest.raises(EngineError, match=f"status {status}"):
        run(engine)
    assert len(server.parts) <= 4


def test_short_chunks_are_asked_for_again(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server)

    def answer(request: dict[str, Any]) -> Any:
        return server.complete({**request, "max_tokens": min(request["max_tokens"], 4)})

    server.answer = answer
    result = run(engine)
    assert {len(candidate.token_ids) for candidate in result.candidates} == {LENGTH}
    asked = sorted({request["max_tokens"] for request in server.parts})
    assert asked == [2, 4, 6]  # 6 of which 4 came, 2; the last chunk has 4


def test_options_that_a_server_refuses_are_named(model: str, server: CompletionsServer) -> None:
    server.refuses = {"top_k", "min_p", "repetition_penalty", "return_token_ids", "ignore_eos"}
    engine = open_engine(model, server)
    assert ids(run(engine, top_k=0))
    given = [
        ({}, "top-k 0"),
        ({"top_k": 0, "min_p": 0.1}, "min-p 0"),
        ({"top_k": 0, "repetition_penalty": 1.1}, "1"),
    ]
    for options, hint in given:
        with pytest.raises(UsageError, match="does not take") as caught:
            run(engine, **options)
        assert hint in str(caught.value.hint)
    with pytest.raises(UsageError, match="ignore_eos"):
        engine.open(engine.encode(PROMPT), SamplingParams(top_k=0, ignore_eos=True), 2**30)
    assert ids(run(engine, top_k=0))  # what failed has left nothing behind


def test_penalties_need_answers_of_one_chunk(model: str, server: CompletionsServer) -> None:
    penalties: dict[str, Any] = {"frequency_penalty": 0.5, "presence_penalty": -0.5, "top_k": 0}
    with pytest.raises(SamplingError, match="frequency_penalty cannot be honoured by") as caught:
        run(open_engine(model, server), **penalties)
    assert "chunk_tokens" in str(caught.value.hint)
    engine = open_engine(model, server, chunk_tokens=LENGTH)
    with pytest.raises(SamplingError, match="does not take"):
        run(engine, **penalties)
    server.takes_penalties = True
    before = len(server.parts)
    result = run(engine, **penalties, logit_bias={7: -1.5})
    assert {len(candidate.token_ids) for candidate in result.candidates} == {LENGTH}
    for request in server.parts[before:]:
        assert request["max_tokens"] == LENGTH
        assert request["logit_bias"] == {"7": -1.5}
        assert (request["frequency_penalty"], request["presence_penalty"]) == (0.5, -0.5)
    answer = server.complete
    server.answer = lambda request: answer({**request, "max_tokens": min(request["max_tokens"], 4)})
    with pytest.raises(EngineError, match="would count its tokens anew"):
        run(engine, **penalties)


def test_likeliest_tokens_need_a_server_that_names_them(
    model: str, server: CompletionsServer
) -> None:
    result = run(open_engine(model, server), top_k=0, top_logprobs=3)
    assert {request["logprobs"] for request in server.parts} == {3}
    for candidate in result.candidates:
        assert [len(top) for top in candidate.top_logprobs] == [3] * len(candidate.token_ids)
    server.names_ids = False
    with pytest.raises(SamplingError, match="does not name the likeliest tokens by id"):
        run(open_engine(model, server), top_k=0, top_logprobs=3)
    server.gives_logprobs = False
    with pytest.raises(SamplingError, match="top_logprobs cannot be honoured"):
        run(open_engine(model, server), top_k=0, top_logprobs=3)


def test_options_that_are_off_are_said_to_be_off(model: str, server: CompletionsServer) -> None:
    run(open_engine(model, server), top_k=0)
    sent = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "top_p": 1.0, "temperature": 1.0}
    assert all(sent.items() <= request.items() for request in server.parts)
    assert not any("ignore_eos" in request for request in server.parts)


def test_answers_are_continued_as_text_where_there_are_no_ids(
    model: str, server: CompletionsServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.gives_ids = False
    server.eos = 0.05
    with caplog.at_level(logging.WARNING, logger="specrej"):
        engine = open_engine(model, server)
    assert [record.name for record in caplog.records] == ["specrej"]
    assert "gives no token ids" in caplog.text
    assert engine.describe()["continued_by"] == "text"
    expected = run(engine, n=8)
    assert all(isinstance(request["prompt"], str) for request in server.parts)
    assert "é" in "".join(candidate.text for candidate in expected.candidates)
    assert {c.finish_reason for c in expected.candidates} == {"eos", "length"}
    for candidate in expected.candidates:
        assert (candidate.token_ids[-1] == EOS_ID) == (candidate.finish_reason == "eos")
        assert candidate.finish_reason == "eos" or len(candidate.token_ids) == LENGTH
    for request in server.parts:
        assert "\N{REPLACEMENT CHARACTER}" not in request["prompt"]
    decided = run(engine, n=8, algorithm="speculative_rejection", decide="every:4")
    assert any(
        len(one) < len(other) for one, other in zip(ids(decided), ids(expected), strict=True)
    )
    assert all(
        one == other[: len(one)] for one, other in zip(ids(decided), ids(expected), strict=True)
    )


def test_the_prompt_is_the_same_as_text(model: str, server: CompletionsServer) -> None:
    by_ids = open_engine(model, server)
    run(by_ids)
    server.takes_ids = False
    run(open_engine(model, server))
    texts = {request["prompt"] for request in server.requests if isinstance(request["prompt"], str)}
    assert "<bos><user>Why?<eos><assistant>" in texts


def test_a_server_that_repeats_the_prompt_is_caught(model: str, server: CompletionsServer) -> None:
    server.gives_ids = False
    engine = open_engine(model, server)

    def echo(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0]["text"] = (
            "<bos><user>Why?<eos><assistant>" + reply["choices"][0]["text"]
        )
        return reply

    server.tamper = echo
    with pytest.raises(EngineError, match="repeated the prompt"):
        run(engine)


def test_without_log_probabilities_there_are_none(model: str, server: CompletionsServer) -> None:
    server.gives_logprobs = False
    result = run(open_engine(model, server))
    assert all(candidate.logprobs == [] for candidate in result.candidates)


def test_seeds_that_are_ignored_give_answers_all_the_same(
    model: str, server: CompletionsServer
) -> None:
    server.honours_seed = False
    assert len({tuple(one) for one in ids(run(open_engine(model, server)))}) == 4


def test_what_a_cache_did_not_hold_is_counted(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server)
    result = run(engine)
    replies = [len(request["prompt"]) for request in server.parts]
    # Pages of 4: what exceeds them is read again, but for the newest token of an answer.
    num_prompt = len(engine.encode(PROMPT))
    expected = [(length - 1) % 4 + 1 - (length > num_prompt) for length in replies]
    assert result.usage.reread_tokens == sum(expected) > 0
    server.gives_cached = False
    silent = open_engine(model, server)
    assert run(silent).usage.reread_tokens == 0
    assert silent.describe()["cached_tokens"] == "not reported"


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came about")


def test_dropping_and_closing_ends_requests_at_the_server(
    model: str, server: CompletionsServer
) -> None:
    engine = open_engine(model, server)
    fast, slow = (
        engine.open(engine.encode(text), SamplingParams(max_new_tokens=8), 2**30)
        for text in ("a", "b")
    )
    num_prompt = len(engine.encode("b"))
    server.hangs = lambda request: (
        is_part(request) and request["prompt"][:num_prompt] == engine.encode("b")
    )
    engine.add(fast, [0])
    engine.add(slow, range(3))
    for _ in range(8):  # one prompt goes on while the other one waits
        assert [token.prompt for token in engine.step()] == [fast]
        if not server.running:
            _wait_until(lambda: server.running == 3)
    engine.drop(slow, [1])
    _wait_until(lambda: server.num_gone == 1)
    engine.close(slow)
    _wait_until(lambda: server.num_gone == 3)
    engine.close(fast)


def test_ctrl_c_ends_requests_at_the_server(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server)
    num_prompt = len(engine.encode(PROMPT))

    def hangs(request: dict[str, Any]) -> bool:
        if len(request["prompt"]) == num_prompt:
            return False
        if server.running == 4:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return True

    server.hangs = hangs
    with pytest.raises(KeyboardInterrupt) as caught:
        run(engine)
    interrupted = getattr(caught.value, "result", None)
    assert interrupted is not None
    assert {len(candidate.token_ids) for candidate in interrupted.candidates} == {CHUNK}
    _wait_until(lambda: server.num_gone == 4)


def test_no_more_requests_at_a_time_than_asked_for(model: str, server: CompletionsServer) -> None:
    run(open_engine(model, server, concurrency=2), n=6)
    assert server.most_running <= 2


def test_a_prompt_that_cannot_be_read_leaves_the_others(
    model: str, server: CompletionsServer
) -> None:
    engine = open_engine(model, server)
    bad = engine.encode("bad")
    server.intercept = lambda request: (
        (400, {}, b"too long") if request["prompt"][: len(bad)] == bad else None
    )
    outcomes = dict(
        specrej.generate_batch(
            ["good", "bad", "fine"],
            model=engine,
            reward=FakeReward(),
            n=2,
            max_new_tokens=8,
            memory="1MiB",
            seed=1,
        )
    )
    assert isinstance(outcomes[1], EngineError)
    assert "too long" in str(outcomes[1])
    assert all(isinstance(outcomes[number], Result) for number in (0, 2))
