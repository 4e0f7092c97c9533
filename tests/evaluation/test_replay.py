"""A replay against the live run that it stands for, on an engine whose tokens are exact and on the
real model.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import specrej
from fakes import FLOPS, FakeEngine, FakeReward, FakeSession, alike, by_hash, in_thirds
from real import smollm2
from specrej.errors import BudgetError, RewardError, UsageError
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.recording import record
from specrej.evaluation.replay import ReplayedRun, Replayer, Rescorer
from specrej.evaluation.trace import Trace, load
from specrej.flops import flops_of
from specrej.rewards import as_reward
from specrej.search.policies import every
from specrej.search.resolving import policy_of
from specrej.settings import Settings
from specrej.types import Candidate, Message, Policy, Result, Standing
from traces import trace_of, traces_in, traces_of

LENGTH = 24

some = settings(max_examples=200, deadline=None, derandomize=True)


class Case(NamedTuple):
    """A trace, and a policy to replay on it."""

    prompt: str
    num_recorded: int
    checkpoints: list[int]
    sampling: dict[str, Any]
    policy: dict[str, Any]
    eos: float
    rate: Callable[[str], float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompt = draw(st.text("abc d?é", min_size=1, max_size=12).filter(str.strip))
    engine = FakeEngine()
    length = draw(st.integers(1, LENGTH))
    least, most = (
        engine.kv_bytes(len(engine.encode(prompt)), rows, max(length, 2)) for rows in (1, 12)
    )
    policy = {
        "alpha": draw(
            st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.9]) | st.floats(0, 1, exclude_max=True)
        ),
        "keep": draw(st.none() | st.integers(1, 12)),
        "decide": draw(
            st.sampled_from(
                ["budget", "budget", "every:1", "every:5", "at:3,11", "at:7", "at:6,1,30"]
            )
        ),
        "n": draw(st.integers(1, 16) | st.just("auto")),
        "memory": draw(st.integers(least, most)),
        "min_tokens": draw(st.integers(1, LENGTH)),
    }
    return Case(
        prompt,
        draw(st.integers(10, 20)),
        draw(st.lists(st.integers(1, LENGTH + 4), min_size=1, max_size=6)),
        {
            "seed": draw(st.integers(0, 2**64 - 1)),
            "max_new_tokens": length,
            "stop": draw(st.sampled_from([[], ["ab"]])),
        },
        policy,
        draw(st.sampled_from([0.0, 0.03, 0.1, 0.3])),
        draw(st.sampled_from([by_hash, in_thirds, alike])),
    )


def trace_of_case(case: Case) -> Trace:
    engine = FakeEngine(eos=case.eos)
    options = {**case.sampling, "n": case.num_recorded, "memory": case.policy["memory"]}
    return trace_of(case.prompt, case.checkpoints, engine, FakeReward(case.rate), **options)


def live_run(case: Case, trace: Trace, options: Mapping[str, Any]) -> Result:
    """With the seed that the trace says it has."""
    return specrej.generate(
        case.prompt,
        model=FakeEngine(eos=case.eos),
        reward=FakeReward(case.rate),
        **{**case.sampling, **options, "seed": trace.settings["seed"]},
    )


def assert_same(outcome: ReplayedRun, live: Result) -> None:
    assert outcome.best == live.best.index
    assert outcome.reward == live.reward
    assert outcome.num_tokens == tuple(len(candidate.token_ids) for candidate in live.candidates)
    assert outcome.is_rejected == tuple(
        candidate.state == "rejected" for candidate in live.candidates
    )
    assert [tuple(decision) for decision in outcome.decisions] == [
        (decision.cause, decision.num_tokens, decision.scored, decision.rejected)
        for decision in live.decisions
    ]
    assert outcome.num_generated_tokens == live.usage.generated_tokens
    assert outcome.num_stale == 0


@given(cases())
@some
def test_a_replay_is_the_live_run(case: Case) -> None:
    trace = trace_of_case(case)
    live = live_run(case, trace, case.policy)
    replayer = Replayer(trace, Rescorer(FakeReward(case.rate), FakeEngine().decode))
    policy = ReplayPolicy(**case.policy)
    if len(live.candidates) > trace.num_candidates:
        with pytest.raises(UsageError, match=f"begins {len(live.candidates)} candidates"):
            replayer.run(policy)
    else:
        assert_same(replayer.run(policy), live)


def whimsical(standing: Standing) -> list[bool]:
    """A rule that goes by all that it is told, and by nothing else."""
    told = repr((standing.num_tokens, list(standing.scores), standing.best))
    stays = [
        zlib.crc32(f"{told}{place}{is_live}".encode()) % 3 > 0
        for place, is_live in enumerate(standing.is_live)
    ]
    if standing.best is None and not any(stays):
        stays = [True] * len(stays)
    return stays


@given(cases(), st.sampled_from(["budget", "every:3", "at:3,11"]))
@some
def test_a_rule_is_told_the_same_by_a_replay(case: Case, decide: str) -> None:
    usual = policy_of(Settings(decide=decide))
    policy = Policy(when=usual.when, keep=whimsical, first_tokens=case.policy["min_tokens"])
    options = {"policy": policy, "n": case.policy["n"], "memory": case.policy["memory"]}
    trace = trace_of_case(case)
    live = live_run(case, trace, options)
    assume(len(live.candidates) <= trace.num_candidates)
    replayer = Replayer(trace, Rescorer(FakeReward(case.rate), FakeEngine().decode))
    assert_same(replayer.run(ReplayPolicy(**options)), live)


def test_a_policy_that_rejects_everybody_is_refused_live_and_replayed() -> None:
    nobody = Policy(
        when=every(4), keep=lambda standing: [False] * len(standing.scores), first_tokens=4
    )
    with pytest.raises(UsageError, match="no candidate is left: all 3 were rejected"):
        specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), policy=nobody, n=3)
    with pytest.raises(UsageError, match="no candidate is left: all 3 were rejected"):
        Replayer(ample(3)).run(ReplayPolicy(policy=nobody, n=3))


def rows(num: int, length: int = LENGTH) -> int:
    """Bytes that hold so many candidates of so many tokens beside the prompt "Why?"."""
    return FakeEngine().kv_bytes(5, num, length)


def ample(num_candidates: int, **options: Any) -> Trace:
    """The prompt "Why?", all candidates at once."""
    options = {
        "n": num_candidates,
        "memory": rows(num_candidates),
        "max_new_tokens": LENGTH,
        **options,
    }
    return trace_of("Why?", options.pop("checkpoints", [4, 8, 16]), **options)


def test_a_decision_by_budget_and_its_extra_rejections_are_replayed() -> None:
    """The property above would hold as well if its cases never came to these."""
    trace = ample(12, engine=FakeEngine(eos=0.0))
    policy: dict[str, Any] = {"alpha": 0.1, "n": 12, "memory": rows(12, 7), "min_tokens": 4}
    live = specrej.generate(
        "Why?",
        model=FakeEngine(eos=0.0),
        reward=FakeReward(),
        max_new_tokens=LENGTH,
        seed=trace.settings["seed"],
        **policy,
    )
    outcome = Replayer(trace, Rescorer(FakeReward(), FakeEngine().decode)).run(
        ReplayPolicy(**policy)
    )
    assert_same(outcome, live)
    assert {decision.cause for decision in outcome.decisions} == {"budget", "complete"}
    assert outcome.decisions[0].num_tokens == 7
    assert len(outcome.decisions[0].rejected) == 2


def test_without_a_rescorer_the_last_checkpoint_before_serves_and_is_counted() -> None:
    trace = ample(12)
    policy = ReplayPolicy(alpha=0.5, decide="at:6,11", n=12)

    def older(given: Trace, indices: Sequence[int], num_tokens: int) -> list[float]:
        return given.rewards[indices, {6: 0, 11: 1}[num_tokens]].tolist()  # type: ignore[no-any-return]

    outcome = Replayer(trace).run(policy)
    expected = Replayer(trace, older).run(policy)
    assert outcome.decisions == expected.decisions
    assert expected.num_stale == 0
    live = [
        sum(trace.lengths[list(d.scored)] > d.num_tokens)
        for d in outcome.decisions
        if d.cause == "schedule"
    ]
    assert outcome.num_stale == sum(live) > 0
    assert Replayer(trace).run(ReplayPolicy(alpha=0.5, decide="at:8,16", n=12)).num_stale == 0


def test_a_decision_before_the_first_checkpoint_is_refused_unless_something_rescores() -> None:
    trace = ample(4, engine=FakeEngine(eos=0.0))
    policy = ReplayPolicy(decide="at:3", n=4)
    with pytest.raises(
        UsageError,
        match="decides at 3 tokens of the prompt '0', and the trace has no reward before 4",
    ):
        Replayer(trace).run(policy)
    Replayer(trace, Rescorer(FakeReward(), FakeEngine().decode)).run(policy)


def test_more_candidates_than_recorded_are_refused() -> None:
    replayer = Replayer(ample(4))
    with pytest.raises(UsageError, match="begins 5 candidates; the trace of '0' has 4"):
        replayer.run(ReplayPolicy(n=5))
    with pytest.raises(UsageError, match="begins 9 candidates"):
        replayer.run(ReplayPolicy(n="auto", memory=rows(9, 16)))
    assert len(replayer.run(ReplayPolicy(n="auto", memory=rows(4, 24), alpha=0)).num_tokens) == 4


def test_a_memory_of_one_byte_less_than_one_candidate_is_refused() -> None:
    replayer = Replayer(ample(4))
    with pytest.raises(BudgetError, match="does not hold one candidate of the prompt '0'"):
        replayer.run(ReplayPolicy(n=4, alpha=0, memory=rows(1) - 1))
    assert len(replayer.run(ReplayPolicy(n=4, alpha=0, memory=rows(1))).decisions) == 4
    short = Replayer(ample(4, max_new_tokens=1))
    with pytest.raises(BudgetError):
        short.run(ReplayPolicy(n=4, alpha=0, memory=rows(1, 2) - 1))


def test_what_the_reward_reads_is_prompt_and_answer_of_each_that_is_scored() -> None:
    trace = ample(4, engine=FakeEngine(eos=0.0))
    outcome = Replayer(trace).run(ReplayPolicy(alpha=0.5, decide="at:8", n=4))
    assert outcome.num_generated_tokens == 2 * 8 + 2 * LENGTH
    assert outcome.num_scored_tokens == 4 * (5 + 8) + 2 * (5 + LENGTH)
    trace = ample(12, engine=FakeEngine(eos=0.1))
    at_the_end = Replayer(trace).run(ReplayPolicy(alpha=0, n=12))
    assert at_the_end.num_scored_tokens == 12 * 5 + trace.lengths.sum()


def test_rescoring_a_place_twice_asks_the_reward_once() -> None:
    first, second = traces_of(
        ["Why?", "How?"], [4], FakeEngine(eos=0.0), n=6, memory="1MiB", max_new_tokens=LENGTH
    )
    reward = FakeReward()
    rescore = Rescorer(reward, FakeEngine().decode)
    for alpha in (0.2, 0.2, 0.5):
        Replayer(first, rescore).run(ReplayPolicy(alpha=alpha, decide="at:9", n=6))
    assert [session.scored for session in reward.sessions] == [[[0, 1, 2, 3, 4, 5]]]
    Replayer(second, rescore).run(ReplayPolicy(decide="at:9", n=6))
    Replayer(second, rescore).run(ReplayPolicy(decide="at:10", n=6))
    assert len(reward.sessions) == 3
    assert all(session.is_closed for session in reward.sessions)


def test_rescoring_shows_a_reward_the_conversation_of_a_prompt_that_is_a_text(
    tmp_path: Path,
) -> None:
    class Listening(FakeReward):
        heard: Any = None

        def open(self, messages: Sequence[Message]) -> FakeSession:
            self.heard = messages
            return super().open(messages)

    task = Task(id="a", turns=("Why?",), category=None, line=1)
    loaded = Loaded(source="-", tasks=(task,), broken=(), sha256="a")
    settings = Settings(n=4, max_new_tokens=LENGTH)
    engine, reward = FakeEngine(eos=0.0), Listening()
    assert list(record(loaded, engine, FakeReward(), tmp_path, settings=settings, checkpoints=[4]))
    [trace] = load(tmp_path)
    Replayer(trace, Rescorer(reward, engine.decode)).run(ReplayPolicy(decide="at:5", n=4))
    assert reward.heard == [{"role": "user", "content": "Why?"}]


def test_another_reward_than_the_traces_is_refused() -> None:
    rescore = Rescorer(FakeReward(in_thirds), FakeEngine().decode)
    with pytest.raises(RewardError, match="recorded with the reward 'by_hash', not 'in_thirds'"):
        Replayer(ample(4), rescore).run(ReplayPolicy(decide="at:5", n=4))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda scores: scores[1:], "must give 4 finite numbers"),
        (lambda scores: [float("nan"), *scores[1:]], "must give 4 finite numbers"),
        (lambda scores: 1 / 0, "failed on partial answers to '0': ZeroDivisionError"),
    ],
)
def test_a_reward_that_fails_on_a_partial_answer_is_named(
    give: Callable[[list[float]], Any], message: str
) -> None:
    class Session(FakeSession):
        def score(self, candidates: Sequence[Candidate]) -> list[float]:
            return give(super().score(candidates))  # type: ignore[no-any-return]

    class Faulty(FakeReward):
        def open(self, messages: Sequence[Message]) -> FakeSession:
            self.sessions.append(Session(by_hash))
            return self.sessions[-1]

    reward = Faulty()
    with pytest.raises(RewardError, match=message):
        Replayer(ample(4, engine=FakeEngine(eos=0.0)), Rescorer(reward, FakeEngine().decode)).run(
            ReplayPolicy(decide="at:5", n=4)
        )
    assert reward.sessions[0].is_closed


def test_regret_is_what_the_best_of_the_trace_has_above_the_winner() -> None:
    trace = ample(12, engine=FakeEngine(eos=0.02))
    best = int(trace.final_rewards.argmax())
    everyone = Replayer(trace).run(ReplayPolicy(alpha=0, n=12))
    assert (everyone.best, everyone.regret) == (best, 0.0)
    first = Replayer(trace).run(ReplayPolicy(alpha=0, n=1))
    assert first.regret == trace.final_rewards.max() - trace.final_rewards[0] > 0


@pytest.mark.parametrize("per_token", [None, 0.0, 7.0])
def test_flops_are_those_of_a_live_run(per_token: float | None) -> None:
    reward = FakeReward()
    reward.flops_per_token = per_token
    trace = ample(8, reward=reward)
    recorded = ReplayPolicy(alpha=0, decide="at:4,8,16", n=8)
    for policy in (recorded, ReplayPolicy(alpha=0.5, decide="at:8", n=8)):
        outcome = Replayer(trace).run(policy)
        # What the reward reads is known of the recorded policy, and estimated for others.
        num_read = trace.usage["reward_tokens"] if policy is recorded else None
        flops = flops_of(FLOPS, 5, outcome.num_tokens, per_token, num_read or 0)
        if per_token is None:
            assert outcome.flops is None
        elif num_read is None and per_token:
            assert outcome.flops is not None
            rest = outcome.flops - (flops["prefill"] or 0) - (flops["decode"] or 0)
            assert 0 < rest < per_token * trace.usage["reward_tokens"]
        else:
            parts = (flops["prefill"], flops["decode"], flops["reward"])
            assert outcome.flops == pytest.approx(sum(part or 0 for part in parts))


@pytest.mark.slow
def test_a_replay_on_the_real_model_is_the_live_run(tmp_path: Path) -> None:
    engine, reward = smollm2("fp32"), as_reward("relevance")
    prompt = "Give three tips for staying healthy."
    options: dict[str, Any] = {"max_new_tokens": 32, "seed": 1}
    (trace,) = traces_in(
        tmp_path, [prompt], [8, 16], engine, reward, n=10, memory="1GiB", **options
    )
    assert trace.hidden_states().shape == (10, 2, 576)
    options["seed"] = trace.settings["seed"]
    replayer = Replayer(trace, Rescorer(reward, engine.decode))
    budget = trace.layout.peak_bytes(trace.num_prompt_tokens, 10, 16)
    policies: list[dict[str, Any]] = [
        {"alpha": 0.5, "n": 10, "memory": budget},
        {"alpha": 0.3, "n": 10, "memory": "1GiB", "decide": "at:8,16"},
    ]
    for policy in policies:
        live = specrej.generate(prompt, model=engine, reward=reward, **options, **policy)
        assert_same(replayer.run(ReplayPolicy(**policy)), live)
        assert len(live.decisions) > 1
        for candidate in live.candidates:
            num_tokens = len(candidate.token_ids)
            assert candidate.token_ids == trace.token_ids[candidate.index][:num_tokens].tolist()
