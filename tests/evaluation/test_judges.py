"""The judges that grade, weigh and score: what is asked, what is read, and what it comes to."""

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import Server, completion, record_waits, serving
from specrej.evaluation import judge_weighted
from specrej.evaluation import length_controlled as length_module
from specrej.evaluation.bias import Leaning, judge_bias
from specrej.evaluation.judge_client import JudgeClient, JudgeServer
from specrej.evaluation.judge_grade import grade_turn
from specrej.evaluation.judge_scores import score_pair
from specrej.evaluation.judge_weighted import shown_first, weigh
from specrej.evaluation.length_controlled import PreferredPair, length_controlled
from specrej.evaluation.rows import BenchRow

METHOD, BASELINE = "speculative_rejection:0.5", "best_of_n:8"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    record_waits(monkeypatch)
    with serving(lambda answer: answer) as server:
        yield server


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[JudgeClient]:
    judge = JudgeClient(
        JudgeServer(base_url=f"{server.url}/v1", model="some-judge"), tmp_path / "cache"
    )
    with judge._remote:
        yield judge


def row(
    *texts: str, prompt_id: str = "a", category: str = "math", method: str = METHOD
) -> BenchRow:
    messages: list[dict[str, str]] = []
    turns = []
    for number, text in enumerate(texts):
        messages.append({"role": "user", "content": f"what {number}"})
        turns.append({"messages": list(messages), "text": text})
        messages.append({"role": "assistant", "content": text})
    error = None if texts else {"kind": "RewardError", "message": "NaN"}
    return cast(
        "BenchRow",
        {
            "prompt_id": prompt_id,
            "category": category,
            "method": method,
            "turns": turns,
            "error": error,
        },
    )


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good. [[7]]", 7),
        ("[[8.5]] and not [[2]]", 8.5),
        ("<think>[[1]]</think> [[9]]", 9),
        ("Rating: [[10]]", 10),
        ("[[11]] no, [[5]]", None),
        ("[[0]]", None),
        ("[7]", None),
        ("seven", None),
    ],
)
def test_a_grade_is_the_first_in_double_brackets(
    server: Server, client: JudgeClient, text: str, grade: float | None
) -> None:
    server.answer = lambda request: completion(text)
    graded = grade_turn(client, row("4"), turn=1, references=())
    assert graded["grade"] == grade
    assert (graded["error"] is None) == (grade is not None)
    assert graded["calls"]["requests"] == (1 if grade is not None else 2)
    assert graded["calls"]["prompt_tokens"] == 100 * graded["calls"]["requests"]


def test_one_question_of_several_threads_is_asked_once(server: Server, tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        threading.Event().wait(0.1)  # the others have time to ask the same
        return completion("[[7]]")

    server.answer = answer
    judge = JudgeClient(JudgeServer(base_url=server.url, model="some-judge"), tmp_path / "cache")
    ask = partial(grade_turn, row=row("same"), turn=1, references=())
    graded = list(judge.ask_all([ask] * 4))
    assert [one["grade"] for one in graded] == [7] * 4
    assert (len(server.requests), sum(one["calls"]["cached"] for one in graded)) == (1, 3)


def test_a_turn_is_graded_in_its_conversation(server: Server, client: JudgeClient) -> None:
    server.answer = lambda request: completion("[[5]]")
    references = ("right 0", "right 1")
    for turn, category in ((1, "math"), (2, "math"), (2, "writing")):
        graded = grade_turn(
            client, row("first", "second", category=category), turn=turn, references=references
        )
        assert graded["has_reference"] == (category == "math")
    one, two, plain = (request["messages"][1]["content"] for request in server.requests)
    assert all(word in one for word in ("what 0", "first", "right 0"))
    assert not any(word in one for word in ("what 1", "second", "right 1"))
    assert all(
        word in two for word in ("what 0", "first", "what 1", "second", "right 0", "right 1")
    )
    assert "right" not in plain
    systems = [request["messages"][0]["content"] for request in server.requests]
    assert ["last question" in system for system in systems] == [False, True, True]
    assert grade_turn(client, row(), turn=2, references=())["grade"] == 1
    assert len(server.requests) == 3
    grade_turn(client, row("first", "second"), turn=2, references=references)
    assert len(server.requests) == 3  # from the cache


@pytest.mark.parametrize("references", [(), ("right 0",), ("right 0", "")])
def test_a_turn_without_a_reference_is_graded_as_others_are(
    server: Server, client: JudgeClient, references: tuple[str, ...]
) -> None:
    server.answer = lambda request: completion("[[5]]")
    graded = grade_turn(client, row("first", "second"), turn=2, references=references)
    assert not graded["has_reference"]
    assert "reference" not in server.requests[0]["messages"][0]["content"]


def tops(*pairs: tuple[str, float]) -> bytes:
    top = [{"token": token, "logprob": logprob} for token, logprob in pairs]
    choice = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    return json.dumps({"choices": [choice]}).encode()


QUESTIONS = {True: "", False: ""}
for _number in range(64):
    QUESTIONS[shown_first(f"Why {_number}?")] = f"Why {_number}?"


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("small", "large"),
    [(-0.1, -2.5), (-30.0, -0.001), (-1e4, -1e4 - 1), (-2.0, None), (None, -3.0)],
)
def test_a_preference_is_that_of_the_protocol(
    server: Server, client: JudgeClient, is_first: bool, small: float | None, large: float | None
) -> None:
    """2 - P(m) / (P(m) + P(M)) for the second answer, and turned round where the method is
    first."""
    known = [(token, value) for token, value in (("m", small), ("M", large)) if value is not None]
    server.answer = lambda request: tops(("The", -0.5), *known)
    given = weigh(
        client,
        row("long answer"),
        instruction=QUESTIONS[is_first],
        other="other",
        baseline=BASELINE,
    )
    if small is None or large is None:
        second = 2.0 if small is None else 1.0
    else:
        second = 2 - 1 / (1 + math.exp(min(large - small, 700)))
    assert given["preference"] == pytest.approx(3 - second if is_first else second)
    assert (given["method_first"], given["characters"], given["other_characters"]) == (
        is_first,
        11,
        5,
    )
    (request,) = server.requests
    assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 5)
    shown = request["messages"][1]["content"]
    assert (shown.index("long answer") < shown.index("other")) == is_first


def test_nobody_is_asked_where_the_texts_are_the_same(server: Server, client: JudgeClient) -> None:
    how: dict[str, Any] = {"instruction": "Why?", "other": "text", "baseline": BASELINE}
    assert weigh(client, row("text"), **how)["preference"] == 1.5
    assert weigh(client, row(), **how)["preference"] == 1.0
    assert server.requests == []


@pytest.mark.parametrize(
    "body",
    [
        tops(("The", -0.5)),
        tops(("m", -math.inf)),
        completion("m"),
        b"{}",
        b'{"choices": [{"logprobs": {"content": []}}]}',
        b'{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "m"}]}]}}]}',
    ],
)
def test_a_reply_without_probabilities_is_a_failure(
    server: Server, client: JudgeClient, body: bytes
) -> None:
    server.answer = lambda request: body
    given = weigh(client, row("a"), instruction="Why?", other="b", baseline=BASELINE)
    assert given["preference"] is None
    assert str(given["error"]).startswith("no log-probability of m or M in the judge's reply '")


def test_the_words_are_alpaca_evals_where_it_is_installed(
    server: Server, client: JudgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "installed" / "alpaca_eval" / "evaluators_configs"
    (folder / "alpaca_eval_clf_gpt4_turbo").mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('is not imported')")
    (folder / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt").write_text(
        '<|im_start|>system\nChoose.\n<|im_end|>\n<|im_start|>user\n{"q": "{instruction}"}\n'
        "m: {output_1}\nM: {output_2}\n<|im_end|>"
    )
    monkeypatch.syspath_prepend(tmp_path / "installed")
    judge_weighted._alpaca_eval_template.cache_clear()
    server.answer = lambda request: tops(("m", -1.0), ("M", -1.0))
    try:
        question = QUESTIONS[False]
        given = weigh(
            client, row("{output_1}"), instruction=question, other="theirs", baseline=BASELINE
        )
    finally:
        monkeypatch.undo()
        judge_weighted._alpaca_eval_template.cache_clear()
    assert (given["template"], given["preference"]) == ("alpaca_eval", 1.5)
    assert server.requests[0]["messages"] == [
        {"role": "system", "content": "Choose."},
        {
            "role": "user",
            "content": f'{{"q": "{question}"}}\nm: theirs\nM: {{output_1}}',
        },
    ]


def scores(helpful: object, harmless: object, precise: object) -> dict[str, object]:
    return {"helpful": helpful, "harmless": harmless, "precise": precise}


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (scores(7, 8, 9), scores(7, 8, 8), "win"),
        (scores(1, 10, 5), scores(8, 5, 3), "tie"),
        (scores(1.5, 1, 1), scores(2, 1, 1), "loss"),
        (scores(0, 1, 1), scores(2, 1, 1), "failed"),
        (scores(True, 1, 1), scores(2, 1, 1), "failed"),
        (scores(5, 1, 11), scores(2, 1, 1), "failed"),
        ({"helpful": 5}, scores(2, 1, 1), "failed"),
        (None, scores(2, 1, 1), "failed"),
    ],
)
def test_scores_make_a_verdict_by_their_sums(
    server: Server, client: JudgeClient, mine: Any, theirs: Any, verdict: str
) -> None:
    orders = set()
    for name in "abcdefgh":
        pair = row("good", prompt_id=name), row("bad", prompt_id=name, method=BASELINE)

        def answer(request: dict[str, Any]) -> bytes:
            shown = request["messages"][1]["content"]
            is_first = shown.index("good") < shown.index("bad")
            both = {"A": mine, "B": theirs} if is_first else {"A": theirs, "B": mine}
            return completion(json.dumps(both))

        server.answer = answer
        scored = score_pair(client, *pair)
        assert scored["verdict"] == verdict
        assert scored["scores"] == (None if verdict == "failed" else mine)
        orders.add(scored["method_first"])
    assert orders == {True, False}
    assert score_pair(client, row("x"), row("x"))["verdict"] == "tie"
    assert score_pair(client, row(), row("x"))["verdict"] == "loss"
    assert score_pair(client, row("x"), row())["method_first"] is None
    for mine in (row(), row("x")):
        alone = score_pair(client, mine, row())
        assert (alone["verdict"], alone["error"]) == ("failed", "the baseline has no answer")


def test_a_judge_that_gives_the_example_back_prefers_no_place(
    server: Server, client: JudgeClient
) -> None:
    def example(request: dict[str, Any]) -> bytes:
        said: str = request["messages"][0]["content"]
        return completion(said[said.index('{"A"') :])

    server.answer = example
    scored = score_pair(client, row("one"), row("another"))
    assert (scored["verdict"], scored["error"]) == ("tie", None)


def test_a_reply_that_cannot_be_read_is_quoted(server: Server, client: JudgeClient) -> None:
    """Its text, not the identifiers and names that the body begins with."""
    said = json.loads(completion("It is fine: 7 of 10."))
    server.answer = lambda request: json.dumps({"id": "x" * 300, **said}).encode()
    graded = grade_turn(client, row("one"), turn=1, references=())
    assert graded["error"] == "no grade as in [[5]] in the judge's reply 'It is fine: 7 of 10.'"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(-9, 9))))
def test_leanings_are_those_of_numpy(asked: list[tuple[float, bool, int]]) -> None:
    found = judge_bias([Leaning(*one) for one in asked])
    for name, place in (("win_first", True), ("win_second", False)):
        wins = [won for won, is_first, _ in asked if is_first == place]
        expected = np.mean(wins) if wins else None
        assert cast("Any", found)[name]["value"] == pytest.approx(expected)
    won, _, more = np.array(asked, dtype=float).reshape(-1, 3).T
    if len(won) and np.ptp(won) > 0 and np.ptp(more) > 0:
        expected = np.corrcoef(won, more)[0, 1]
        assert found["length_correlation"]["value"] == pytest.approx(expected)
    else:
        assert found["length_correlation"]["value"] is None


PAIRS = [PreferredPair(place=3, output="long", reference="x", preference=1.75)]


@pytest.fixture
def alpaca_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Installs an alpaca_eval whose length-controlled rate is what this function says."""
    (tmp_path / "installed" / "alpaca_eval").mkdir(parents=True)
    (tmp_path / "installed" / "alpaca_eval" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "installed")

    def install(rate: Any) -> None:
        module = SimpleNamespace(get_length_controlled_winrate=rate)
        monkeypatch.setitem(sys.modules, "alpaca_eval.metrics.glm_winrate", cast("Any", module))

    yield install
    sys.modules.pop("alpaca_eval", None)


@pytest.mark.parametrize(
    ("own_prompts", "name", "index", "low", "high"),
    [
        (True, "length_controlled_v1", 3, pytest.approx(56.08), pytest.approx(63.92)),
        (False, "length_controlled_minimal", 0, None, None),
    ],
)
def test_the_length_controlled_rate_is_alpaca_evals(
    alpaca_eval: Callable[[Any], None],
    own_prompts: bool,
    name: str,
    index: int,
    low: object,
    high: object,
) -> None:
    """Without difficulties there is no standard error: what alpaca_eval gives is rounding."""
    asked: list[Any] = []

    def rate(annotations: Any, **how: Any) -> dict[str, float]:
        asked.append((annotations, how))
        return {"length_controlled_winrate": 60.0, "lc_standard_error": 2.0}

    alpaca_eval(rate)
    found = length_controlled(PAIRS, own_prompts=own_prompts)
    assert found.rate == {"value": 60.0, "low": low, "high": high}
    assert found.words.startswith(f"alpaca_eval's {name}")
    assert ("no standard error" in found.words) != own_prompts
    ((annotations, how),) = asked
    assert how == {"glm_name": name, "save_weights_dir": None}
    assert annotations == [
        {
            "index": index,
            "output_1": "x",
            "output_2": "long",
            "generator_1": "reference",
            "generator_2": "method",
            "preference": 1.75,
        }
    ]


def test_why_there_is_no_length_controlled_rate(alpaca_eval: Callable[[Any], None]) -> None:
    def fails(annotations: Any, **how: Any) -> None:
        raise ConnectionError("no hub")

    alpaca_eval(fails)
    found = length_controlled(PAIRS, own_prompts=True)
    assert found.words == "none: alpaca_eval failed: ConnectionError: no hub"
    assert found.rate["value"] is None


def test_it_is_said_that_alpaca_eval_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_module, "find_spec", lambda name: None)
    assert "not installed" in length_controlled(PAIRS, own_prompts=True).words
