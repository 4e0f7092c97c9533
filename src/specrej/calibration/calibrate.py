"""The boldest policy whose regret against Best-of-N provably stays below a target.

    calibration = calibrate(traces, target=0.1, confidence=0.95)
    calibration.chosen.policy, calibration.chosen.promise

A quarter of the prompts lays a path of ever bolder policies (`path`), the others test them in this
order and stop at the first that fails (`risk`). The promise is about new prompts like these: with
the confidence asked for, the mean regret over them is at most the target.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specrej.calibration.forecasting import forecasts_of
from specrej.calibration.path import lay_path
from specrej.calibration.replays import Judged, Replays, alike
from specrej.calibration.risk import boldest, p_value, prompts_needed, upper_bound
from specrej.errors import UsageError
from specrej.evaluation.trace import Trace
from specrej.search.calibrated import CalibratedPolicy

MOST_REGRET = 4.0
"""In spreads. A bound on a mean needs a bound on what is averaged; a regret beyond it counts as
this much. Best-of-64 itself is 2.4 spreads above the mean of normal rewards."""
LEAST_REGRET = -1.0
"""Likewise, where more candidates may begin than Best-of-n has; a gain beyond it counts as this
much."""
LEAST_TARGET = 0.001
"""To promise this takes some 17,000 prompts."""
LEAST_PROMPTS = 4
_SEARCH = 4
"""One prompt of so many searches: little is learnt, and a proof needs many prompts."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One policy of the path.

    Attributes:
        policy: how many go on, and when.
        cost: relative to Best-of-N, `[search, test]`: on the prompts it was found on, and on the
            others.
        regret: mean, in spreads, likewise.
        p_value: of "its mean regret is the target or more", from the others.
        bound: what its mean regret is below, with the confidence asked for.
    """

    policy: CalibratedPolicy
    cost: tuple[float, float]
    regret: tuple[float, float]
    p_value: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A path, and how far it may be followed.

    Attributes:
        trials: from careful to bold.
        chosen: the boldest that is certified; None if none is.
        num_prompts: that laid the path, and that tested it.
        unit: of cost: "flops" or "tokens".
        needed: prompts in all to certify this target, if not one has a regret.
        n: of the Best-of-n that is compared with.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None
    num_prompts: tuple[int, int]
    unit: str
    needed: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        values = asdict(self)
        trials = [_plain(trial) for trial in self.trials]
        chosen = None if self.chosen is None else _plain(self.chosen)
        return {**values, "trials": trials, "chosen": chosen}


def calibrate(
    traces: Sequence[Trace],
    *,
    target: float,
    confidence: float,
    seed: int = 0,
    against: int | None = None,
) -> Calibration:
    """Lay a path on a quarter of the prompts, and test it on the others.

    Args:
        traces: of one model, reward and sampling, one a prompt.
        target: highest mean regret, in spreads: standard deviations of a prompt's rewards.
        confidence: that the promise holds, in (0, 1).
        seed: of the division of prompts.
        against: candidates of the Best-of-n that is compared with; all that were recorded if not
            given. Policies may begin with more.

    Raises:
        UsageError: the traces are too few, or of different kinds; a value out of its range.
    """
    _check(traces, target, confidence)
    kind, checkpoints = alike(traces), _checkpoints(traces[0])
    order = np.random.default_rng(seed).permutation(len(traces))
    num_seen = _num_searching(len(traces))
    seen = [traces[place] for place in sorted(order[:num_seen])]
    search = Replays(seen, against)
    test = Replays([traces[place] for place in sorted(order[num_seen:])], against)
    num_prompts = (num_seen, len(traces) - num_seen)
    range_ = _range_of(search)
    trials = [
        _trial(policy, search, test, range_, target, confidence)
        for policy in lay_path(search, forecasts_of(seen, checkpoints))
    ]
    last = boldest([trial.p_value for trial in trials], confidence)
    promise = {
        "regret": target,
        "confidence": confidence,
        "against": f"best_of_n:{search.against}",
        "num_prompts": list(num_prompts),
        "regrets_counted": [range_.least, MOST_REGRET],
    }
    return Calibration(
        trials=tuple(trials),
        chosen=None if last is None else _promised(trials[last], kind, promise),
        num_prompts=num_prompts,
        unit=search.unit,
        needed=_in_all(prompts_needed(range_.loss(target), confidence, range_.loss(0.0))),
        n=search.against,
    )


def _checkpoints(trace: Trace) -> list[int]:
    """Where a policy can decide: from where on there is something to save."""
    found = [length for length in trace.checkpoints if length < trace.max_new_tokens]
    if not found:
        raise UsageError(
            f"the traces have no reward before the limit of {trace.max_new_tokens} tokens, only at "
            f"{', '.join(map(str, trace.checkpoints))}",
            hint="record with earlier --checkpoints, such as 8,16,32,64",
        )
    return found


def _trial(
    policy: CalibratedPolicy,
    search: Replays,
    test: Replays,
    range_: "_Range",
    target: float,
    confidence: float,
) -> Trial:
    on_search, on_test = search.judge(policy), test.judge(policy)
    losses = range_.losses(on_test.regret)
    return Trial(
        policy=policy,
        cost=(_share(on_search, search), _share(on_test, test)),
        regret=(float(on_search.regret.mean()), float(on_test.regret.mean())),
        p_value=p_value(losses, range_.loss(target)),
        bound=range_.regret(upper_bound(losses, confidence)),
    )


class _Range(NamedTuple):
    """Regrets from `least` to MOST_REGRET, as losses from 0 to 1."""

    least: float

    def loss(self, regret: float) -> float:
        return (regret - self.least) / (MOST_REGRET - self.least)

    def regret(self, loss: float) -> float:
        return self.least + loss * (MOST_REGRET - self.least)

    def losses(self, regrets: NDArray[np.float64]) -> NDArray[np.float64]:
        return (np.clip(regrets, self.least, MOST_REGRET) - self.least) / (MOST_REGRET - self.least)


def _range_of(replays: Replays) -> _Range:
    return _Range(0.0 if replays.against == replays.n else LEAST_REGRET)


def _num_searching(num_prompts: int) -> int:
    return max(num_prompts // _SEARCH, 2)


def _in_all(num_tested: int) -> int:
    """The fewest prompts of which so many test."""
    num_prompts = LEAST_PROMPTS
    while num_prompts - _num_searching(num_prompts) < num_tested:
        num_prompts += 1
    return num_prompts


def _plain(trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "policy": trial.policy.to_dict()}


def _check(traces: Sequence[Trace], target: float, confidence: float) -> None:
    if not LEAST_TARGET <= target < MOST_REGRET:
        raise UsageError(
            f"the target regret must be at least {LEAST_TARGET} and below {MOST_REGRET}, "
            f"got {target}"
        )
    if not 0 < confidence < 1:
        raise UsageError(f"the confidence must be above 0 and below 1, got {confidence}")
    if len(traces) < LEAST_PROMPTS:
        raise UsageError(
            f"{len(traces)} prompts are too few to calibrate on, expected {LEAST_PROMPTS} or more",
            hint="record more with `specrej trace`",
        )


def _share(judged: Judged, replays: Replays) -> float:
    return float(judged.cost.sum() / replays.baseline.sum())


def _promised(trial: Trial, kind: dict[str, Any], promise: dict[str, Any]) -> Trial:
    """A trial whose policy says what is promised of it."""
    policy = replace(
        trial.policy,
        recorded={**kind, "n": trial.policy.n},
        promise=promise,
        measured={"cost": list(trial.cost), "regret": list(trial.regret)},
    )
    return replace(trial, policy=policy)
