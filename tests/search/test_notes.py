"""What a result says of itself in words."""

from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej.types import GREEDY_NOTE, UNSPLIT_NOTE


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({}, None),
        ({"reward_sees": "all"}, None),
        ({"reward_sees": "answer"}, UNSPLIT_NOTE),
        ({"reward_sees": "answer", "temperature": 0}, f"{GREEDY_NOTE}; {UNSPLIT_NOTE}"),
    ],
)
def test_a_result_says_where_no_thought_can_be_told(
    options: dict[str, Any], notes: str | None
) -> None:
    opened: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward()}
    result = specrej.generate("Why?", **opened, n=3, max_new_tokens=6, **options)
    assert result.note == notes
    assert result.to_dict()["settings"].get("note") == notes
