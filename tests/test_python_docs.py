"""docs/python.md shows every name of the package, and its examples run; only models are fakes."""

import re
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import rewards
from specrej.engines import opening

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: FakeEngine())
    monkeypatch.setattr(rewards, "_named", lambda _: FakeReward())


def test_every_name_of_the_package_is_shown() -> None:
    assert [
        name
        for name in specrej.__all__
        if not re.search(rf"\b{name}\b", TEXT) and name != "__version__"
    ] == []


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[number], names)
    said = capsys.readouterr().out
    assert said
    if number == 1:
        assert isinstance(names["first"], specrej.Result)
        assert [len(result.candidates) for result in names["results"]] == [8, 8]
