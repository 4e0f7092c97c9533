from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrej.errors import UnknownNameError, UsageError
from specrej.rewards.spec import parse_flag, parse_options

ALLOWED: dict[str, Callable[[str], Any]] = {"step": str, "size": int, "flag": parse_flag}


def test_head_and_options() -> None:
    assert parse_options("org/model?step=%0A&size=3&flag=1", ALLOWED) == (
        "org/model",
        {"step": "\n", "size": 3, "flag": True},
    )
    assert parse_options("org/model", ALLOWED) == ("org/model", {})
    assert parse_options("C:/a b%20?", ALLOWED) == ("C:/a b%20", {}), "the head is left as it is"
    assert parse_options("m?step=a=b?c+d", ALLOWED) == ("m", {"step": "a=b?c+d"})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_can_be_written(value: str) -> None:
    assert parse_options(f"m?step={quote(value)}", ALLOWED) == ("m", {"step": value})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("m?stepp=1", "unknown option 'stepp'"),
        ("m?step", "'step' in 'm[?]step' has no value"),
        ("m?step=a&step=b", "'step' is given twice"),
        ("m?size=x", "size='x' cannot be read"),
        ("m?flag=true", "flag='true' cannot be read: give 1 or 0"),
        ("m?step=a&&size=1", "has no value"),
    ],
)
def test_what_cannot_be_read_is_named(argument: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(argument, ALLOWED)


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_options("m?sized=1", ALLOWED)
    assert caught.value.hint is not None
    assert "did you mean 'size'" in caught.value.hint
    assert "known: flag, size, step" in caught.value.hint
