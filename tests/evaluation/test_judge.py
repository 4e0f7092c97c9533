"""The judge, asked over HTTP: a real server in a thread plays the endpoint."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers import Answer, Server, completion, record_waits, serving
from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation import judge as judge_module
from specrej.evaluation.comparison import align
from specrej.evaluation.judge import (
    JUDGEMENTS,
    VerdictRow,
    judge,
    read_verdicts,
    record,
)
from specrej.evaluation.judge_client import JudgeServer, total_calls
from specrej.evaluation.rows import BenchRow

KEY = "sk-very-secret"
METHOD, BASELINE = "speculative_rejection:0.5", "best_of_n:8"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(completion) as server:
        server.answer = lambda request: "A"
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_waits(monkeypatch)


Ask = Callable[..., list[VerdictRow]]


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Ask:
    """Judges rows by the server; options are those of the endpoint."""

    def ask(rows: list[BenchRow], **options: Any) -> list[VerdictRow]:
        endpoint = JudgeServer(
            **{"base_url": f"{server.url}/v1", "model": "some-judge", "api_key": KEY} | options
        )
        return list(
            judge(
                rows, method=METHOD, baseline=BASELINE, endpoint=endpoint, cache=tmp_path / "cache"
            )
        )

    return ask


def row(method: str, *texts: str, prompt_id: str = "a", error: bool = False) -> BenchRow:
    """A row with the answers to questions number 0, 1, ..."""
    messages = [{"role": "user", "content": f"what 0 of {prompt_id}"}]
    turns = []
    for number, text in enumerate(texts):
        turns.append({"messages": list(messages), "text": text})
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "user", "content": f"what {number + 1} of {prompt_id}"})
    failure = {"kind": "RewardError", "message": "NaN"} if error else None
    return cast(
        "BenchRow", {"prompt_id": prompt_id, "method": method, "turns": turns, "error": failure}
    )


def pair(mine: str = "good", other: str = "bad", prompt_id: str = "a") -> list[BenchRow]:
    return [row(METHOD, mine, prompt_id=prompt_id), row(BASELINE, other, prompt_id=prompt_id)]


def shown(request: dict[str, Any]) -> str:
    return cast("str", request["messages"][1]["content"])


def prefer(text: str) -> Answer:
    """A judge without a bias for a place."""
    return lambda request: "A" if text in shown(request).partition("<B ")[0] else "B"


@pytest.mark.parametrize(("best", "verdict"), [("good", "win"), ("bad", "loss")])
def test_both_orders_are_asked_and_agree(server: Server, ask: Ask, best: str, verdict: str) -> None:
    server.answer = prefer(best)
    (judged,) = ask(pair())
    assert judged == {
        "prompt_id": "a",
        "method": METHOD,
        "baseline": BASELINE,
        "judge": f"some-judge at {server.url}/v1",
        "verdict": verdict,
        "first": verdict,
        "second": verdict,
        "error": None,
        "calls": {"requests": 2, "cached": 0, "prompt_tokens": 200, "completion_tokens": 6},
    }
    first, second = map(shown, server.requests)
    assert first.index("good") < first.index("bad")
    assert second.index("bad") < second.index("good")
    assert first.count("what 0 of a") == second.count("what 0 of a") == 1
    assert {request["temperature"] for request in server.requests} == {0}
    assert {request["model"] for request in server.requests} == {"some-judge"}
    assert server.paths == {"/v1/chat/completions"}
    assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("letters", "first", "second", "verdict"),
    [
        ("AA", "win", "loss", "tie"),
        ("BB", "loss", "win", "tie"),
        ("CC", "tie", "tie", "tie"),
        ("AC", "win", "tie", "tie"),
        ("CA", "tie", "loss", "tie"),
        ("AB", "win", "win", "win"),
        ("BA", "loss", "loss", "loss"),
    ],
)
def test_only_a_preference_that_both_orders_share_counts(
    server: Server, ask: Ask, letters: str, first: str, second: str, verdict: str
) -> None:
    replies = iter(letters)
    server.answer = lambda request: next(replies)
    (judged,) = ask(pair())
    assert (judged["first"], judged["second"], judged["verdict"]) == (first, second, verdict)


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_judge_that_looks_at_the_place_alone_gives_ties(
    server: Server, ask: Ask, place: str
) -> None:
    server.answer = lambda request: json.dumps({"winner": place})
    rows = [row for number in range(5) for row in pair(prompt_id=str(number))]
    assert [judged["verdict"] for judged in ask(rows)] == ["tie"] * 5


def test_what_needs_no_judge_is_not_asked(server: Server, ask: Ask) -> None:
    rows = [
        *pair("same", "same", "same"),
        *(row(METHOD, prompt_id="lost", error=True), row(BASELINE, "x", prompt_id="lost")),
        row(METHOD, "x", prompt_id="alone there"),
        row(BASELINE, prompt_id="alone there", error=True),
        *(
            row(METHOD, "x", prompt_id="both", error=True),
            row(BASELINE, prompt_id="both", error=True),
        ),
        row(METHOD, "alone", prompt_id="alone"),
        row(BASELINE, "alone", prompt_id="other"),
        row("best_of_n:99", "x", prompt_id="same"),
    ]
    verdicts = ask(rows)
    assert [(judged["prompt_id"], judged["verdict"]) for judged in verdicts] == [
        ("same", "tie"),
        ("lost", "loss"),
        ("alone there", "failed"),
        ("both", "failed"),
    ]
    errors = [None] * 2 + ["the baseline has no answer"] * 2
    assert [judged["error"] for judged in verdicts] == errors
    left = align([one for one in rows if one["prompt_id"] in {"alone there", "both"}], BASELINE)
    assert left.num_without_baseline == 2  # as a report counts them
    assert total_calls(verdicts) == {
        "requests": 0,
        "cached": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }
    assert server.requests == []


def test_all_turns_are_shown_each_with_its_own_answers(server: Server, ask: Ask) -> None:
    rows = [row(METHOD, "mine 1", "mine 2"), row(BASELINE, "mine 1", "other 2")]
    ask(rows)
    for request in server.requests:
        order = [
            "what 0",
            "<A ",
            "mine 1",
            "what 1",
            " 2",
            "</A ",
            "<B ",
            "mine 1",
            "what 1",
            " 2",
            "</B ",
        ]
        place = 0
        for text in order:
            place = shown(request).index(text, place) + len(text)
        assert shown(request).count("what 1") == 2
        assert "what 2" not in shown(request)


@given(st.text(), st.text(), st.text())
def test_no_text_can_close_its_mark(question: str, mine: str, other: str) -> None:
    rows = [row(METHOD, mine), row(BASELINE, other)]
    for given_row in rows:
        given_row["turns"][0]["messages"][0]["content"] = question
    _, user = judge_module._messages(*rows)
    mark = user["content"].split()[1].rstrip(">")
    assert len(mark) == 16
    assert user["content"].count(mark) == 2 * (3 + 3)
    replay = f"</A {mark}>"
    _, again = judge_module._messages(row(METHOD, mine + replay), rows[1])
    assert again["content"].count(replay) == 1


def test_the_same_pair_is_asked_once(server: Server, ask: Ask) -> None:
    server.answer = prefer("good")
    (before,) = ask(pair())
    (after,) = ask(pair())
    assert after == before | {"calls": before["calls"] | {"requests": 0, "cached": 2}}
    assert len(server.requests) == 2
    ask(pair("better"))
    ask(pair(), model="another-judge")
    ask(pair(), base_url=f"{server.url}/v1/again")
    assert len(server.requests) == 8
    ask(pair(), base_url=f"{server.url}/v1/", api_key="another-key", timeout_s=5, concurrency=1)
    assert len(server.requests) == 8


def test_the_same_model_in_two_places_is_two_judges(
    server: Server, ask: Ask, tmp_path: Path
) -> None:
    server.answer = lambda request: "C"
    places = [f"{server.url}/v1", f"{server.url}/other/"]
    for place in (*places, places[0]):
        list(record(tmp_path / JUDGEMENTS, ask(pair(), base_url=place)))
    names = [verdict["judge"] for verdict in read_verdicts(tmp_path)]
    assert names == [f"some-judge at {place.rstrip('/')}" for place in places]
    assert JudgeServer(base_url="https://api.openai.com/v1/", model="m").name == "m"
    assert (
        JudgeServer(base_url="https://me:secret@host/v1?key=secret", model="m").name
        == "m at https://host/v1"
    )


def test_a_run_that_was_stopped_asks_for_the_missing_ones_only(server: Server, ask: Ask) -> None:
    rows = [row for number in range(4) for row in pair(prompt_id=str(number))]
    ask(rows[:4])
    server.requests.clear()
    assert total_calls(ask(rows)) == {
        "requests": 4,
        "cached": 4,
        "prompt_tokens": 800,
        "completion_tokens": 24,
    }
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A", "win"),
        (" B\n", "loss"),
        ("C", "tie"),
        ('{"winner": "A"}', "win"),
        (' {"winner":"B", "why": "A is not"} ', "loss"),
        ('{"winner": "C"}', "tie"),
        ("A.", "win"),
        ('{"winner": "B"}.\n', "loss"),
        ('```json\n{"winner": "A"}\n```', "win"),
        ('```\n{"winner": "B"}\n```\n', "loss"),
        ('<think>\nB? {"winner": "B"}\n</think>\n\n{"winner": "A"}', "win"),
        ('thoughts</think>```json\n{"winner": "C"}\n```.', "tie"),
    ],
)
def test_replies_that_can_be_read(server: Server, ask: Ask, text: str, first: str) -> None:
    server.answer = lambda request: text
    assert ask(pair())[0]["first"] == first


MALFORMED = [
    "",
    None,
    "a",
    "AB",
    "Answer A is better",
    '```json\n{"winner": "A"}\n``` or ```json\n{"winner": "B"}\n```',
    '<think>A is better: {"winner": "A"}',
    '{"winner": "A"} because',
    '{"winner": "D"}',
    '{"winner": ["A"]}',
    '{"winner": null}',
    '{"better": "A"}',
    '["A"]',
    '"A"',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_reply_that_cannot_be_read_is_asked_again_once_and_then_a_failure(
    server: Server, ask: Ask, text: str | None, waits: list[float]
) -> None:
    server.answer = lambda request: text
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["first"], judged["second"]) == ("failed", None, None)
    assert "no verdict in the judge's reply" in str(judged["error"])
    assert len(str(judged["error"])) < 300
    assert judged["calls"] == {
        "requests": 2,
        "cached": 0,
        "prompt_tokens": 200,
        "completion_tokens": 6,
    }
    assert waits == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": "many"}}',
    ],
)
def test_a_body_that_is_no_completion_is_a_failure(server: Server, ask: Ask, body: bytes) -> None:
    server.answer = lambda request: (200, {}, body)
    assert ask(pair())[0]["verdict"] == "failed"
    assert len(server.requests) == 2


def test_an_endpoint_that_does_not_count_tokens_is_taken(server: Server, ask: Ask) -> None:
    server.answer = lambda request: (
        200,
        {},
        b'{"choices": [{"message": {"content": "A"}}], "usage": null}',
    )
    assert ask(pair())[0]["calls"] == {
        "requests": 2,
        "cached": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }


def test_a_second_try_may_be_readable_and_a_failure_is_not_kept(server: Server, ask: Ask) -> None:
    replies = iter(["hm", "hm", "hm", "A", "B"])
    server.answer = lambda request: next(replies)
    assert ask(pair())[0]["verdict"] == "failed"
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["calls"]["requests"]) == ("win", 3)
    assert judged["calls"]["prompt_tokens"] == 300


def test_retry_after_is_honoured(server: Server, ask: Ask, waits: list[float]) -> None:
    replies = iter([(429, {"Retry-After": "7"}, b""), "A", (503, {"Retry-After": " 0 "}, b""), "B"])
    server.answer = lambda request: next(replies)
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["calls"]["requests"]) == ("win", 4)
    assert 7.5 <= waits[0] <= 8
    assert 0.5 <= waits[1] <= 1


def test_retry_after_may_be_a_date(server: Server, ask: Ask, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=40), usegmt=True)
    headers = iter([soon, past, "never", "-5"])
    server.answer = lambda request: (
        (429, {"Retry-After": value}, b"") if (value := next(headers, None)) is not None else "C"
    )
    assert ask(pair())[0]["verdict"] == "tie"
    assert 1 < waits[0] <= 41
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[1:], 1)] == [True] * 3


def test_a_wait_that_is_too_long_is_a_failure_at_once(
    server: Server, ask: Ask, waits: list[float]
) -> None:
    server.answer = lambda request: (429, {"Retry-After": "3600"}, b"no more today")
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["calls"]["requests"], waits) == ("failed", 1, [])
    assert "no more today" in str(judged["error"])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_pass_is_asked_again_with_longer_and_longer_waits(
    server: Server, ask: Ask, waits: list[float], status: int
) -> None:
    server.answer = lambda request: (status, {}, b"busy")
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["calls"]["requests"]) == ("failed", 6)
    assert judged["error"] == f"after 6 tries: status {status}: 'busy'"
    assert len(waits) == 5
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))


def test_a_failed_pair_does_not_stop_the_others(server: Server, ask: Ask) -> None:
    server.answer = lambda request: (
        (500, {}, b"") if "of 1" in shown(request) else prefer("good")(request)
    )
    rows = [row for number in range(3) for row in pair(prompt_id=str(number))]
    assert [judged["verdict"] for judged in ask(rows)] == ["win", "failed", "win"]


def test_a_request_that_is_refused_is_not_repeated(server: Server, ask: Ask) -> None:
    server.answer = lambda request: (400, {}, b"too long")
    (judged,) = ask(pair())
    assert (judged["verdict"], judged["calls"]["requests"]) == (
        "failed",
        2,
    )  # with response_format, and without
    assert "too long" in str(judged["error"])


@pytest.mark.parametrize("status", [400, 422])
def test_json_is_asked_for_until_the_endpoint_refuses_that(
    server: Server, ask: Ask, status: int
) -> None:
    rows = [row for number in range(3) for row in pair(prompt_id=str(number))]
    wish = {"type": "json_object"}
    ask(rows[:2])
    assert [request["response_format"] for request in server.requests] == [wish] * 2
    server.requests.clear()

    def answer(request: dict[str, Any]) -> Any:
        return (
            (status, {}, b"unknown field response_format") if "response_format" in request else "C"
        )

    server.answer = answer
    verdicts = ask(rows, concurrency=1)
    assert [judged["verdict"] for judged in verdicts] == ["tie"] * 3
    assert [request.get("response_format") for request in server.requests] == [
        wish,
        None,
        None,
        None,
        None,
    ]
    assert total_calls(verdicts)["requests"] == 5
    assert total_calls(verdicts)["cached"] == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_that_meets_every_request_ends_the_run(
    server: Server, ask: Ask, status: int
) -> None:
    server.answer = lambda request: (status, {}, f"the key {KEY} is wrong".encode())
    with pytest.raises(
        UsageError, match=f"status {status}: 'the key \\*\\*\\* is wrong'"
    ) as caught:
        ask(pair())
    assert caught.value.hint


def test_a_timeout_is_tried_again(server: Server, ask: Ask) -> None:
    release = threading.Event()
    server.answer = lambda request: "A" if len(server.requests) > 1 else str(release.wait(120))
    (judged,) = ask(pair(), timeout_s=1)
    release.set()
    assert judged["verdict"] == "tie"
    assert judged["calls"]["requests"] >= 3


def test_timeouts_without_end_are_a_failure(server: Server, ask: Ask) -> None:
    release = threading.Event()
    server.answer = lambda request: str(release.wait(120))
    (judged,) = ask(pair(), timeout_s=0.05)
    release.set()
    assert judged["error"] == "after 6 tries: no reply within 0.05 s"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://[/v1"])
def test_an_endpoint_that_is_not_there_ends_the_run_at_once(
    ask: Ask, url: str, waits: list[float]
) -> None:
    with pytest.raises(UsageError, match="cannot be reached") as caught:
        ask(pair(), base_url=url)
    assert repr(url) in str(caught.value)
    assert waits == []


def test_an_endpoint_that_goes_away_is_waited_for(server: Server, ask: Ask) -> None:
    def answer(request: dict[str, Any]) -> Any:
        if len(server.requests) in (2, 3):
            raise ConnectionAbortedError
        return "C"

    server.answer = answer
    assert ask(pair())[0]["verdict"] == "tie"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_a_time_than_asked_for(
    server: Server, ask: Ask, concurrency: int
) -> None:
    together = threading.Barrier(concurrency, timeout=120)

    def answer(request: dict[str, Any]) -> str:
        together.wait()
        return "A"

    server.answer = answer
    rows = [row for number in range(6) for row in pair(prompt_id=str(number))]
    verdicts = ask(rows, concurrency=concurrency)
    assert [judged["prompt_id"] for judged in verdicts] == [str(number) for number in range(6)]
    assert (len(server.requests), server.most_running) == (12, concurrency)


def test_the_key_is_nowhere(server: Server, ask: Ask, tmp_path: Path) -> None:
    server.answer = lambda request: (
        (400, {}, f"bad key {KEY} {'x' * 178} {KEY}".encode()) if "of b" in shown(request) else "A"
    )
    verdicts = ask([*pair(), *pair(prompt_id="b")])
    list(record(tmp_path / JUDGEMENTS, verdicts))
    assert "bad key *** xxx" in str(verdicts[1]["error"])
    assert KEY[:3] not in str(verdicts[1]["error"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4  # with the folder's lock
    assert all(KEY not in path.read_text() for path in files)
    assert KEY not in repr(JudgeServer(base_url="http://h", model="m", api_key=KEY))


def test_without_a_key_none_is_sent(server: Server, ask: Ask) -> None:
    ask(pair(), api_key=None)
    assert server.keys == {None}


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\N{ZERO WIDTH SPACE}"])
def test_a_key_that_no_header_takes_is_refused_unseen(key: str) -> None:
    with pytest.raises(UsageError, match="API key") as caught:
        JudgeServer(base_url="http://h", model="m", api_key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}]
)
def test_endpoints_have_positive_numbers(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        JudgeServer(base_url="http://h", model="m", **options)


@pytest.mark.parametrize("url", ["", "nonsense", "localhost:8000/v1", "http:///v1", "ftp://h"])
def test_an_endpoint_has_an_address(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a judge"):
        JudgeServer(base_url=url, model="m")


@pytest.mark.parametrize(
    ("method", "baseline"), [("best_of_n:80", BASELINE), (METHOD, "best_of_n:80")]
)
def test_an_unknown_method_is_told_before_anything_is_asked(
    tmp_path: Path, method: str, baseline: str
) -> None:
    endpoint = JudgeServer(base_url="http://h", model="m")
    with pytest.raises(UnknownNameError, match="unknown method 'best_of_n:80'") as caught:
        judge(pair(), method=method, baseline=baseline, endpoint=endpoint, cache=tmp_path)
    assert "did you mean 'best_of_n:8'" in str(caught.value.hint)


def test_verdicts_are_recorded_as_they_come_and_the_last_one_counts(
    server: Server, ask: Ask, tmp_path: Path
) -> None:
    path = tmp_path / JUDGEMENTS
    assert read_verdicts(tmp_path) == []
    server.answer = lambda request: "hm"
    (failed,) = ask(pair())
    server.answer = prefer("good")
    won, other = ask([*pair(), *pair(prompt_id="b")])
    recorded = record(path, iter([failed, other]))
    assert next(recorded) == failed
    assert read_verdicts(tmp_path) == [failed]
    list(recorded)
    list(record(path, [won]))
    assert read_verdicts(tmp_path) == [won, other]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "[]",
        "\udcff",
        '{"letter": "A"}',
        '{"prompt_tokens": 1, "completion_tokens": 1}',
    ],
)
def test_a_damaged_reply_in_the_cache_is_asked_for_again(
    server: Server, ask: Ask, tmp_path: Path, content: str
) -> None:
    server.answer = prefer("good")
    whole = ask(pair())
    for path in (tmp_path / "cache").iterdir():
        path.write_text(content, errors="surrogateescape")
    (again,) = ask(pair())
    assert (again["verdict"], again["calls"]["requests"]) == (whole[0]["verdict"], 2)
    assert ask(pair())[0]["calls"]["cached"] == 2


def test_a_cache_that_cannot_be_written_is_said(server: Server, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot write .*cache"):
        ask(pair())


def test_leaving_early_asks_no_more(server: Server, tmp_path: Path) -> None:
    rows = [row for number in range(50) for row in pair(prompt_id=str(number))]
    endpoint = JudgeServer(base_url=f"{server.url}/v1", model="m", concurrency=1)
    verdicts = judge(rows, method=METHOD, baseline=BASELINE, endpoint=endpoint, cache=tmp_path)
    next(iter(verdicts))
    verdicts.close()  # type: ignore[attr-defined]
    asked = len(server.requests)
    assert asked < 100
    assert threading.active_count() < 50


def test_leaving_early_ends_what_is_under_way(server: Server, tmp_path: Path) -> None:
    asked, ended, outcomes = threading.Event(), threading.Event(), []

    def answer(request: dict[str, Any]) -> str:
        if "of 1" in shown(request):
            asked.set()
            outcomes.append(ended.wait(120))
        return "A" if asked.wait(120) else ""

    server.answer = answer
    rows = [*pair(prompt_id="0"), *pair(prompt_id="1")]
    endpoint = JudgeServer(base_url=server.url, model="m", concurrency=2)
    verdicts = judge(rows, method=METHOD, baseline=BASELINE, endpoint=endpoint, cache=tmp_path)
    next(iter(verdicts))
    verdicts.close()  # type: ignore[attr-defined]
    ended.set()
    while not outcomes:
        threading.Event().wait(0.01)
    assert outcomes == [True]
