"""Progress says what is done, how fast, and how long it will take."""

import time
from collections.abc import Callable

import pytest

from specrej.cli.progress import RowProgress

Advance = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Advance:
    """A clock that goes on when asked."""
    now_s = 1000.0

    def advance(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    return advance


def test_the_rate_is_of_what_is_run_now_once_all_is_open(
    pass_time: Advance, capsys: pytest.CaptureFixture[str]
) -> None:
    with RowProgress(total=7400, unit="prompts", num_done=198) as progress:
        pass_time(300)  # a model that takes long to open
        progress.begin()
        pass_time(60)
        progress.advance("a", num_tokens=120)
        pass_time(60)
        progress.advance("[b]", num_tokens=240)
    assert capsys.readouterr().err.splitlines() == [
        "199 of 7400 prompts: a (1.0 prompts/min, 2 tokens/s, 120:01:00 left)",
        "200 of 7400 prompts: [b] (1.0 prompts/min, 3 tokens/s, 120:00:00 left)",
    ]


def test_lines_are_a_second_apart_but_for_failures_and_the_last(
    pass_time: Advance, capsys: pytest.CaptureFixture[str]
) -> None:
    with RowProgress(total=30, unit="rows") as progress:
        for number in range(30):
            pass_time(0.1)
            progress.advance(str(number), "no \x1b score" if number == 3 else None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["1", "4", "11", "21", "30"]
    assert lines[0] == "1 of 30 rows: 0 (600.0 rows/min, 0:00:03 left)"
    assert lines[1] == "4 of 30 rows: 3 failed: no \ufffd score"
