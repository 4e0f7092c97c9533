"""One prompt's run at its edges: what fits, what stops, what rewards get wrong, what an interrupted
run gives.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

import specrej
from fakes import BOS, FakeEngine, FakeReward, alike, by_hash, text_of, watched
from specrej.errors import BudgetError, DeviceMemoryError, PromptError, RewardError, UsageError
from specrej.memory import parse_bytes
from specrej.rewards.base import StatelessSession
from specrej.search.scoring import score_batches
from specrej.search.search import Search
from specrej.types import Candidate, Message, Result, SamplingParams

PROMPT = "Why?"
NUM_PROMPT = len(PROMPT) + 1
ALGORITHMS = ["best_of_n", "speculative_rejection"]

Watch = Callable[[Search], None]


def generate(engine: FakeEngine | None = None, reward: Any = None, **options: Any) -> Result:
    options = {"max_new_tokens": 24, "min_tokens": 6, **options}
    return watched(PROMPT, model=engine or FakeEngine(), reward=reward or FakeReward(), **options)


def rows(num: int, length: int = 24) -> int:
    """Bytes that hold so many candidates of so many tokens."""
    return FakeEngine().kv_bytes(NUM_PROMPT, num, length)


def scores_of(begun: Search) -> list[float]:
    """What the scheduler does before it resumes an algorithm."""
    ((given, _),) = score_batches([begun])
    return begun.take_scores(given)


# What fits


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", [1, 5, "auto"])
def test_a_budget_of_exactly_one_candidate_is_enough(algorithm: str, n: int | str) -> None:
    result = generate(algorithm=algorithm, n=n, memory=rows(1))
    assert result.best.state == "complete"
    assert result.usage.peak_kv_bytes <= rows(1)


def test_one_byte_less_than_one_candidate_is_an_error_whose_hint_works() -> None:
    with pytest.raises(
        BudgetError, match="does not hold one candidate: 5 prompt tokens and 24 new ones"
    ) as caught:
        generate(memory=rows(1) - 1)
    amount = str(caught.value.hint).split("at least ")[1].split(",")[0]
    assert parse_bytes(amount) >= rows(1)
    generate(memory=amount)


def test_auto_begins_as_many_as_memory_carries_to_the_first_decision() -> None:
    assert len(generate(n="auto", memory=rows(10, 6) + rows(1, 6) // 8).candidates) == 10
    assert len(generate(n="auto", memory=rows(10, 9), decide="every:9").candidates) == 10
    assert len(generate(n="auto", memory=rows(10), algorithm="best_of_n").candidates) == 10


def test_no_memory_given_is_the_engines_room_for_eight() -> None:
    assert len(generate(n="auto", algorithm="best_of_n").candidates) == 8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_single_candidate_runs_to_its_end_and_is_the_answer(algorithm: str) -> None:
    result = generate(algorithm=algorithm, n=1, alpha=0.9)
    assert [candidate.state for candidate in result.candidates] == ["complete"]
    assert result.best is result.candidates[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_new_token_is_drawn_scored_and_done(algorithm: str) -> None:
    result = generate(FakeEngine(eos=0.0), algorithm=algorithm, n=6, max_new_tokens=1)
    assert [len(candidate.token_ids) for candidate in result.candidates] == [1] * 6
    assert {candidate.finish_reason for candidate in result.candidates} == {"length"}
    assert result.usage.num_steps == len(result.decisions) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_new_token_which_costs_no_memory_still_begins_a_number_that_memory_limits(
    algorithm: str,
) -> None:
    assert len(generate(algorithm=algorithm, n="auto", max_new_tokens=1).candidates) == 8
    assert (
        len(generate(algorithm=algorithm, n="auto", max_new_tokens=1, memory=rows(3, 2)).candidates)
        == 3
    )
    assert len(generate(n="auto", min_tokens=1, memory=rows(1, 24)).candidates) == 23


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_answer_that_ends_at_once_is_empty_and_scored(algorithm: str) -> None:
    result = generate(FakeEngine(eos=1.0), algorithm=algorithm, n=4)
    assert result.text == ""
    assert result.reward == by_hash("")
    assert {candidate.finish_reason for candidate in result.candidates} == {"eos"}
    assert result.best.index == 0


def test_prompt_and_answer_may_fill_the_context_to_its_edge() -> None:
    result = generate(FakeEngine(eos=0.0, context_tokens=NUM_PROMPT + 24), n=2)
    assert len(result.best.token_ids) == 24
    assert (
        len(
            generate(
                FakeEngine(context_tokens=NUM_PROMPT + 1), n=2, max_new_tokens=1
            ).best.token_ids
        )
        == 1
    )


def test_an_answer_that_may_leave_the_context_is_an_error_with_the_length_that_fits() -> None:
    engine = FakeEngine(context_tokens=NUM_PROMPT + 23)
    with pytest.raises(UsageError, match="exceed the context of 28") as caught:
        generate(engine)
    assert caught.value.hint == "give max_new_tokens of at most 23"
    generate(engine, n=1, max_new_tokens=23)


@pytest.mark.parametrize("context_tokens", [NUM_PROMPT, NUM_PROMPT - 1])
def test_a_prompt_that_leaves_no_room_in_the_context_is_an_error(context_tokens: int) -> None:
    with pytest.raises(PromptError, match="the prompt has 5 tokens"):
        generate(FakeEngine(context_tokens=context_tokens), max_new_tokens=1)


# Stop strings


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stop", [["ab"], ["é"], ["e ", "caa"], ["b", "ab"]])
def test_a_stop_string_ends_the_answer_before_it(algorithm: str, stop: list[str]) -> None:
    engine = FakeEngine()
    options: dict[str, Any] = {"n": 40, "memory": rows(60), "seed": 2, "alpha": 0.25}
    result = generate(engine, algorithm=algorithm, stop=stop, **options)
    full = generate(algorithm="best_of_n", **options)
    assert "stop" in {candidate.finish_reason for candidate in result.candidates}
    for candidate, whole in zip(result.candidates, full.candidates, strict=True):
        expected = until_stop(whole.token_ids, stop)
        assert candidate.token_ids == expected[: len(candidate.token_ids)]
        assert not any(word in candidate.text for word in stop)
        if candidate.finish_reason == "stop":
            assert candidate.token_ids == expected
            text = text_of(expected)
            assert candidate.text == text[: min(text.find(word) for word in stop if word in text)]
        elif candidate.state == "complete":
            assert (candidate.token_ids, candidate.text) == (whole.token_ids, whole.text)
    assert engine.num_drawn == sum(len(candidate.token_ids) for candidate in result.candidates)


def until_stop(token_ids: list[int], stop: list[str]) -> list[int]:
    """The tokens up to the one that completes a stop string."""
    lengths = range(1, len(token_ids) + 1)
    found = (
        length for length in lengths if any(word in text_of(token_ids[:length]) for word in stop)
    )
    return token_ids[: next(found, len(token_ids))]


def test_a_stop_string_frees_the_candidates_memory_at_once() -> None:
    held: list[tuple[int, int]] = []

    def observe(search: Search) -> None:
        held.append((len(search.live), search.memory().in_use))

    generate(
        FakeEngine(eos=0.0),
        algorithm="best_of_n",
        n=8,
        memory=rows(8),
        stop=["aa"],
        observe=observe,
    )
    prompt = rows(0)
    assert held[-1] == (0, prompt)
    assert any(
        later < earlier and many > few > 0
        for (many, earlier), (few, later) in pairwise(held)
        if few < many
    )


def test_a_stop_string_completed_by_the_last_token_that_is_allowed_is_a_stop() -> None:
    whole = generate(FakeEngine(eos=0.0), n=1).best
    result = generate(
        FakeEngine(eos=0.0), n=1, stop=[whole.text[-3:]], max_new_tokens=len(whole.token_ids)
    )
    assert whole.text.find(whole.text[-3:]) == len(whole.text) - 3
    assert (result.best.finish_reason, result.text) == ("stop", whole.text[:-3])
    assert result.best.token_ids == whole.token_ids


# What the device gives up


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_device_out_of_memory_costs_candidates_and_never_the_run(algorithm: str) -> None:
    options: dict[str, Any] = {"n": 12, "memory": rows(12), "algorithm": algorithm, "alpha": 0.0}
    result, full = generate(FakeEngine(fail_at={8}), **options), generate(**options)
    lost = [decision for decision in result.decisions if decision.cause == "out_of_memory"]
    assert len(lost) == 1
    assert len(lost[0].rejected) == len(lost[0].scored) // 2 > 1
    assert result.is_complete
    for candidate, whole in zip(result.candidates, full.candidates, strict=True):
        if candidate.index in lost[0].rejected:
            assert candidate.state == "rejected"
            assert candidate.token_ids == whole.token_ids[:8]
            assert candidate.text == text_of(candidate.token_ids)
        else:
            assert candidate.token_ids == whole.token_ids
            assert candidate.reward == by_hash(whole.text)


def test_a_device_out_of_memory_rejects_the_lowest_rewards_first() -> None:
    result = generate(
        FakeEngine(eos=0.0, fail_at={12}), n=8, memory=rows(8), alpha=0.01, decide="every:10"
    )
    first, lost = result.decisions[:2]
    assert lost.cause == "out_of_memory"
    rewards = {
        index: result.candidates[index].rewards[0]
        for index in first.scored
        if index not in first.rejected
    }
    assert set(lost.rejected) == set(
        sorted(rewards, key=lambda index: rewards[index])[: len(rewards) // 2]
    )


def test_candidates_that_had_ended_when_the_device_ran_out_of_memory_can_win() -> None:
    def shortest(text: str) -> float:
        return -float(len(text))

    engine = FakeEngine(fail_at={10, 11})
    result = generate(engine, FakeReward(shortest), algorithm="best_of_n", n=12, memory=rows(12))
    assert all(
        candidate.reward is not None
        for candidate in result.candidates
        if candidate.state == "complete"
    )
    assert len(result.best.token_ids) < 10
    assert result.best == min(
        (candidate for candidate in result.candidates if candidate.state == "complete"),
        key=lambda c: len(c.text),
    )


@pytest.mark.parametrize(("n", "num_failures"), [(1, 1), (8, 4)])
def test_a_device_that_has_no_memory_for_one_candidate_is_an_error(
    n: int, num_failures: int
) -> None:
    engine, reward = FakeEngine(eos=0.0, fail_at=range(3, 3 + num_failures)), FakeReward()
    with pytest.raises(DeviceMemoryError):
        generate(engine, reward, n=n, memory=rows(8))
    assert engine.num_steps == 3 + num_failures
    assert engine.groups == {}
    assert reward.sessions[0].is_closed


def test_a_device_that_fails_until_one_candidate_is_left_gives_its_answer() -> None:
    result = generate(FakeEngine(eos=0.0, fail_at=range(3, 6)), n=8, memory=rows(8))
    assert [candidate.state for candidate in result.candidates].count("complete") == 1
    assert len(result.best.token_ids) == 24


# What rewards get wrong


class BrokenReward:
    """Scores what `score` returns; `open` fails where `is_closed`."""

    name = "broken"
    flops_per_token: float | None = None

    def __init__(
        self, score: Callable[[Sequence[Candidate]], Any], *, is_closed: bool = False
    ) -> None:
        self._score = score
        self._is_closed = is_closed

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        if self._is_closed:
            raise OSError("no such host")
        return StatelessSession(messages, lambda messages, candidates: (self._score(candidates), 0))

    def close(self) -> None:
        """Nothing is held."""


def failing(candidates: Sequence[Candidate]) -> Any:
    raise ValueError("too long")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (failing, r"the reward 'broken' failed on candidates 0 to 3: ValueError\('too long'\)"),
        (
            lambda candidates: [0.0, 1.0, float("nan"), 2.0],
            "the reward 'broken' gave nan for candidate 2",
        ),
        (
            lambda candidates: [0.0, float("inf"), 1.0, 2.0],
            "the reward 'broken' gave inf for candidate 1",
        ),
        (
            lambda candidates: [0.0, 1.0],
            "gave 2 scores for 4 candidates; they part ways at candidate 2",
        ),
        (lambda candidates: [], "gave 0 scores for 4 candidates; they part ways at candidate 0"),
        (
            lambda candidates: [0.0] * 5,
            "gave 5 scores for 4 candidates; they part ways at candidate 3",
        ),
        (lambda candidates: None, "failed on candidates 0 to 3: TypeError"),
        (lambda candidates: 1.0, "failed on candidates 0 to 3: TypeError"),
        (lambda candidates: ["good"] * 4, "failed on candidates 0 to 3: ValueError"),
    ],
)
def test_a_reward_that_fails_is_an_error_that_names_the_candidate(
    score: Callable[[Sequence[Candidate]], Any], message: str
) -> None:
    engine = FakeEngine()
    with pytest.raises(RewardError, match=message):
        generate(engine, BrokenReward(score), n=4, alpha=0.0)
    assert engine.groups == {}


def test_a_reward_that_fails_says_from_what() -> None:
    with pytest.raises(RewardError) as caught:
        generate(reward=BrokenReward(failing), n=4)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_the_reward_words_itself_is_passed_on() -> None:
    def worded(candidates: Sequence[Candidate]) -> Any:
        raise RewardError("the judge is asleep", hint="wake it")

    with pytest.raises(RewardError, match="the judge is asleep") as caught:
        generate(reward=BrokenReward(worded), n=4)
    assert caught.value.hint == "wake it"


def test_a_reward_that_fails_on_the_prompt_is_an_error_and_frees_the_engine() -> None:
    engine = FakeEngine()
    with pytest.raises(
        RewardError, match=r"the reward 'broken' failed on the prompt: OSError\('no such host'\)"
    ):
        generate(engine, BrokenReward(failing, is_closed=True))
    assert engine.groups == {}


def test_scores_may_be_of_any_kind_of_number_and_are_kept_as_floats() -> None:
    result = generate(
        reward=BrokenReward(lambda candidates: tuple(range(len(candidates)))), n=3, alpha=0.0
    )
    assert [type(candidate.reward) for candidate in result.candidates] == [float] * 3


# What it tells


def test_rewards_sessions_hear_who_was_rejected_and_are_closed() -> None:
    reward = FakeReward()
    result = generate(reward=reward, n=20, memory=rows(5))
    session = reward.sessions[0]
    assert (
        sorted(session.dropped)
        == [c.index for c in result.candidates if c.state == "rejected"]
        != []
    )
    assert session.scored == [list(decision.scored) for decision in result.decisions]
    assert session.is_closed


def test_of_equal_rewards_the_first_complete_one_wins() -> None:
    assert generate(reward=FakeReward(alike), n=6, alpha=0.0).best.index == 0


def test_a_result_says_with_what_it_was_made_and_how_to_make_it_again() -> None:
    result = generate(n=4, seed=9, stop=["x"])
    assert result.seed == 9
    assert result.versions == {"specrej": specrej.__version__, "fake": "1"}
    expected = {
        "n": 4,
        "seed": 9,
        "stop": ["x"],
        "engine": "fake",
        "model": "bytes",
        "reward": "by_hash",
    }
    assert expected.items() <= result.settings.items()
    assert result.settings["memory_bytes"] == rows(8)


def test_the_next_of_equal_settings_gives_the_same_result() -> None:
    one, two = (generate(n=16, memory=rows(4), seed=3) for _ in range(2))
    assert (one.candidates, one.decisions) == (two.candidates, two.decisions)
    assert one.candidates != generate(n=16, memory=rows(4), seed=4).candidates


# Interrupted runs


def search(engine: FakeEngine, reward: FakeReward, memory: int | None = None) -> Search:
    begun = Search(engine, reward, PROMPT, SamplingParams(max_new_tokens=24), memory, {})
    begun.open()
    return begun


def advance(begun: Search, engine: FakeEngine, num_steps: int) -> None:
    for _ in range(num_steps):
        begun.receive(engine.step(), 0.0)


def test_before_the_first_score_the_longest_live_candidate_is_the_best_there_is() -> None:
    engine = FakeEngine(eos=0.0)
    begun = search(engine, FakeReward())
    begun.start(3)
    advance(begun, engine, 5)
    result = begun.result()
    assert (result.best.index, result.is_complete, result.reward) == (0, False, None)
    assert result.text == text_of(result.best.token_ids) != ""


def test_a_complete_candidate_is_better_than_a_live_one_of_higher_reward() -> None:
    engine = FakeEngine(eos=0.15)
    begun = search(engine, FakeReward(lambda text: len(text)))
    begun.start(8)
    while len(begun.live) == 8:
        advance(begun, engine, 1)
    begun.begin_decision("schedule")
    begun.keep([True] * len(scores_of(begun)))
    advance(begun, engine, 1)
    result = begun.result()
    assert result.best.state == "complete"
    assert len(begun.live) > 0
    assert not result.is_complete


def test_a_run_interrupted_while_its_last_candidates_are_scored_is_not_complete() -> None:
    engine = FakeEngine()
    begun = search(engine, FakeReward(), rows(4))
    for size in begun.waves(8, None):
        begun.start(size)
        while begun.live:
            advance(begun, engine, 1)
        assert not begun.result().is_complete
        begun.begin_decision("complete")
        begun.keep([True] * len(scores_of(begun)))
    assert begun.result().is_complete


def test_a_prompt_is_sent_as_the_engine_encodes_it() -> None:
    assert search(FakeEngine(), FakeReward()).prompt_ids == [BOS, *PROMPT.encode()]


# A conversation that ends in an answer's beginning


def test_a_reward_reads_the_beginning_that_was_given_and_what_goes_on_with_it_as_one_answer() -> (
    None
):
    begun = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Well, "}]
    asked: list[Sequence[Message]] = []
    read: dict[int, str] = {}

    class Recording(FakeReward):
        def open(self, messages: Sequence[Message]) -> Any:
            asked.append(messages)

            def score(_: Any, candidates: Sequence[Candidate]) -> tuple[list[float], int]:
                read.update({candidate.index: candidate.text for candidate in candidates})
                return [by_hash(candidate.text) for candidate in candidates], 0

            return StatelessSession(messages, score)

    options: dict[str, Any] = {"n": 4, "algorithm": "best_of_n", "max_new_tokens": 8}
    result = watched(
        begun, model=FakeEngine(), reward=Recording(), continue_final_message=True, **options
    )
    assert asked == [begun[:1]]
    assert read == {candidate.index: f"Well, {candidate.text}" for candidate in result.candidates}
    assert result.usage.prompt_tokens == len(FakeEngine().encode(begun))
    with pytest.raises(PromptError, match="ends in an assistant's message") as caught:
        watched(begun, model=FakeEngine(), reward=FakeReward(), **options)
    assert "continue_final_message" in str(caught.value.hint)


def test_a_conversation_with_nothing_to_continue_is_refused_when_asked_to() -> None:
    user = {"role": "user", "content": PROMPT}
    options: dict[str, Any] = {"model": FakeEngine(), "reward": FakeReward(), "n": 2}
    for prompt in (PROMPT, [user]):
        with pytest.raises(PromptError, match="this one ends in a user's"):
            specrej.generate(prompt, continue_final_message=True, **options)
    system = {"role": "system", "content": PROMPT}
    with pytest.raises(PromptError, match="this one ends in a system's"):
        specrej.compare([user, system], continue_final_message=True, **options)


def test_a_prompt_of_a_batch_that_ends_in_an_answer_fails_alone() -> None:
    begun = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Well, "}]
    outcomes = dict(
        specrej.generate_batch([begun, PROMPT], model=FakeEngine(), reward=FakeReward(), n=2)
    )
    assert isinstance(outcomes[0], PromptError)
    assert isinstance(outcomes[1], Result)
