"""95% intervals by the bootstrap over prompts.

    # {"value": 6.2, "low": 5.1, "high": 7.3}
    estimate(lambda drawn: rewards[drawn].mean(-1), len(rewards))

A statistic gets numbers of prompts, so that whatever it compares is compared on the same prompts:
methods are paired. The ends are percentiles of the resamples. BCa would serve skewed figures a
little better, but it has no value for constant data or for the mean of the worst prompts, which
occur here.
"""

import math
from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
SEED = 0
Z_95 = 1.959963984540054
"""Of the normal distribution, 95% lies within so many standard deviations."""

Array = NDArray[np.float64]
Statistic = Callable[[NDArray[np.intp]], Array]
"""Prompts drawn, `[resamples, prompts]` -> one figure for each resample; NaN where it has none."""


class Estimate(TypedDict):
    """A figure with its 95% interval. JSON has no NaN: None is what the data does not tell."""

    value: float | None
    """None where no prompt carries it."""
    low: float | None
    high: float | None
    """Ends of the interval; None for a single prompt, which has none."""


def estimate(statistic: Statistic, num_prompts: int) -> Estimate:
    """A figure of all prompts, with its interval."""
    value = value_of(statistic, num_prompts)
    low, high = (None, None) if value is None else ends_of(statistic, num_prompts)
    return {"value": value, "low": low, "high": high}


def mean_of(values: Array) -> Estimate:
    """The mean of those that are not NaN."""
    present = values[~np.isnan(values)]
    return estimate(lambda drawn: present[drawn].mean(-1), len(present))


def median_of(values: Array) -> Estimate:
    """The median of those that are not NaN."""
    present = values[~np.isnan(values)]
    return estimate(lambda drawn: np.median(present[drawn], axis=-1), len(present))


def share_of(num_right: int, num: int) -> Estimate:
    """A share with Wilson's score interval, which holds for few and for shares near 0 and 1."""
    if num == 0:
        return {"value": None, "low": None, "high": None}
    share, square = num_right / num, Z_95**2 / num
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return {"value": share, "low": max(middle - half, 0.0), "high": min(middle + half, 1.0)}


def value_of(statistic: Statistic, num_prompts: int) -> float | None:
    """The figure of all prompts, each drawn once; None where there is none."""
    if num_prompts == 0:
        return None
    value = float(statistic(np.arange(num_prompts)[None])[0])
    return None if math.isnan(value) else value


def ends_of(statistic: Statistic, num_prompts: int) -> tuple[float, float] | tuple[None, None]:
    """The 2.5% and 97.5% order statistics of resampled prompts. Figures may be infinite, and the
    ends with them.
    """
    if num_prompts < 2:
        return None, None
    # As scipy.stats.bootstrap draws; that one has no room for infinite figures, or for a resample
    # without any.
    drawn = np.random.default_rng(SEED).integers(num_prompts, size=(NUM_RESAMPLES, num_prompts))
    figures = statistic(drawn)
    figures = np.sort(figures[~np.isnan(figures)])
    tail = int(len(figures) * 0.025)
    return float(figures[tail]), float(figures[-1 - tail])
