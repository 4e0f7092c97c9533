"""Many policies on all traces of a folder: what each costs and gains, the front, and what a partial
reward is worth.

    summary = replay_folder(directory, grid(list(load(directory))), Rescorer(reward, engine.decode))
    # names of the policies that none beats, by rising cost
    summary["pareto"]["num_generated_tokens"]

Plain data, in JSON's types and in the folder's replay.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from specrej.errors import UsageError
from specrej.evaluation.correlation import (
    CheckpointCorrelations,
    LossChance,
    correlations,
    estimates,
    loss_chances,
    pareto_front,
)
from specrej.evaluation.intervals import Estimate
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import ReplayedRun, Replayer, Rescore
from specrej.evaluation.trace import Trace, load, load_failures
from specrej.files.journal import write_json


class PolicyRow(TypedDict):
    """One policy over all prompts that have a trace."""

    name: str
    policy: dict[str, Any]
    """The arguments of `ReplayPolicy`."""
    is_rejecting: bool
    """False for Best-of-N."""
    error: str | None
    """Why it could not be replayed on all prompts; then there are no figures."""
    figures: dict[str, Estimate]
    """By name, see `FIGURES`; "flops" where all prompts have it."""


class ReplaySummary(TypedDict):
    """What replay.json holds."""

    num_prompts: int
    """That have a trace: all figures are over these."""
    num_failed: int
    """Prompts without one, for no policy has an answer to them."""
    policies: list[PolicyRow]
    pareto: dict[str, list[str]]
    """By unit of compute ("num_generated_tokens", "flops"): names of the policies on the front,
    by rising cost."""
    correlations: list[CheckpointCorrelations]
    loss_chances: list[LossChance]


FIGURES = (
    "reward",
    "regret",
    "loss_chance",
    "num_generated_tokens",
    "num_scored_tokens",
    "num_candidates",
    "stale_share",
    "flops",
)
"""Means over prompts: `loss_chance` is the share of prompts whose best candidate was lost,
`stale_share` that of the rewards which were older than the decision they served; the others are
named as in `ReplayedRun`."""

LOSS_ALPHAS = (0.1, 0.25, 0.5, 0.75, 0.9)
REPLAY = "replay.json"


def replay_folder(
    directory: str | Path, policies: Sequence[ReplayPolicy], rescore: Rescore | None = None
) -> ReplaySummary:
    """Replay policies on all traces of a folder; write what came out to its replay.json.

    A policy that some prompt does not allow is a row with its error, and the others go on.

    Raises:
        UsageError: the folder holds no traces, or not one policy can be replayed.
        RewardError: rescoring failed.
    """
    traces = list(load(directory))
    figures, errors = _replay_all(traces, policies, rescore)
    done = [number for number in range(len(policies)) if number not in errors]
    if not done:
        raise UsageError(f"no policy can be replayed: {errors[0]}", hint=errors[0].hint)
    rows = _policy_rows(policies, done, figures)
    for number, error in errors.items():
        rows[number]["error"] = str(error)
    summary = ReplaySummary(
        num_prompts=len(traces),
        num_failed=len(load_failures(directory)),
        policies=rows,
        pareto=_fronts([policies[number].name for number in done], figures[:, done].mean(axis=0)),
        correlations=correlations(traces),
        loss_chances=loss_chances(traces, LOSS_ALPHAS),
    )
    write_json(Path(directory) / REPLAY, summary)
    return summary


def _policy_rows(
    policies: Sequence[ReplayPolicy], done: Sequence[int], figures: NDArray[np.float64]
) -> list[PolicyRow]:
    """A row a policy, with the figures that are known of all prompts where it is done."""
    rows = [
        PolicyRow(
            name=p.name, policy=p.to_dict(), is_rejecting=p.is_rejecting, error=None, figures={}
        )
        for p in policies
    ]
    for place, name in enumerate(FIGURES):
        values = figures[:, done, place]
        if not np.isnan(values).any():
            for number, estimate in zip(done, estimates(values), strict=True):
                rows[number]["figures"][name] = estimate
    return rows


def _replay_all(
    traces: Sequence[Trace], policies: Sequence[ReplayPolicy], rescore: Rescore | None
) -> tuple[NDArray[np.float64], dict[int, UsageError]]:
    """`[traces, policies, figures]`, NaN where there is none, and the first error of each policy
    that has one.
    """
    figures = np.full((len(traces), len(policies), len(FIGURES)), np.nan)
    errors: dict[int, UsageError] = {}
    for trace, of_trace in zip(traces, figures, strict=True):
        replayer = Replayer(trace, rescore)
        for number, policy in enumerate(policies):
            if number not in errors:
                try:
                    of_trace[number] = _figures(replayer.run(policy))
                except UsageError as error:
                    errors[number] = error
    return figures, errors


def _figures(outcome: ReplayedRun) -> tuple[float, ...]:
    """In the order of `FIGURES`."""
    num_rewards = sum(len(decision.scored) for decision in outcome.decisions)
    return (
        outcome.reward,
        outcome.regret,
        float(outcome.regret > 0),
        outcome.num_generated_tokens,
        outcome.num_scored_tokens,
        len(outcome.num_tokens),
        outcome.num_stale / num_rewards,
        np.nan if outcome.flops is None else outcome.flops,
    )


def _fronts(names: Sequence[str], means: NDArray[np.float64]) -> dict[str, list[str]]:
    """Of policies by name, with their mean figures `[policies, figures]`."""
    rewards = means[:, FIGURES.index("reward")]
    costs = {unit: means[:, FIGURES.index(unit)] for unit in ("num_generated_tokens", "flops")}
    return {
        unit: [names[place] for place in pareto_front(cost, rewards)]
        for unit, cost in costs.items()
        if not np.isnan(cost).any()
    }
