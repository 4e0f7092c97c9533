"""A path of ever bolder policies: of all that are tried, those that no other beats.

    forecasts = forecasts_of(traces, checkpoints)
    for policy in lay_path(replays, forecasts):
        judged = replays.judge(policy)
        judged.cost / replays.baseline, judged.regret   # by prompt

The forecasts are learnt. What is searched is how many candidates begin, where to decide, and the
price of a token: few numbers, so that what is found on a few dozen prompts holds on others.
"""

from collections.abc import Iterator, Mapping, Sequence

from specrej.calibration.replays import Replays
from specrej.search.calibrated import CalibratedPolicy
from specrej.search.gains import Forecast

_SHARES = (1, 3 / 4, 1 / 2, 1 / 4)
"""Of the recorded candidates, to begin with."""
_PRICES = tuple(2.0**exponent for exponent in range(-18, -7))
"""In spreads a token: at 2 ** -10, a hundred tokens must bring a tenth of a spread."""
_STRIDES = (1, 2, 3)


def lay_path(replays: Replays, forecasts: Mapping[int, Forecast]) -> list[CalibratedPolicy]:
    """From Best-of-N, which loses nothing, to policies that lose much.

    Each is cheaper than the one before it, and none that loses less is as cheap.
    """
    policies = [CalibratedPolicy(n=replays.n), *_grid(replays.n, forecasts)]
    figures = [
        (float(judged.cost.sum()), float(judged.regret.mean()), place)
        for place, judged in enumerate(map(replays.judge, policies))
    ]
    path: list[CalibratedPolicy] = []
    least = float("inf")
    for _, regret, place in sorted(figures):
        if regret < least:
            least = regret
            path.append(policies[place])
    return path[::-1]


def rows_of_lengths(checkpoints: Sequence[int]) -> list[tuple[int, ...]]:
    """Where a policy may decide: from each checkpoint on, at all, every second or every third."""
    return sorted({tuple(checkpoints[at::by]) for at in range(len(checkpoints)) for by in _STRIDES})


def _grid(n: int, forecasts: Mapping[int, Forecast]) -> Iterator[CalibratedPolicy]:
    checkpoints = sorted(forecasts)
    for lengths in rows_of_lengths(checkpoints):
        chosen = _to_the_next([forecasts[length] for length in lengths])
        for num_begun in sorted({max(round(n * share), 1) for share in _SHARES}):
            for price in _PRICES:
                yield CalibratedPolicy(n=num_begun, forecasts=chosen, price=price)


def _to_the_next(forecasts: Sequence[Forecast]) -> tuple[Forecast, ...]:
    """Who stays is decided upon again at the next length, so it is paid only up to there."""
    following = [forecast.num_tokens for forecast in forecasts[1:]]
    *paid, last = forecasts
    return (
        *(
            forecast._replace(num_left=float(length - forecast.num_tokens))
            for forecast, length in zip(paid, following, strict=True)
        ),
        last,
    )
