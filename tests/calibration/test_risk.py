"""Bounds hold as often as they say, and are not loose without need."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from specrej.calibration.risk import (
    bernstein_bound,
    boldest,
    p_value,
    prompts_needed,
    upper_bound,
)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
LOSSES: dict[str, Draw] = {
    "coins": lambda random, size: (random.random(size) < 0.1).astype(float),
    "mostly nothing": lambda random, size: (random.random(size) < 0.02).astype(float),
    "skewed": lambda random, size: random.beta(0.3, 3, size),
    "all alike": lambda random, size: np.full(size, 0.2),
}
MEANS = {"coins": 0.1, "mostly nothing": 0.02, "skewed": 0.3 / 3.3, "all alike": 0.2}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("num_prompts", [5, 40, 200])
def test_the_mean_is_above_the_bound_no_more_often_than_said(kind: str, num_prompts: int) -> None:
    random = np.random.default_rng(num_prompts)
    rejections = [
        p_value(LOSSES[kind](random, num_prompts), MEANS[kind]) <= 0.05 for _ in range(2_000)
    ]
    # One part in ten thousand of tests with an error of exactly 5% has more.
    assert sum(rejections) <= stats.binom.ppf(0.9999, len(rejections), 0.05)


def test_it_is_nearly_as_sharp_as_the_exact_bound_on_coins() -> None:
    losses = np.zeros(100)
    losses[:3] = 1.0
    np.random.default_rng(0).shuffle(losses)
    exact = stats.beta.ppf(0.95, 4, 97)  # Clopper and Pearson
    assert exact < upper_bound(losses, 0.95) < 1.6 * exact


def test_it_is_sharper_than_bernstein_where_losses_are_rare() -> None:
    losses = np.random.default_rng(0).beta(0.2, 20, 100)
    assert losses.mean() < upper_bound(losses, 0.95) < bernstein_bound(losses, 0.95) / 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.5, 0.99))
def test_a_bound_is_a_test_turned_round(losses: list[float], confidence: float) -> None:
    bound = upper_bound(losses, confidence)
    assert bound == 1 or p_value(losses, bound) <= 1 - confidence + 1e-12


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.01, 0.9), st.floats(0.001, 0.09))
def test_a_weaker_claim_is_at_least_as_certain(
    losses: list[float], target: float, more: float
) -> None:
    assert p_value(losses, target + more) <= p_value(losses, target) + 1e-12


@pytest.mark.parametrize("target", [0.5, 0.05, 0.01])
def test_prompts_needed_are_enough_and_not_one_too_many(target: float) -> None:
    needed = prompts_needed(target, 0.95)
    assert upper_bound(np.zeros(needed), 0.95) <= target + 1e-9
    assert upper_bound(np.zeros(needed - 1), 0.95) > target
    assert needed >= np.log(0.05) / np.log(1 - target)  # what no test can do better than


def test_a_path_is_followed_to_the_first_failure() -> None:
    assert boldest([0.01, 0.05, 0.06, 0.001], 0.95) == 1
    assert boldest([0.06, 0.001], 0.95) is None
    assert boldest([], 0.95) is None
    assert boldest([0.0], 0.95) == 0
