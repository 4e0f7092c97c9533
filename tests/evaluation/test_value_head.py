"""The heads of benchmarks/value_head.py find on unseen prompts what is there, and only that."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fakes import FakeEngine
from traces import traces_in

PATH = Path(__file__).parents[2] / "benchmarks" / "value_head.py"
PROMPTS, CANDIDATES, HIDDEN = 30, 24, 8

Array = NDArray[np.float64]


def load_benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench: Any = load_benchmark()


def make(signal: float, seed: int = 0) -> tuple[Array, Array, NDArray[np.bool_]]:
    """States, final rewards and who is live. One direction of the states tells this much of the
    reward; every prompt has a level and a scale of its own.
    """
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(PROMPTS, CANDIDATES, HIDDEN)) + 5 * rng.normal(
        size=(PROMPTS, 1, HIDDEN)
    )
    noise = rng.normal(size=(PROMPTS, CANDIDATES))
    direction = rng.normal(size=HIDDEN)
    finals = signal * (states @ direction) / np.linalg.norm(direction) + (1 - signal) * noise
    finals = finals * rng.uniform(0.1, 10, (PROMPTS, 1)) + rng.normal(size=(PROMPTS, 1))
    live = rng.random((PROMPTS, CANDIDATES)) < 0.9
    return bench.scale(states, live), finals, live


def predict(kind: str, states: Array, finals: Array, live: NDArray[np.bool_]) -> Array:
    torch.manual_seed(0)
    folds = bench.divide(PROMPTS, 0)
    scores: Array = (
        bench.ridge_scores(states, finals, live, folds)
        if kind == "ridge"
        else bench.mlp_scores(states, states[..., :0], finals, live, folds)
    )
    return scores


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_planted_signal_is_found_on_unseen_prompts(kind: str) -> None:
    states, finals, live = make(signal=0.7)
    scores = predict(kind, states, finals, live)
    assert bench.rank_correlations(scores, finals, live).mean() > 0.8


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_noise_predicts_nothing(kind: str) -> None:
    states, finals, live = make(signal=0.0)
    scores = predict(kind, states, finals, live)
    # The mean of 30 correlations over 22 candidates has a deviation of 0.04.
    assert abs(bench.rank_correlations(scores, finals, live).mean()) < 0.12


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_prediction_does_not_know_the_rewards_it_is_judged_by(kind: str) -> None:
    states, finals, live = make(signal=0.7)
    judged = bench.divide(PROMPTS, 0) == 0
    others = np.where(judged[:, None], -finals, finals)
    before, after = (predict(kind, states, of, live) for of in (finals, others))
    np.testing.assert_allclose(after[judged], before[judged])
    assert not np.allclose(after[~judged], before[~judged])


def test_useless_states_leave_the_cheap_features_as_they_were() -> None:
    states, finals, live = make(signal=0.0)
    noise = np.random.default_rng(1).normal(size=finals.shape)
    cheap = bench.scale((finals + 0.3 * finals.std(1, keepdims=True) * noise)[..., None], live)
    torch.manual_seed(0)
    folds = bench.divide(PROMPTS, 0)
    known = (finals, live, folds)
    both = np.concatenate([states, cheap * bench.BOOST], -1)
    alone = bench.rank_correlations(cheap[..., 0], finals, live).mean()
    for scores in (
        bench.ridge_scores(both, *known),
        bench.mlp_scores(states, cheap, *known),
    ):
        assert bench.rank_correlations(scores, finals, live).mean() > alone - 0.02


def test_scaled_features_have_mean_0_and_deviation_1_over_the_live() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (4, 10, 3))
    values[..., 2] = 0.1
    live = rng.random((4, 10)) < 0.6
    live[3] = False
    scaled = bench.scale(values, live)
    for prompt in range(3):
        rows = scaled[prompt, live[prompt]]
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(rows.std(0), [1, 1, 0])
    assert not scaled[~live].any()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1),
)
def test_rank_correlation_is_scipys(rows: list[tuple[int, int, bool]]) -> None:
    x, y, live = (np.array([column]) for column in zip(*rows, strict=True))
    (found,) = bench.rank_correlations(x, y, live)
    x, y = x[live], y[live]
    if len(x) < bench.LEAST_LIVE or np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(x, y).statistic)


def test_share_ahead_of_the_best_live_candidate() -> None:
    finals = np.tile([9.0, 1, 5, 2, 3], (4, 1))
    live = np.array([[False, True, True, True, True]] * 3 + [[False] * 5])
    scores = np.array([[7.0, 1, 4, 2, 3], [7, 1, 0, 2, 3], [7, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(bench.shares_ahead(scores, finals, live), [0, 1, 0.5, np.nan])


def test_filter_keeps_the_top_of_the_live_and_all_complete() -> None:
    finals, live = np.array([4.0, 3, 2, 1, 0]), np.array([False, True, True, True, True])
    scores = np.array([-9.0, 0, 1, 2, 3])
    assert bench.filter_prompt(scores, finals, live, 0.5) == 0
    live[0] = True
    regret = bench.filter_prompt(scores, finals, live, 0.4)
    assert regret == pytest.approx(3 / finals.std())
    assert bench.filter_prompt(scores, finals, live, 1.0) == 0
    assert bench.filter_prompt(np.zeros(5), finals, live, 0.2) == 0


def test_run_ends_in_one_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"prompt {number}" for number in range(10)]
    traces_in(tmp_path, prompts, (4, 8), FakeEngine(), n=8, max_new_tokens=24)
    monkeypatch.setattr("sys.argv", ["value_head.py", str(tmp_path), "--seed", "3"])
    bench.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["prompts"], figures["seed"]) == (10, 3)
    assert list(figures["checkpoints"]) == ["4", "8"]
    chance = figures["checkpoints"]["8"]["filters"]["0.5"]["chance"]
    assert 0 <= chance["lost"]["value"] <= 1
