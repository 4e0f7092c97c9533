"""What can be promised of a mean loss from the losses on a few prompts.

    p_value(losses, 0.05)             # chance of such losses if the true mean were 0.05 or more
    upper_bound(losses, 0.95)         # the mean is below it, with this confidence
    boldest([0.001, 0.02, 0.3], 0.95) # 1: how far the path of ever bolder policies may be followed
    prompts_needed(0.05, 0.95)        # 59: that many without a loss prove a mean below 0.05

Losses lie in [0, 1], and the prompts are drawn independently from those that will come. Nothing
else is assumed: the statements hold for any number of prompts (Learn then Test, Angelopoulos et
al. 2021, arXiv 2110.01052). The test bets against the hypothesis (Waudby-Smith and Ramdas 2023,
arXiv 2010.09686): it is sharper than the bounds of Hoeffding and of Bernstein where most losses
are 0.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_BET = 0.95
"""Of the wealth at hand: a single loss of 1 does not end the game."""
_STEPS = 40


def p_value(losses: ArrayLike, target: float) -> float:
    """The p-value of "the mean loss is `target` or more", by betting on each prompt in turn.

    Every bet is fair if the mean is `target`, and loses on average if it is above. So wealth of
    w has a chance of at most 1 / w. The size of a bet depends on the losses before it alone.

    Args:
        losses: `[prompts]`, in [0, 1].
        target: in (0, 1).
    """
    given = np.asarray(losses, dtype=np.float64)
    bets = np.minimum(_bets(given), _MOST_BET)
    wealth = np.exp(np.cumsum(np.log1p(bets * (target - given))))
    return float(1 / max(1.0, wealth.max(initial=1.0)))


def _bets(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The bet on each prompt, from the variance of the losses before it, which begins at 1/4.

    sqrt(2 log(20) / (n * variance)) is what is best against losses of that variance.
    """
    count = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (count + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variances])[:-1]
    return np.sqrt(2 * math.log(20) / (max(len(losses), 1) * before))


def upper_bound(losses: ArrayLike, confidence: float) -> float:
    """What the mean loss stays below, with this confidence; 1 where the losses do not tell.

    By bisection: a p-value falls as the target rises.
    """
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if p_value(losses, middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def bernstein_bound(losses: ArrayLike, confidence: float) -> float:
    """The empirical Bernstein bound on the mean (Maurer and Pontil 2009, theorem 4), to compare
    with.
    """
    given = np.asarray(losses, dtype=np.float64)
    if len(given) < 2:
        return 1.0
    log = math.log(2 / (1 - confidence))
    spread = math.sqrt(2 * given.var(ddof=1) * log / len(given))
    return min(float(given.mean()) + spread + 7 * log / (3 * (len(given) - 1)), 1.0)


def boldest(p_values: Sequence[float], confidence: float) -> int | None:
    """The last policy of a path, from careful to bold, that is certified; None if not one is.

    The path was laid without the prompts that the p-values are from. Testing goes along it and
    ends at the first policy that fails, so no correction for their number is needed.
    """
    passed = 0
    for p in p_values:
        if p > 1 - confidence:
            break
        passed += 1
    return passed - 1 if passed else None


def prompts_needed(target: float, confidence: float, loss: float = 0.0) -> int:
    """The fewest prompts from which `target` can be certified: if each has this loss, which has to
    be below the target.
    """

    def are_too_few(count: int) -> bool:
        return p_value(np.full(count, loss), target) > 1 - confidence

    few, many = 0, 1
    while are_too_few(many):
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if are_too_few(middle) else (few, middle)
    return many
