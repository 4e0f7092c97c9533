"""Many policies on a folder of traces: the figures, the errors, the file."""

import json
from pathlib import Path

import numpy as np
import pytest

from fakes import FakeEngine, FakeReward
from specrej.errors import UsageError
from specrej.evaluation.correlation import correlations, loss_chances
from specrej.evaluation.intervals import mean_of
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import Replayer, Rescorer
from specrej.evaluation.replay_summary import FIGURES, LOSS_ALPHAS, PolicyRow, replay_folder
from specrej.evaluation.trace import load
from traces import traces_in

PROMPTS = ["Why?", "How?", "When?", "Who?", "Where?"]
POLICIES = [
    ReplayPolicy(alpha=0.0, n=12),
    ReplayPolicy(alpha=0.0, n=3),
    ReplayPolicy(alpha=0.5, decide="at:8", n=12),
    ReplayPolicy(alpha=0.5, decide="at:9", n=12),
    ReplayPolicy(alpha=0.9, decide="at:4,8", n=12),
]


def means_of(row: PolicyRow) -> dict[str, float]:
    return {
        name: estimate["value"]
        for name, estimate in row["figures"].items()
        if estimate["value"] is not None
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    traces_in(
        tmp_path,
        PROMPTS,
        [4, 8, 16],
        FakeEngine(eos=0.05),
        n=12,
        max_new_tokens=24,
        memory="1MiB",
        seed=2,
    )
    return tmp_path


@pytest.mark.parametrize("is_rescored", [False, True])
def test_figures_are_means_over_prompts(folder: Path, is_rescored: bool) -> None:
    def rescore() -> Rescorer | None:
        return Rescorer(FakeReward(), FakeEngine().decode) if is_rescored else None

    summary = replay_folder(folder, POLICIES, rescore())
    assert (summary["num_prompts"], summary["num_failed"]) == (5, 0)
    for row, policy in zip(summary["policies"], POLICIES, strict=True):
        outcomes = [Replayer(trace, rescore()).run(policy) for trace in load(folder)]
        means = means_of(row)
        assert (row["name"], row["error"], row["is_rejecting"]) == (
            policy.name,
            None,
            policy.alpha > 0,
        )
        assert ReplayPolicy(**row["policy"]) == policy
        assert list(means) == list(FIGURES)
        for name in ("reward", "regret", "num_generated_tokens", "num_scored_tokens", "flops"):
            assert means[name] == pytest.approx(
                np.mean([getattr(outcome, name) for outcome in outcomes])
            )
        assert means["loss_chance"] == np.mean([outcome.regret > 0 for outcome in outcomes])
        assert means["num_candidates"] == policy.n
        shares = [
            outcome.num_stale / sum(len(d.scored) for d in outcome.decisions)
            for outcome in outcomes
        ]
        assert means["stale_share"] == pytest.approx(np.mean(shares))
        assert (means["stale_share"] > 0) == (policy.decide == "at:9" and not is_rescored)
        rewards = np.array([outcome.reward for outcome in outcomes])
        assert row["figures"]["reward"] == pytest.approx(mean_of(rewards))


def test_the_file_is_what_was_returned(folder: Path) -> None:
    summary = replay_folder(folder, POLICIES)
    assert json.loads((folder / "replay.json").read_text()) == summary
    traces = list(load(folder))
    assert summary["correlations"] == correlations(traces)
    assert summary["loss_chances"] == loss_chances(traces, LOSS_ALPHAS)


def test_the_front_begins_with_the_cheapest_and_ends_with_the_best(folder: Path) -> None:
    summary = replay_folder(folder, POLICIES)
    means = {row["name"]: means_of(row) for row in summary["policies"]}
    for unit in ("num_generated_tokens", "flops"):
        front = [means[name] for name in summary["pareto"][unit]]
        assert front[0][unit] == min(figures[unit] for figures in means.values())
        assert front[-1]["reward"] == max(figures["reward"] for figures in means.values())


def test_a_policy_that_a_trace_does_not_allow_is_a_row_with_its_error(folder: Path) -> None:
    summary = replay_folder(
        folder, [ReplayPolicy(n=13), POLICIES[0], ReplayPolicy(n=2, memory=600)]
    )
    large, good, small = summary["policies"]
    assert "begins 13 candidates; the trace of '0' has 12" in str(large["error"])
    assert "does not hold one candidate" in str(small["error"])
    assert large["figures"] == small["figures"] == {}
    assert good["error"] is None
    assert summary["pareto"]["num_generated_tokens"] == [good["name"]]


def test_no_policy_that_can_be_replayed_is_an_error(folder: Path) -> None:
    with pytest.raises(
        UsageError, match="no policy can be replayed: the policy begins 13 candidates"
    ):
        replay_folder(folder, [ReplayPolicy(n=13)])
    assert not (folder / "replay.json").exists()


def test_a_reward_that_does_not_tell_its_flops_leaves_them_out(tmp_path: Path) -> None:
    reward = FakeReward()
    reward.flops_per_token = None
    traces_in(tmp_path, PROMPTS, [4], FakeEngine(), reward, n=3, max_new_tokens=24)
    summary = replay_folder(tmp_path, POLICIES[1:2])
    assert "flops" not in summary["policies"][0]["figures"]
    assert list(summary["pareto"]) == ["num_generated_tokens"]


def test_prompts_without_a_trace_are_counted(folder: Path) -> None:
    with (folder / "failures.jsonl").open("a") as file:
        file.write('{"prompt_id": "9", "kind": "RewardError", "message": "too hard"}\n')
    assert replay_folder(folder, POLICIES[:1])["num_failed"] == 1
