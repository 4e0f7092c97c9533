"""What the command shows of a result, without a command."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from answers import answer, result_of
from specrej.cli.display import print_result

RESULT = result_of(answer(0, "good", 1.0), best=0)


def shown(votes: Mapping[str, float] | None, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_result(replace(RESULT, votes=votes), is_interrupted=False)
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("votes")]


@pytest.mark.parametrize(
    ("votes", "line"),
    [
        ({"42": 9.0, "41": 2.5}, "votes 42: 9, 41: 2.5"),
        ({"two\nlines \x1b[1m": 1.0}, "votes two lines \ufffd[1m: 1"),
        ({"x" * 50: 3.0}, f"votes {'x' * 39}…: 3"),
        (
            {str(one): 1.0 for one in range(8)},
            "votes 0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 3 other answers",
        ),
        ({}, "votes none: no candidate gave an answer, so the reward chose"),
    ],
)
def test_votes_are_one_line(
    votes: Mapping[str, float], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(votes, capsys) == [line]


def test_without_votes_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(None, capsys) == []
