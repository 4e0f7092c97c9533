"""Policies from files, and the grid."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, FakeReward
from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.policy_grid import ReplayPolicy, grid, read_policies
from specrej.evaluation.replay import Replayer, Rescorer
from specrej.settings import Settings
from traces import traces_of

GIVEN = [{"alpha": 0.3, "decide": "at:4,8", "n": 5}, {"keep": 2, "memory": "1MiB", "min_tokens": 3}]


@pytest.mark.parametrize(
    "text", ["\n".join(map(json.dumps, GIVEN)), "\n\n".join(map(json.dumps, GIVEN)) + "\n"]
)
def test_lines_and_a_list_give_the_same_policies(tmp_path: Path, text: str) -> None:
    (tmp_path / "lines").write_text(text)
    (tmp_path / "list").write_text("\ufeff" + json.dumps(GIVEN, indent=2))
    expected = [
        ReplayPolicy(alpha=0.3, decide="at:4,8", n=5),
        ReplayPolicy(keep=2, memory="1MiB", min_tokens=3),
    ]
    assert read_policies(tmp_path / "lines") == expected
    assert read_policies(tmp_path / "list") == expected


def test_the_same_policy_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"alpha": 0.5}\n{"n": 5}\n{}\n')
    assert read_policies(tmp_path / "file") == [ReplayPolicy(), ReplayPolicy(n=5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"alpha": 0.5}\n\n{"alhpa": 0.5}', r"unknown key in .*file, line 3: 'alhpa'"),
        ('{"alpha": 0.5}\n{"alpha": 1.5}', r"file, line 2: alpha must be in \[0, 1\), got 1.5"),
        ('{"alpha": 0.5}\n{"alpha": ', r"file, line 2: no JSON: Expecting value at column 11"),
        (
            '[{"alpha": 0.5},\n {"n": 0}]',
            r"file, policy 2: n must be 'auto' or a number of at least 1, and below 2\^31, got 0",
        ),
        ('[{"alpha": 0.5},\n }', r"file, line 2: no JSON"),
        ("3", r"file, line 1: expected an object, got 3"),
        ("\n", r"holds no policies"),
        ("[]", r"holds no policies"),
        ('{"decide": "at:x"}', r"file, line 1: decide must be"),
        ('{"memory": "12 parsecs"}', r"file, line 1: memory must be like"),
        ('{"n": true}', r"file, line 1: n must be"),
    ],
)
def test_what_is_no_policy_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_policies(tmp_path / "file")


def test_an_unknown_key_has_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"alhpa": 0.5}')
    with pytest.raises(UnknownNameError) as caught:
        read_policies(tmp_path / "file")
    assert "did you mean 'alpha'" in str(caught.value.hint)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read policies from"):
        read_policies(tmp_path / "nothing")


def test_defaults_are_those_of_a_live_run() -> None:
    settings, policy = Settings(), ReplayPolicy()
    for name in ("alpha", "keep", "decide", "n", "memory", "min_tokens"):
        assert getattr(policy, name) == getattr(settings, name)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "alpha=0.5"),
        ({"alpha": 0.3, "decide": "at:16", "n": 64}, "alpha=0.3 decide=at:16 n=64"),
        ({"keep": 4, "memory": "1MiB", "min_tokens": 8}, "keep=4 memory=1MiB min_tokens=8"),
        ({"alpha": 0, "n": 8}, "best_of_n:8"),
        (
            {"alpha": 0.0, "n": 8, "memory": "1MiB", "decide": "at:4"},
            "best_of_n:8 decide=at:4 memory=1MiB",
        ),
    ],
)
def test_a_name_says_all_that_is_not_as_by_default(options: dict[str, Any], name: str) -> None:
    assert ReplayPolicy(**options).name == name


def test_scheduled_lengths_are_those_at_which_the_schedule_asks() -> None:
    policy = ReplayPolicy(decide="at:4,9")
    assert [policy.next_scheduled(last, 24) for last in (0, 3, 4, 8, 9)] == [4, 4, 9, 9, 25]
    assert [policy.next_scheduled(4, limit) for limit in (8, 9, 10)] == [9, 9, 9]
    assert ReplayPolicy(decide="at:24").next_scheduled(0, 24) == 24
    assert ReplayPolicy(decide="every:5").next_scheduled(7, 24) == 12
    assert ReplayPolicy().next_scheduled(0, 24) == 25


def test_the_grid_can_be_replayed_and_has_every_policy_once() -> None:
    traces = traces_of(
        ["Why?", "Why not now?"], [2, 8, 30], FakeEngine(eos=0.03), n=13, max_new_tokens=24
    )
    policies = grid(traces)
    assert len({policy.name for policy in policies}) == len(policies) > 200
    baselines = [policy.n for policy in policies if not policy.is_rejecting]
    assert baselines == [1, 2, 4, 8, 13]
    assert {policy.alpha for policy in policies if policy.is_rejecting} == {
        tenths / 10 for tenths in range(1, 10)
    }
    assert {policy.decide for policy in policies} == {"at:2", "at:8", "at:2,8", "budget"}
    causes = set()
    for trace in traces:
        replayer = Replayer(trace, Rescorer(FakeReward(), FakeEngine().decode))
        for policy in policies:
            outcome = replayer.run(policy)
            causes |= {decision.cause for decision in outcome.decisions}
            assert len(outcome.num_tokens) == policy.n
    assert causes == {"budget", "schedule", "complete"}


def test_the_grid_begins_no_more_candidates_than_the_smallest_trace_has() -> None:
    (large,) = traces_of(["Why?"], [4], n=9, max_new_tokens=24)
    (small,) = traces_of(["Why?"], [4], n=5, max_new_tokens=24)
    assert {policy.n for policy in grid([large, small]) if policy.is_rejecting} == {5, 2, 1}
