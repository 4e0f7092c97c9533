"""Answers within texts, and which of them are the same."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.errors import UnknownNameError, UsageError
from specrej.rewards import answers
from specrej.rewards.answers import extractor_of, form_of, same_answer

FOUND: list[tuple[str, str, str | None]] = [
    ("auto", r"so 3 and \boxed{\frac{1}{2}} of 7", r"\frac{1}{2}"),
    ("auto", "16 - 7 = 9\n#### 18", "18"),
    ("auto", "It makes $1,018.50 a day.", "1,018.50"),
    ("auto", "no idea", None),
    ("auto", "", None),
    ("boxed", "It is 18.", None),
    ("boxed", r"\boxed{a{b}c}", "a{b}c"),
    ("number", r"\boxed{x} is -3", "-3"),
    ("number", "10-5", "5"),
    ("number", "x = .5.", ".5"),
    ("number", "by 2024-11-28", "28"),
    ("text", " Paris ", " Paris "),
    ("text", "\n", None),
    (r"regex:answer is (\w+)", "The answer is A, no: the answer is B.", "B"),
    (r"regex:\b[A-D]\b", "A or C", "C"),
    (r"regex:(x)?y", "y", None),
]


@pytest.mark.parametrize(("spec", "text", "answer"), FOUND)
def test_what_is_found(spec: str, text: str, answer: str | None) -> None:
    assert extractor_of(spec)(text) == answer


def test_a_function_is_taken_as_it_is_and_by_its_name() -> None:
    assert extractor_of(str.title)("a b") == "A B"
    assert extractor_of("textwrap:dedent")("  a") == "a"


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("nubmer", UnknownNameError), ("regex:(", UsageError), ("math:pi", UsageError)],
)
def test_what_finds_nothing(spec: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        extractor_of(spec)


SAME = [
    ("1,000", "1000.0"),
    ("$18", "18."),
    ("50%", "50"),
    (r"50\%", "50"),
    ("Paris.", "paris"),
    ("-.5", "-0.50"),
    (r"\frac{1}{2}", "0.5"),
    (r"x^2+2x+1", r"(x+1)^2"),
]
DIFFERENT = [("18", "-18"), ("1000", "100"), ("Paris", "Rome"), ("A", "B"), (r"\frac12", "0.25")]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one: str, other: str) -> None:
    assert not same_answer(one, other)


def test_without_math_verify_texts_and_numbers_are_compared(monkeypatch: Any) -> None:
    monkeypatch.setattr(answers, "is_installed", lambda: False)
    assert same_answer("1,000", "1000.0")
    assert not same_answer(r"\frac{1}{2}", "0.5")


@given(st.integers(-(10**9), 10**9), st.integers(0, 3))
@settings(deadline=None)
def test_a_number_is_one_however_it_is_written(value: int, num_zeros: int) -> None:
    zeros = "." + "0" * num_zeros if num_zeros else ""
    forms = {form_of(f"{value:,}{zeros}"), form_of(f"**{value}**."), form_of(f"${value}$")}
    assert forms == {value}


@given(st.text())
@settings(deadline=None)
def test_any_text_has_a_form_and_at_most_one_last_number(text: str) -> None:
    form_of(text)
    found = answers.number(text)
    assert found is None or re.fullmatch(r"[-+]?[\d,]*\.?\d+", found)


def _boom(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("spec", "said"), [(_boom, "failed: ValueError"), (len, "must return a text or None, got 4")]
)
def test_a_function_that_gives_no_answer_is_named(spec: Any, said: str) -> None:
    with pytest.raises(UsageError, match="extract <.*" + said):
        extractor_of(spec)("text")
