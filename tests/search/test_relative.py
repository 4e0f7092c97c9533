"""Rewards that say who is better within a group: what a search does with them, and who refuses."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward, by_hash
from jobs import openai, plain, run_job, write_requests
from specrej.batch.summary import figures_of
from specrej.errors import UsageError
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.recording import record
from specrej.evaluation.relabelling import relabel
from specrej.rewards.ensemble import EnsembleReward
from specrej.rewards.pairwise import FunctionComparer, PairwiseReward
from specrej.search.choosing import lowest
from specrej.settings import Settings
from specrej.types import RELATIVE_NOTE, Candidate, Policy, Result, Standing
from traces import loaded_of

some = settings(max_examples=30, deadline=None, derandomize=True)


def better(prompt: str, a: str, b: str) -> float:
    """By one total order of texts."""
    return 0.5 if by_hash(a) == by_hash(b) else float(by_hash(a) > by_hash(b))


def ranker(scheme: str = "round_robin") -> PairwiseReward:
    return PairwiseReward(FunctionComparer(better), scheme=scheme)


CASES: dict[str, Any] = {
    "seed": st.integers(0, 2**32),
    "n": st.integers(1, 12),
    "scheme": st.sampled_from(["round_robin", "knockout"]),
}


def run(algorithm: str, reward: Any, *, seed: int, n: int, **options: Any) -> Result:
    return specrej.generate(
        "Why?",
        engine=FakeEngine(),
        reward=reward,
        algorithm=algorithm,
        n=n,
        seed=seed,
        max_new_tokens=24,
        **options,
    )


@some
@given(**CASES, room=st.integers(1, 5))
def test_best_of_n_in_waves_has_the_answer_of_an_absolute_reward(
    seed: int, n: int, scheme: str, room: int
) -> None:
    """Who was complete in an earlier wave is compared with those of later ones."""
    engine = FakeEngine()
    memory = engine.default_budget(len(engine.encode("Why?")), 24) * room // 8 + 600
    options = {"seed": seed, "n": n, "memory": memory}
    absolute = run("best_of_n", lambda prompt, texts: list(map(by_hash, texts)), **options)
    relative = run("best_of_n", ranker(scheme), **options)
    assert relative.text == absolute.text
    assert relative.note == RELATIVE_NOTE
    assert relative.is_relative
    assert not absolute.is_relative
    texts = [one.text for one in relative.candidates if one.state == "complete"]
    if scheme == "round_robin" and len(texts) > 1:
        for one in relative.candidates:
            others = list(texts)
            others.remove(one.text)
            won = sum(better("", one.text, other) for other in others)
            assert one.reward == pytest.approx(won / len(others))


@some
@given(
    **CASES,
    algorithm=st.sampled_from(
        ["speculative_rejection", "beam_search", "dvts", "particle_filtering", "tree_bon"]
    ),
)
def test_those_who_can_win_were_compared_last_together(
    seed: int, n: int, scheme: str, algorithm: str
) -> None:
    decided = {"decide": "at:5,9,14"} if algorithm == "speculative_rejection" else {}
    result = run(algorithm, ranker(scheme), seed=seed, n=n, **decided)
    complete = [one for one in result.candidates if one.state == "complete"]
    assert len({max(one.rewards) for one in complete}) == 1
    if scheme == "round_robin":
        assert by_hash(result.text) == max(by_hash(one.text) for one in complete)


@some
@given(**CASES, refill=st.sampled_from(["none", "forks", "fresh"]), total=st.integers(1, 3))
def test_prompts_side_by_side_compare_as_often_as_alone(
    seed: int, n: int, scheme: str, refill: str, total: int
) -> None:
    """Whoever refills, and though one of them fails at a later decision."""

    def fails(prompt: str, a: str, b: str) -> float:
        if prompt == "No?" and len(a) > 4:
            raise SystemExit(3)
        return better(prompt, a, b)

    memory = FakeEngine().kv_bytes(5, 5, 24)
    options: dict[str, Any] = {
        "n": n, "seed": seed, "memory": memory, "refill": refill, "decide": "every:5",
        "max_new_tokens": 24,
    }  # fmt: skip
    reward = PairwiseReward(FunctionComparer(fails), scheme=scheme)
    prompts = ["Why?", "No?", "How?"]
    engine = FakeEngine(total_bytes=total * memory, eos=0.2)
    together = dict(
        specrej.generate_batch(
            prompts, model=engine, reward=reward, total_memory=total * memory, **options
        )
    )
    for number in (0, 2):
        outcome = together[number]
        assert isinstance(outcome, Result)
        alone = specrej.generate(
            prompts[number], model=FakeEngine(eos=0.2), reward=reward, **options
        )
        assert outcome.candidates == alone.candidates
        assert outcome.usage.reward_comparisons == alone.usage.reward_comparisons
        latest = max(max(one.rewards) for one in alone.candidates if one.state == "complete")
        assert all(latest in one.rewards for one in alone.candidates if one.state == "complete")


def test_comparisons_are_counted() -> None:
    calls: list[tuple[str, str]] = []

    def counted(prompt: str, a: str, b: str) -> float:
        calls.append((a, b))
        return better(prompt, a, b)

    reward = PairwiseReward(FunctionComparer(counted))
    result = run("speculative_rejection", reward, seed=3, n=8, decide="at:6,12")
    assert result.usage.reward_comparisons == len(calls) > 0
    assert result.to_dict()["usage"]["reward_comparisons"] == len(calls)


@pytest.mark.parametrize("member", ["plain", "ensemble"])
def test_threshold_is_refused(member: str) -> None:
    reward: Any = ranker() if member == "plain" else EnsembleReward([ranker(), "logprob"])
    with pytest.raises(
        UsageError,
        match=r"the algorithm 'threshold' needs a reward .*; '(pairwise:better|ensemble:)",
    ):
        run("threshold", reward, seed=0, n=4, threshold=0.5)


def test_a_calibrated_policy_is_refused_and_one_by_ranks_is_not() -> None:
    def keep(standing: Standing) -> list[bool]:
        return [score >= sorted(standing.scores)[-2] for score in standing.scores]

    for recorded in ({"reward": "pairwise:better"}, {}):
        policy = Policy(lambda length, last: length == 6, keep, 6, name="mine", recorded=recorded)
        if recorded:
            with pytest.raises(UsageError, match="the policy 'mine', which was calibrated"):
                run("speculative_rejection", ranker(), seed=0, n=4, policy=policy)
        else:
            run("speculative_rejection", ranker(), seed=0, n=4, policy=policy)


def test_methods_are_not_compared() -> None:
    with pytest.raises(UsageError, match="to compare methods needs a reward"):
        specrej.compare("Why?", engine=FakeEngine(), reward=ranker())


def test_benches_and_traces_are_refused(tmp_path: Path) -> None:
    asked, engine, given = loaded_of(["Why?"]), FakeEngine(), Settings(n=4, max_new_tokens=12)
    methods = parse_methods(["best_of_n:4"], given)
    with pytest.raises(UsageError, match="a bench needs a reward"):
        next(run_bench(asked, methods, engine, ranker(), tmp_path / "bench", settings=given))
    with pytest.raises(UsageError, match="a trace needs a reward"):
        next(record(asked, engine, ranker(), tmp_path / "t", settings=given, checkpoints=[4]))
    list(record(asked, engine, FakeReward(), tmp_path / "trace", settings=given, checkpoints=[4]))
    with pytest.raises(UsageError, match="a trace needs a reward"):
        next(relabel(tmp_path / "trace", ranker(), engine.detokenizer, tmp_path / "new"))


def test_rows_of_a_batch_say_so_and_have_no_mean(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [plain(0), openai(1)])
    ended = run_job(source, tmp_path / "out.jsonl", reward=ranker())
    rows = [one.row for one in ended]
    assert [row["error"] for row in rows] == [None, None]
    parts = [row["response"]["body"]["specrej"] if "response" in row else row for row in rows]
    assert [(part["is_relative"], part["note"]) for part in parts] == [(True, RELATIVE_NOTE)] * 2
    assert [figures_of(row).reward for row in rows] == [None, None]
    [usual, _] = run_job(source, tmp_path / "usual.jsonl")
    assert "is_relative" not in usual.row
    assert figures_of(usual.row).reward is not None


def test_a_filter_is_refused() -> None:
    with pytest.raises(UsageError, match="the filter of an ensemble needs a reward"):
        EnsembleReward(["logprob"], filter=ranker())


def test_an_ensemble_with_a_ranker_is_relative_and_counts() -> None:
    reward = EnsembleReward([ranker(), "logprob"], [1.0, 0.001])
    result = run("best_of_n", reward, seed=1, n=4)
    assert result.is_relative
    assert result.usage.reward_comparisons == 12


def test_the_lowest_is_of_those_compared_last() -> None:
    early = Candidate(0, text="a", rewards={0: 0.1}, state="rejected", finish_reason="eos")
    late = [
        Candidate(1, text="b", rewards={0: 0.9, 1: 1.0}, state="complete", finish_reason="eos"),
        Candidate(2, text="c", rewards={0: 0.8, 1: 0.5}, state="rejected", finish_reason="eos"),
    ]
    assert lowest([early, *late], []) is early
    assert lowest([early, *late], [], is_relative=True) is late[1]
    assert lowest([early, late[0]], [], is_relative=True) is None
    assert lowest([], [], is_relative=True) is None
