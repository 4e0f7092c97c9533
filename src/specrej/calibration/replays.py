"""What policies cost and lose on recorded prompts, relative to Best-of-N on the same.

replays = Replays(traces, against=32)   # Best-of-32, of 64 that were recorded
judged = replays.judge(policy)      # each policy is replayed once, however often it is asked for
judged.cost / replays.baseline, judged.regret  # by prompt
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specrej.errors import UsageError
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import ReplayedRun, Replayer
from specrej.evaluation.trace import Trace
from specrej.search.calibrated import CalibratedPolicy

_ROUNDING = 1e-12
ROOMY = 2**62
"""Bytes: memory forces no decision, the policy alone decides."""


class Judged(NamedTuple):
    """One policy on all prompts."""

    cost: NDArray[np.float64]
    """`[prompts]`, in FLOPs, or in tokens where engine or reward do not know their FLOPs."""
    regret: NDArray[np.float64]
    """`[prompts]`: what Best-of-n has above the winner, in spreads of the prompt's rewards. Below 0
    where a policy that begins more candidates does better."""


class Replays:
    """Recorded prompts, and the policies that were tried on them.

    Args:
        traces: alike, see `alike`.
        against: candidates of the Best-of-n that policies are compared with; all that were recorded
            if not given. Its reward and its cost are means over all choices of so many.

    Attributes:
        n: recorded candidates of a prompt: the most that a policy can begin with.
        against: as given.
        unit: of cost, "flops" or "tokens".
        baseline: `[prompts]`: what Best-of-n costs.
        spreads: `[prompts]`: standard deviation of the candidates' rewards, in the reward's unit.

    Raises:
        UsageError: `against` is below 1, or more than were recorded.
    """

    def __init__(self, traces: Sequence[Trace], against: int | None = None) -> None:
        self.n = min(trace.num_candidates for trace in traces)
        self.against = self.n if against is None else against
        if not 1 <= self.against <= self.n:
            raise UsageError(
                f"cannot compare with Best-of-{against}: {self.n} candidates were recorded",
                hint=f"give a number from 1 to {self.n}",
            )
        finals = [trace.final_rewards[: self.n] for trace in traces]
        self.spreads = np.array([spread_of(rewards) for rewards in finals])
        self._best = np.array([expected_best(rewards, self.against) for rewards in finals])
        self._replayers = [Replayer(trace) for trace in traces]
        self._judged: dict[tuple[object, ...], Judged] = {}
        whole = self._run(ReplayPolicy(alpha=0.0, n=self.n, memory=ROOMY))
        self.unit = "tokens" if any(run.flops is None for run in whole) else "flops"
        shared = np.array([self._shared_cost(trace) for trace in traces])
        self.baseline = shared + (self._cost(whole) - shared) * (self.against / self.n)

    def judge(self, policy: CalibratedPolicy) -> Judged:
        """A policy on all prompts.

        Raises:
            UsageError: it decides where no reward was recorded.
        """
        key = (policy.n, policy.price, policy.forecasts)
        if key not in self._judged:
            self._judged[key] = self.replay(
                ReplayPolicy(policy=policy.to_policy(), n=policy.n, memory=ROOMY)
            )
        return self._judged[key]

    def replay(self, policy: ReplayPolicy) -> Judged:
        """A policy of a run's options on all prompts; each call replays it.

        Raises:
            UsageError: it decides where no reward was recorded.
        """
        runs = self._run(policy)
        lost = self._best - np.array([run.reward for run in runs])
        # Where all candidates are worth the same, nothing can be lost.
        regret = np.divide(lost, self.spreads, out=np.zeros_like(lost), where=self.spreads > 0)
        return Judged(self._cost(runs), regret)

    def _shared_cost(self, trace: Trace) -> float:
        """Of reading the prompt, which is done once for all candidates."""
        if self.unit == "tokens" or trace.flops is None:
            return 0.0
        return trace.flops.prefill(trace.num_prompt_tokens)

    def _run(self, policy: ReplayPolicy) -> list[ReplayedRun]:
        return [replayer.run(policy) for replayer in self._replayers]

    def _cost(self, runs: Sequence[ReplayedRun]) -> NDArray[np.float64]:
        of_each = (
            [run.flops for run in runs]
            if self.unit == "flops"
            else [run.num_generated_tokens for run in runs]
        )
        return np.array(of_each, dtype=np.float64)


def spread_of(rewards: NDArray[np.float64]) -> float:
    """Standard deviation of a prompt's rewards, of any size; exactly 0 where all are equal but for
    rounding.
    """
    scale = float(np.abs(rewards).max(initial=0.0))
    relative = float((rewards / scale).std()) if scale > 0 else 0.0
    return scale * relative if relative > _ROUNDING else 0.0


def expected_best(rewards: NDArray[np.float64], n: int) -> float:
    """The best of n of these rewards, in the mean over all choices of n.

    The one at place i of N, from below, is the best of C(i - 1, n - 1) of the C(N, n) choices.
    """
    best_first = np.sort(rewards)[::-1][: len(rewards) - n + 1]
    places = np.arange(len(rewards) - 1, n - 1, -1)
    # Each weight from the one before it, falling: the binomials themselves do not fit a float.
    weights = np.cumprod(np.concatenate([[1.0], (places - n + 1) / places]))
    return float(best_first @ (weights / weights.sum()))


_ALIKE = (
    *("model", "reward", "max_new_tokens"),
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"),
    *("frequency_penalty", "presence_penalty", "logit_bias"),
)


def alike(traces: Sequence[Trace]) -> dict[str, object]:
    """What all traces have in common: model, reward, sampling, candidates and checkpoints.

    Raises:
        UsageError: they are of different runs; names the first difference. Or a reward is not
            finite.
    """
    for trace in traces:
        if not (np.isfinite(trace.final_rewards).all() and np.isfinite(trace.rewards).all()):
            raise UsageError(
                f"the trace of {trace.prompt_id!r} holds rewards that are not finite",
                hint="remove its file and record it again with --resume",
            )
    first, *others = [_kind_of(trace) for trace in traces]
    for trace, other in zip(traces[1:], others, strict=True):
        for name, value in first.items():
            if other[name] != value:
                raise UsageError(
                    f"traces must be of one kind: {traces[0].prompt_id!r} has {name} {value!r}, "
                    f"{trace.prompt_id!r} has {other[name]!r}",
                    hint="calibrate on traces of one model, reward and sampling",
                )
    return first


def _kind_of(trace: Trace) -> dict[str, object]:
    return {
        **{name: trace.settings[name] for name in _ALIKE},
        "n": trace.num_candidates,
        "checkpoints": list(trace.checkpoints),
    }
