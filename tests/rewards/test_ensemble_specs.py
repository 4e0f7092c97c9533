import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeReward
from specrej.errors import UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.rewards.ensemble import EnsembleReward, parse_ensemble
from specrej.types import Candidate

some = settings(max_examples=40, deadline=None, derandomize=True)


def score(reward: Reward) -> list[float]:
    answers = [Candidate(3, text="aab"), Candidate(4, text="b"), Candidate(9, text="aabbbb")]
    return list(reward.open([{"role": "user", "content": "Why?"}]).score(answers))


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specced.py").write_text(
        "def size(prompt, texts): return [len(text) for text in texts]\n"
        "def num_a(prompt, texts): return [text.count('a') for text in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "specced", raising=False)


@pytest.mark.usefixtures("metrics")
@pytest.mark.parametrize(
    ("spec", "scores"),
    [
        ("specced:size", [3, 1, 6]),
        ("specced:size*2", [6, 2, 12]),
        ("specced:size*0.5+specced:num_a", [3.5, 0.5, 5]),
        ("specced:size*-1+specced:num_a*2", [1, -1, -2]),
        ("specced:size*1e+1", [30, 10, 60]),
        ("'specced:size'*.5+\"specced:num_a\"", [3.5, 0.5, 5]),
        ("specced:size+specced:num_a?combine=worst", [2, 0, 2]),
        ("specced:size+specced:num_a?combine=cvar&share=1", [2.5, 0.5, 4]),
        ("specced:size+specced:num_a?combine=mean_minus_std&risk=2", [1.5, -0.5, 0]),
        ("specced:size?filter=regex:^a&filter_when=always", [3, 1, 6]),
        ("specced:size?filter_when=always&filter=regex:^a", [3, -math.inf, 6]),
        ("specced:size?filter_when=always&filter=regex:a?b{2,}|(?=a)+&?a", [3, -math.inf, 6]),
        ("specced:size+'regex:^a+b?$'*5", [8, 1, 6]),
    ],
)
def test_a_spec_says_members_weights_and_options(spec: str, scores: list[float]) -> None:
    reward = as_reward(f"ensemble:{spec}")
    assert score(reward) == pytest.approx(scores)
    again = as_reward(reward.name)
    assert again.name == reward.name
    assert score(again) == pytest.approx(scores)


specs = st.text(st.sampled_from("ab+*?'\"&=:# 1"), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(specs, st.floats(0.001, 1e30) | st.just(1.0)), min_size=1, max_size=4),
    st.sampled_from(
        [
            {},
            {"combine": "cvar", "share": 0.25},
            {"scale": "z", "truncated": -2.5, "length_penalty": 1e-5},
        ]
    ),
    st.none() | specs,
)
@settings(some, max_examples=200)
def test_a_name_is_a_spec_that_gives_the_ensemble_again(
    members: list[tuple[str, float]], options: dict[str, Any], judge: str | None
) -> None:
    def named(name: str) -> FakeReward:
        reward = FakeReward(len)
        reward.name = name
        return reward

    reward = EnsembleReward(
        [named(spec) for spec, _ in members],
        [weight for _, weight in members],
        filter=None if judge is None else named(judge),
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "specrej.rewards.ensemble.as_reward",
            lambda spec: named(spec) if isinstance(spec, str) else spec,
        )
        again = parse_ensemble(reward.name.removeprefix("ensemble:"))
    assert [member.name for member in again.members] == [spec for spec, _ in members]
    assert again.weights == [weight for _, weight in members]
    assert (again.filter and again.filter.name) == judge
    assert again.name == reward.name
    assert (again.scale, again.truncated, again.length_penalty) == (
        reward.scale,
        reward.truncated,
        reward.length_penalty,
    )


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("", UsageError, "cannot be read at ''"),
        ("logprob+", UsageError, "cannot be read at ''"),
        ("+logprob", UsageError, r"cannot be read at '\+logprob'"),
        ("logprob*x", UsageError, r"cannot be read at '\*x'"),
        ("logprob*1.2.3", UsageError, "weight must be a number, got '1.2.3'"),
        ("logprob*0", UsageError, "weight must be finite and not 0"),
        ("logprob*2*3", UsageError, r"cannot be read at '\*3'"),
        ("'logprob", UsageError, 'cannot be read at "\'logprob"'),
        ("'logprob'x", UsageError, "cannot be read at 'x'"),
        ("?scale=z", UsageError, r"cannot be read at '\?scale=z'"),
        ("logprob?worst", UsageError, "the option 'worst' .* has no value"),
        ("logprob?combin=worst", UnknownNameError, "unknown option 'combin'"),
        ("logprob?share=half", UsageError, "the option share='half' cannot be read"),
        ("logprob?scale=z&scale=z", UsageError, "'scale' is given twice"),
        ("logprob?filter=", UsageError, "the ensemble's filter is empty"),
        ("logprob?filter=regxe", UnknownNameError, "unknown reward 'regxe'"),
        ("logprob+relevanse*2", UnknownNameError, "unknown reward 'relevanse'"),
        ("no/such-model?combine=wrst", UnknownNameError, "unknown combine of an ensemble 'wrst'"),
        ("logprob?truncated=2", UsageError, "truncated must be 0 or below"),
    ],
)
def test_a_malformed_spec_is_an_error_that_shows_the_place(
    spec: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        as_reward(f"ensemble:{spec}")


def test_a_malformed_spec_is_shown_the_right_form() -> None:
    with pytest.raises(UsageError) as caught:
        as_reward("ensemble")
    assert "ensemble:SPEC*WEIGHT+SPEC*WEIGHT?OPTION=VALUE" in str(caught.value.hint)
