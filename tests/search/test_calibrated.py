"""Policies from files: what they keep, and what a run that they were not made for says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward
from specrej.errors import UsageError
from specrej.search.calibrated import CalibratedPolicy, Stage, best_of_all, read_policy
from specrej.search.resolving import policy_of
from specrej.settings import Settings
from specrej.types import Standing

TWO = CalibratedPolicy(n=12, decisions=(Stage(4, 6), Stage(8, 2)), name="two stages")


def written(path: Path, policy: CalibratedPolicy = TWO, **changed: Any) -> str:
    path.write_text(json.dumps({**policy.to_dict(), **changed}))
    return str(path)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 20),
    st.none() | st.integers(-3, 3),
)
@settings(deadline=None, derandomize=True)
def test_a_live_candidate_stays_if_fewer_than_so_many_are_better(
    batch: list[tuple[int, bool]], keep: int, best: int | None
) -> None:
    scores, is_live = [float(score) for score, _ in batch], [live for _, live in batch]
    known = None if best is None else float(best)
    stays = best_of_all([4], [keep])(Standing(4, scores, is_live, known))
    order = np.argsort(-np.array(scores), kind="stable").tolist()
    for place, score in enumerate(scores):
        # Of equals the first is better; whoever was complete before came first.
        num_better = order.index(place) + (known is not None and known >= score)
        assert stays[place] == (not is_live[place] or num_better < keep)


def test_between_two_lengths_the_first_says_how_many() -> None:
    rule = best_of_all([4, 8], [3, 1])
    for length, kept in [(1, 3), (4, 3), (7, 3), (8, 1), (100, 1)]:
        assert sum(rule(Standing(length, [1.0, 2.0, 3.0, 4.0], [True] * 4))) == kept


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
    assert [(d.num_tokens, len(d.scored), len(d.rejected)) for d in result.decisions] == [
        (4, 12, 6),
        (8, 6, 4),
        (12, 2, 0),
    ]
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
        ({"format": "specrej policy 9"}, "its format is not 'specrej policy 1'"),
        ({"n": 0}, "whole numbers above 0"),
        ({"n": "all"}, "whole numbers above 0"),
        ({"decisions": [{"num_tokens": 4}]}, "TypeError"),
        ({"decisions": [{"num_tokens": 4, "keep": -1}]}, "whole numbers above 0"),
        ({"decisions": [{"num_tokens": 4, "keep": 1}] * 2}, r"rising lengths, got \[4, 4\]"),
        ({"unknown": 1}, "unknown"),
        ({"recorded": [1]}, "recorded and promise must be objects"),
        ({"promise": None}, "recorded and promise must be objects"),
    ],
)
def test_a_file_with_something_else_says_what_is_wrong(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    path = written(tmp_path / "policy.json", **changed)
    with pytest.raises(UsageError, match=rf"policy\.json holds no policy: .*{words}"):
        policy_of(Settings(policy=path))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read a policy from .*nothing\.json: No such"):
        policy_of(Settings(policy=str(tmp_path / "nothing.json")))
    (tmp_path / "text.json").write_text("keep the best")
    with pytest.raises(UsageError, match="it is no JSON"):
        policy_of(Settings(policy=str(tmp_path / "text.json")))
    (tmp_path / "text.json").write_text("[" * 200_000)
    with pytest.raises(UsageError, match="it is no JSON"):
        policy_of(Settings(policy=str(tmp_path / "text.json")))


def test_it_is_read_before_a_model_is_opened(tmp_path: Path) -> None:
    for call in (specrej.Session, lambda **given: specrej.generate("Why?", **given)):
        with pytest.raises(UsageError, match="cannot read a policy"):
            call(model=tmp_path / "none", policy=str(tmp_path / "nothing.json"))
