"""The Python interface, with engine and reward given as objects."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward, by_hash, watched
from specrej.errors import (
    BudgetError,
    PromptError,
    RewardError,
    SpecrejError,
    UnknownNameError,
    UsageError,
)
from specrej.search.search import Search
from specrej.types import Result

OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "min_tokens": 5, "n": 12, "memory": 4000}


def test_the_public_names_are_these() -> None:
    assert sorted(specrej.__all__) == [
        "BudgetError",
        "Candidate",
        "Continuation",
        "Conversation",
        "DeadlineError",
        "Decided",
        "Decision",
        "DeviceMemoryError",
        "Ended",
        "Engine",
        "EngineError",
        "Event",
        "Interrupted",
        "ModelError",
        "Opening",
        "Outcome",
        "Policy",
        "PromptError",
        "QueueFullError",
        "Result",
        "Reward",
        "RewardError",
        "RewardSession",
        "SamplingError",
        "SamplingParams",
        "SearchView",
        "ServingError",
        "Session",
        "Settings",
        "ShutdownError",
        "SpecrejError",
        "Standing",
        "Started",
        "StatelessSession",
        "Step",
        "Text",
        "UnknownNameError",
        "Usage",
        "UsageError",
        "__version__",
        "as_reward",
        "compare",
        "generate",
        "generate_batch",
        "open_engine",
    ]
    assert all(hasattr(specrej, name) for name in specrej.__all__)


def output_of(code: str) -> str:
    """What a fresh Python prints."""
    paths = [str(Path(specrej.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip()


def test_importing_specrej_loads_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'safetensors', 'onnxruntime', 'rich', 'typer'}"
    assert output_of(f"import specrej, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_running_on_an_engine_and_a_reward_of_ones_own_loads_no_torch() -> None:
    code = (
        "import specrej, sys; from fakes import FakeEngine; "
        "specrej.generate('Why?', model=FakeEngine(), reward=lambda prompt, texts: [len(t) for t "
        "in texts], n=2); "
        "print('torch' in sys.modules)"
    )
    assert output_of(code) == "False"


def test_generate_gives_the_best_answer() -> None:
    result = specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), **OPTIONS)
    assert len(result.candidates) == 12
    assert result.reward == by_hash(result.text)


def test_a_function_over_texts_is_a_reward() -> None:
    asked = []

    def longest(prompt: str, texts: list[str]) -> list[int]:
        asked.append(prompt)
        return [len(text) for text in texts]

    result = specrej.generate("Why?", model=FakeEngine(), reward=longest, **OPTIONS)
    assert result.reward == len(result.text)
    assert set(asked) == {"Why?"}
    assert result.settings["reward"] == "longest"


def test_a_conversation_is_a_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    result = specrej.generate(messages, model=FakeEngine(), reward=FakeReward(), **OPTIONS)
    assert result.usage.prompt_tokens == len("Be brief.\nWhy?") + 1


def test_speculative_rejection_in_automatic_numbers_is_the_default() -> None:
    result = specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), max_new_tokens=40)
    assert result.settings["algorithm"] == "speculative_rejection"
    assert len(result.candidates) > 8
    assert "rejected" in {candidate.state for candidate in result.candidates}


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ("", {}, PromptError),
        (None, {}, PromptError),
        ("Why?", {"memory": 200}, BudgetError),
        ("Why?", {"alpha": 2.0}, UsageError),
        ("Why?", {"algorithm": "best_of"}, UnknownNameError),
        ("Why?", {"max_new_tokens": 5000}, UsageError),
    ],
)
def test_what_cannot_be_honoured_is_an_error(
    prompt: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    engine = FakeEngine()
    with pytest.raises(error):
        specrej.generate(prompt, model=engine, reward=FakeReward(), **{**OPTIONS, **options})
    assert engine.num_prefills == 0


def test_an_option_nobody_knows_is_an_error() -> None:
    with pytest.raises(TypeError, match="tempature"):
        specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), tempature=1.0)  # type: ignore[call-arg]


def test_an_engine_is_returned_as_it_is() -> None:
    engine = FakeEngine()
    assert specrej.open_engine(engine) is engine


# generate_batch


def test_generate_batch_yields_every_outcome_with_its_number_failures_in_place() -> None:
    def picky(prompt: str, texts: list[str]) -> list[float]:
        if prompt == "bad":
            raise ValueError("no")
        return [0.0] * (len(texts) - (prompt == "short"))

    prompts: list[Any] = ["Why?", "", "bad", "short", None, "x" * 900, "How?"]
    engine = FakeEngine()
    outcomes = dict(
        specrej.generate_batch(prompts, model=engine, reward=picky, in_flight=2, **OPTIONS)
    )
    kinds = [type(outcomes[number]) for number in range(len(prompts))]
    assert kinds == [
        Result,
        PromptError,
        RewardError,
        RewardError,
        PromptError,
        PromptError,
        Result,
    ]
    assert all("candidate" in str(outcomes[number]) for number in (2, 3))
    assert not engine.groups


def test_generate_batch_gives_each_prompt_what_generate_gives_it() -> None:
    prompts = ["Why?", "How?", "Who?"]
    outcomes = dict(
        specrej.generate_batch(iter(prompts), model=FakeEngine(), reward=FakeReward(), **OPTIONS)
    )
    for number, prompt in enumerate(prompts):
        outcome, alone = (
            outcomes[number],
            specrej.generate(prompt, model=FakeEngine(), reward=FakeReward(), **OPTIONS),
        )
        assert not isinstance(outcome, SpecrejError)
        assert (outcome.candidates, outcome.decisions) == (alone.candidates, alone.decisions)


@pytest.mark.parametrize("wrong", [{"in_flight": 0}, {"alpha": 1.0}, {"reward": "relevence"}])
def test_generate_batch_refuses_what_it_cannot_honour_before_it_is_asked_for_an_outcome(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(UsageError):
        specrej.generate_batch(
            [], **{"model": FakeEngine(), "reward": FakeReward(), **OPTIONS, **wrong}
        )


def test_generate_batch_of_nothing_is_nothing() -> None:
    assert list(specrej.generate_batch([], model=FakeEngine(), reward=FakeReward())) == []


def test_a_budget_that_nobody_gave_is_at_most_what_prompts_share() -> None:
    options: dict[str, Any] = {"n": 12, "max_new_tokens": 100, "min_tokens": 5, "seed": 3}

    def batch(**more: Any) -> Result:
        [(_, outcome)] = specrej.generate_batch(
            ["Why?"], model=FakeEngine(), reward=FakeReward(), **options, **more
        )
        assert isinstance(outcome, Result)
        return outcome

    small = batch(total_memory=5000)
    assert small.settings["memory_bytes"] == 5000
    alike = specrej.generate(
        "Why?", model=FakeEngine(), reward=FakeReward(), memory=5000, **options
    )
    assert small.text == alike.text
    alone = specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), **options)
    assert batch().settings["memory_bytes"] == alone.settings["memory_bytes"] > 5000


# compare


def test_compare_runs_all_three_in_the_same_memory_on_the_same_streams() -> None:
    engine, options = FakeEngine(), {**OPTIONS, "n": "auto"}
    results = specrej.compare("Why?", model=engine, reward=FakeReward(), **options)
    small, rejection, large = results.values()
    assert list(results) == ["best_of_n", "speculative_rejection", "best_of_n_same_start"]
    assert len(small.candidates) < len(rejection.candidates) == len(large.candidates)
    assert {result.settings["memory_bytes"] for result in results.values()} == {4000}
    for one, other in zip(rejection.candidates, large.candidates, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)]
    assert (large.reward or 0.0) >= max(rejection.reward or 0.0, small.reward or 0.0)
    assert max(result.usage.peak_kv_bytes for result in results.values()) <= 4000


# Interrupted


@pytest.mark.parametrize("moment", [1, 6, 12])
def test_an_interrupted_run_carries_what_there_was_by_then(moment: int) -> None:
    engine, reward = FakeEngine(eos=0.0), FakeReward()
    seen = []

    def observe(search: Search) -> None:
        seen.append(search)
        if len(seen) == moment:
            raise KeyboardInterrupt

    with pytest.raises(specrej.Interrupted) as caught:
        watched("Why?", model=engine, reward=reward, observe=observe, **OPTIONS)
    result = caught.value.result
    assert result is not None
    assert not result.is_complete
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert result.best.state == "live"
    assert result.text != ""
    assert (
        result.usage.generated_tokens
        == sum(len(candidate.token_ids) for candidate in result.candidates)
        > 0
    )
    assert result.usage.other_s >= 0
    assert not engine.groups
    assert reward.sessions[0].is_closed


def test_an_interrupted_run_is_a_keyboard_interrupt_to_those_who_do_not_ask() -> None:
    def observe(event: specrej.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specrej.generate(
            "Why?", model=FakeEngine(), reward=FakeReward(), observe=observe, **OPTIONS
        )


def test_a_run_interrupted_while_it_is_scored_has_no_seconds_below_zero() -> None:
    def interrupt(text: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(specrej.Interrupted) as caught:
        specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(interrupt), **OPTIONS)
    result = caught.value.result
    assert result is not None
    assert not result.is_complete
    assert result.reward is None
    assert result.usage.other_s >= 0
    assert result.usage.reward_s > 0


def test_a_run_interrupted_before_its_first_candidate_carries_nothing_and_frees_the_engine() -> (
    None
):
    class Slow(FakeReward):
        def open(self, messages: object) -> Any:
            raise KeyboardInterrupt

    engine = FakeEngine()
    with pytest.raises(specrej.Interrupted) as caught:
        specrej.generate("Why?", model=engine, reward=Slow(), **OPTIONS)
    assert caught.value.result is None
    assert not engine.groups


def test_a_run_may_begin_on_an_engine_that_another_run_is_using() -> None:
    engine, reward = FakeEngine(), FakeReward(by_hash)
    alone = [
        specrej.generate(prompt, model=engine, reward=reward, **OPTIONS)
        for prompt in ("Why?", "How?", "Who?")
    ]
    outer = specrej.generate_batch(
        ["Why?", "How?"], model=engine, reward=reward, in_flight=2, **OPTIONS
    )
    number, first = next(outer)
    inner = specrej.generate("Who?", model=engine, reward=reward, **OPTIONS)
    outcomes = {number: first, **dict(outer)}
    for expected, outcome in zip(alone, (outcomes[0], outcomes[1], inner), strict=True):
        assert isinstance(outcome, Result)
        assert [c.token_ids for c in outcome.candidates] == [
            c.token_ids for c in expected.candidates
        ]


def test_compare_takes_no_algorithm_and_gives_all_three_the_same_memory() -> None:
    engine, reward = FakeEngine(), FakeReward(by_hash)
    with pytest.raises(UsageError, match="no 'algorithm'"):
        specrej.compare("Why?", model=engine, reward=reward, algorithm="best_of_n")
    results = specrej.compare("Why?", model=engine, reward=reward, max_new_tokens=20, min_tokens=5)
    assert len({result.settings["memory_bytes"] for result in results.values()}) == 1
