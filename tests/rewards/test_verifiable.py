"""Rewards that check: patterns, texts, and mathematics in a process of its own."""

import json
import re
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.errors import PromptError, RewardError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.answers import final_answer, marked_answer
from specrej.rewards.references import read_references
from specrej.rewards.verifiable import (
    ExactMatchReward,
    MathReward,
    RegexReward,
)
from specrej.types import Candidate, Message

PROMPT = [{"role": "user", "content": "What is 6 times 7?"}]


def score(reward: Any, *texts: str, messages: list[dict[str, str]] = PROMPT) -> list[float]:
    """Of finished answers."""
    session = reward.open(messages)
    scores = list(
        session.score(
            [Candidate(i, text=text, finish_reason="eos") for i, text in enumerate(texts)]
        )
    )
    assert session.num_tokens == 0
    assert reward.flops_per_token == 0.0
    return scores


def test_a_pattern_is_searched_for_in_partial_texts_too() -> None:
    reward = as_reward(r"regex:(?i)\bpa?ris\b&x=1|lyon")
    texts = ["", "Well, PARIS&x=1.", "Parish", "lyon"]
    expected = [float(re.search(r"(?i)\bpa?ris\b&x=1|lyon", text) is not None) for text in texts]
    assert (
        reward.open(PROMPT).score([Candidate(i, text=text) for i, text in enumerate(texts)])
        == expected
    )
    assert expected == [0, 1, 0, 1]
    assert reward.name == r"regex:(?i)\bpa?ris\b&x=1|lyon"


@pytest.mark.parametrize(
    ("pattern", "where"), [("a(b", "position 1"), ("[z-a]", "position 1"), ("x{9999999999}", "")]
)
def test_a_pattern_that_does_not_compile_is_refused(pattern: str, where: str) -> None:
    with pytest.raises(UsageError, match=f"does not compile: .*{where}"):
        RegexReward(pattern)


@pytest.mark.parametrize("name", ["regex", "exact_match", "math"])
def test_without_an_argument_the_right_form_is_shown(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        as_reward(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("forty two", True),
        ('  "Forty\n two." ', True),
        ("**forty two**!", True),
        ("Let me see.\nIt must be\nForty Two\n\n", True),
        (r"So \boxed{forty two}, not thirty", True),
        (r"\boxed{thirty} or \boxed{forty two}", True),
        ("thus #### forty two\nor so", True),
        ("forty two\nor so", False),
        ("It is forty two", False),
        (r"\boxed{thirty}" + "\nforty two", False),
        ("forty-two", False),
        ("", False),
    ],
)
def test_the_whole_answer_or_its_final_one_must_match(text: str, is_right: bool) -> None:
    assert score(as_reward("exact_match:Forty two"), text) == [float(is_right)]


def test_signs_and_decimals_count() -> None:
    assert score(ExactMatchReward("5"), "-5", ".5", "5", "$5$.", "5%") == [0, 0, 1, 1, 0]
    assert score(ExactMatchReward("?!"), "?!", "!", "") == [1, 0, 0]


def test_a_reference_of_several_lines_is_matched_whole() -> None:
    assert score(ExactMatchReward("one\ntwo"), "One\nTwo", "two", "one two") == [1, 0, 1]
    assert score(ExactMatchReward("6 * 7 = 42\n#### 42"), "so\n42") == [1]


def test_an_unfinished_answer_has_no_final_answer() -> None:
    for reward in (ExactMatchReward("42"), MathReward("42")):
        assert reward.open(PROMPT).score(
            [Candidate(0, text="42"), Candidate(1, text="42", finish_reason="length")]
        ) == [
            0.0,
            1.0,
        ]


@given(
    st.recursive(st.text("ab 1\n"), lambda inner: st.builds("{{{}}}".format, inner), max_leaves=8),
    st.text("xy}\n "),
)
def test_a_box_ends_at_its_own_brace(content: str, after: str) -> None:
    assert marked_answer(rf"{{ a \boxed{{{content}}}{after}") == content
    assert marked_answer(rf"\boxed{{{content}") == rf"\boxed{{{content}", (
        "a box that is open marks nothing"
    )


@given(st.lists(st.text("ab1. \t")))
def test_the_final_answer_without_a_mark_is_the_last_line(lines: list[str]) -> None:
    said = [line.strip() for line in lines if line.strip()]
    assert final_answer("\n".join(lines)).strip() == (said[-1] if said else "")


@pytest.fixture(scope="module")
def maths() -> MathReward:
    return MathReward("1/2")


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("0.5", True),
        (r"So we get $\frac{2}{4}$.", True),
        (r"\boxed{\frac{1}{2}} and not 3", True),
        ("The answer is 1/2.", True),
        ("0.51", False),
        (r"\boxed{2}", False),
        ("no idea", False),
        ("", False),
    ],
)
def test_mathematics_is_compared_by_value(maths: MathReward, text: str, is_right: bool) -> None:
    assert score(maths, text) == [float(is_right)]


@settings(deadline=None, max_examples=30)
@given(st.fractions(-99, 99, max_denominator=30), st.fractions(-99, 99, max_denominator=30))
def test_fractions_are_equal_where_python_says_so(
    maths: MathReward, given_: Fraction, other: Fraction
) -> None:
    # One reward, so one worker: the reference is an argument of the request.
    reference = rf"\frac{{{given_.numerator}}}{{{given_.denominator}}}"
    answers = [(f"{f.numerator * 3}/{f.denominator * 3}", f) for f in (given_, other, -given_)]
    for text, value in answers:
        assert maths._is_equal(reference, rf"\boxed{{{text}}}") == (value == given_)


def test_latex_needs_no_dollars_around_it() -> None:
    assert score(MathReward(r"\sqrt{2}"), r"$\sqrt{2}$", "$2^{1/2}$", "2") == [1, 1, 0]
    assert score(MathReward("She pays 3 * 4.\n#### 12"), "12 dollars") == [1]


def test_what_hangs_is_wrong_and_the_next_answer_is_checked() -> None:
    reward = MathReward("42", timeout_s=4)
    huge = r"\boxed{9^{9^{9^9}}}"  # stays in C, where no signal would reach it
    assert score(reward, "42", huge, "42", huge, "41") == [1, 0, 1, 0, 0]
    assert reward._verifier.process is not None
    assert reward._verifier.process.poll() is None


def test_a_worker_that_dies_is_replaced(maths: MathReward) -> None:
    assert score(maths, "1/2") == [1]
    process = maths._verifier.process
    assert process is not None
    process.kill()
    process.wait()
    assert score(maths, "1/2", "1/2") == [0, 1]


def test_threads_can_check_too(maths: MathReward) -> None:
    found: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: found.append(score(maths, "1/2", "1/3"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0]] * 4


def test_the_worker_ends_with_its_reward() -> None:
    reward = MathReward("42")
    score(reward, "42")
    process = reward._verifier.process
    assert process is not None
    del reward
    assert process.returncode is not None


def test_a_reference_that_is_no_mathematics_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = MathReward("42")
    monkeypatch.setattr(reward._verifier, "_ask", lambda request: "null")
    with pytest.raises(RewardError, match="cannot read the reference '42'"):
        score(reward, "42")


def test_without_math_verify_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        MathReward("42")
    assert caught.value.hint == "pip install 'specrej[math]'"


def test_a_worker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = MathReward("42")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RewardError, match="ended at once"):
        score(reward, "42")


def test_the_time_limit_is_above_zero() -> None:
    with pytest.raises(UsageError, match="timeout_s"):
        MathReward("42", timeout_s=0)


def write(path: Path, *rows: Any) -> str:
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return f"@{path}"


def test_references_are_looked_up_by_the_last_question(tmp_path: Path) -> None:
    conversation: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "b\u2028?"},
    ]
    spec = write(
        tmp_path / "answers.jsonl",
        {"prompt": "a?", "answer": 42},
        json.dumps({"messages": conversation, "answer": "two"}, ensure_ascii=False),
        {"turns": ["x", "c?"], "answer": "three", "id": 7},
        {"prompt": "a?", "answer": "42"},
    )
    find = read_references(spec)
    assert find([{"role": "user", "content": "a?"}]) == "42"
    assert find(conversation) == "two"
    assert find([{"role": "system", "content": "a?"}, {"role": "user", "content": "c?"}]) == "three"
    for question in ("x", "Hi", "a? "):
        with pytest.raises(PromptError, match=re.escape(f"no answer to the prompt {question!r}")):
            find([{"role": "user", "content": question}])
    messages = [{"role": "user", "content": "a?"}]
    assert score(as_reward(f"exact_match:{spec}"), "42", "two", messages=messages) == [1, 0]
    assert score(as_reward(f"math:{spec}"), "42.0", "2", messages=messages) == [1, 0]
    with pytest.raises(PromptError):
        as_reward(f"math:{spec}").open(PROMPT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 3 of .* is no reference"),
        ({"prompt": "a?"}, "line 3 of .* has no 'answer'"),
        ({"answer": "a"}, "line 3 of .* has no 'prompt'"),
        ({"prompt": 3, "answer": "a"}, "not a text"),
        ({"prompt": "b", "answer": True}, "the answer is True"),
        ({"prompt": "b", "answer": " "}, "the answer is ' '"),
        ({"turns": [], "answer": "a"}, "is no reference"),
        (["a"], "is no reference"),
        ({"prompt": "a?", "answer": "two"}, "line 3 of .* has another answer to 'a[?]'"),
    ],
)
def test_a_broken_file_is_refused_by_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_references(write(tmp_path / "answers.jsonl", {"prompt": "a?", "answer": "one"}, row))


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_references(f"@{tmp_path / 'none.jsonl'}")
    with pytest.raises(UsageError, match="holds no references"):
        read_references(write(tmp_path / "answers.jsonl", ""))
    with pytest.raises(UsageError, match="empty"):
        read_references(" ")
