"""Policies from files: what they keep, and what a run that they were not made for says."""

import json
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej.errors import UsageError
from specrej.search.calibrated import CalibratedPolicy, read_policy
from specrej.search.gains import Forecast
from specrej.search.resolving import policy_of
from specrej.settings import Settings

LINE = Forecast(4, (-1.0, 1.0), (-2.0, 2.0), (1.0, 0.5), 4.0)
TWO = CalibratedPolicy(
    n=12, forecasts=(LINE, LINE._replace(num_tokens=8)), price=1e-4, name="two stages"
)


def written(path: Path, policy: CalibratedPolicy = TWO, **changed: Any) -> str:
    path.write_text(json.dumps({**policy.to_dict(), **changed}))
    return str(path)


def test_a_file_gives_back_the_policy_that_was_written(tmp_path: Path) -> None:
    assert read_policy(written(tmp_path / "policy.json")) == TWO
    policy = policy_of(Settings(policy=str(tmp_path / "policy.json")))
    assert (policy.name, policy.n, policy.first_tokens) == ("two stages", 12, 4)


def test_a_run_takes_candidates_and_decisions_from_the_file(tmp_path: Path) -> None:
    result = specrej.generate(
        "Why?",
        model=FakeEngine(eos=0),
        reward=FakeReward(),
        policy=written(tmp_path / "policy.json"),
        max_new_tokens=12,
    )
    assert len(result.candidates) == 12
    assert [decision.num_tokens for decision in result.decisions] == [4, 8, 12]
    first, second, _ = result.decisions
    assert first.rejected
    assert len(second.scored) == 12 - len(first.rejected)
    assert result.settings["policy"].endswith("policy.json")
    assert result.note is None


def test_a_number_that_is_asked_for_goes_first(tmp_path: Path) -> None:
    path = written(tmp_path / "policy.json")
    result = specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), policy=path, n=3)
    assert len(result.candidates) == 3


def test_a_run_that_it_was_not_calibrated_for_says_so(tmp_path: Path) -> None:
    path = written(
        tmp_path / "policy.json", recorded={"model": "another", "temperature": 1.0, "n": 12}
    )
    given: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward(), "policy": path}
    note = specrej.generate("Why?", **given).note
    assert note is not None
    assert "was calibrated for model 'another', here 'bytes'" in note
    assert "temperature" not in note
    assert "n 12" not in note
    with pytest.raises(UsageError, match="calibrated for model 'another'"):
        specrej.generate("Why?", strict=True, **given)
    assert "temperature 1.0, here 0.5" in str(specrej.generate("?", temperature=0.5, **given).note)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": "specrej policy 9"}, "its format is not 'specrej policy 2'"),
        ({"n": 0}, "n must be a whole number from 1 to below 2"),
        ({"n": "all"}, "n must be a whole number from 1"),
        ({"n": 10**400}, "n must be a whole number from 1"),
        ({"price": -1}, "price must be a number of 0 or more"),
        ({"forecasts": {}}, "forecasts must be a list"),
        ({"measured": 5}, "recorded, promise and measured must be objects"),
        ({"forecasts": [LINE._replace(scores=(-(10**308), 10**308))._asdict()]}, "and 1e100"),
        ({"price": 10**400}, "price must be a number"),
        ({"price": float("nan")}, "price must be a number"),
        ({"forecasts": [{"num_tokens": 4}]}, "KeyError: 'scores'"),
        ({"forecasts": [4]}, "TypeError"),
        ({"forecasts": [LINE._replace(num_tokens=0)._asdict()]}, "num_tokens must be a whole"),
        ({"forecasts": [LINE._replace(scores=(1.0, 1.0))._asdict()]}, "scores must rise"),
        ({"forecasts": [LINE._replace(finals=(1.0,))._asdict()]}, "must be equally many"),
        (
            {"forecasts": [LINE._replace(finals=(1.0, float("inf")))._asdict()]},
            "errors must be numbers",
        ),
        ({"forecasts": [LINE._replace(errors=(1.0, -1.0))._asdict()]}, "must not be below 0"),
        ({"forecasts": [LINE._asdict()] * 2}, r"rising lengths, got \(4, 4\)"),
        ({"unknown": 1}, "unknown"),
        ({"recorded": [1]}, "promise and measured must be objects"),
        ({"promise": None}, "promise and measured must be objects"),
    ],
)
def test_a_file_with_something_else_says_what_is_wrong(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = written(tmp_path / "policy.json", **changed)
    with pytest.raises(UsageError, match=rf"policy\.json holds no policy: .*{words}"):
        policy_of(Settings(policy=path))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read a policy from .*nothing\.json': No such"):
        policy_of(Settings(policy=str(tmp_path / "nothing.json")))
    (tmp_path / "text.json").write_text("keep the best")
    with pytest.raises(UsageError, match="it is no JSON"):
        policy_of(Settings(policy=str(tmp_path / "text.json")))
    (tmp_path / "text.json").write_text("[" * 200_000)
    with pytest.raises(UsageError, match="it is no JSON"):
        policy_of(Settings(policy=str(tmp_path / "text.json")))


@pytest.mark.parametrize("name", ["\0.json", "\ud800.json"])
def test_a_name_that_no_file_can_have_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="cannot read a policy from"):
        policy_of(Settings(policy=name))


def test_it_is_read_before_a_model_is_opened(tmp_path: Path) -> None:
    for call in (specrej.Session, lambda **given: specrej.generate("Why?", **given)):
        with pytest.raises(UsageError, match="cannot read a policy"):
            call(model=tmp_path / "none", policy=str(tmp_path / "nothing.json"))
