from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from specrej.errors import RewardError
from specrej.rewards.function import FunctionReward
from specrej.types import Candidate

PROMPT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "second"},
]
ANSWERS = [Candidate(index=3, text="a"), Candidate(index=5, text="bb"), Candidate(index=9, text="")]


def score(function: Any, candidates: list[Candidate] = ANSWERS) -> list[float]:
    return list(FunctionReward(function, name="mine").open(PROMPT).score(candidates))


def lengths(prompt: str, texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_gets_the_last_question_and_all_texts_in_one_call() -> None:
    calls = []

    def function(prompt: str, texts: list[str]) -> list[float]:
        calls.append((prompt, texts))
        return [1.0, 2.0, 3.0]

    assert score(function) == [1.0, 2.0, 3.0]
    assert calls == [("second", ["a", "bb", ""])]


def test_a_prompt_without_a_user_is_its_last_message() -> None:
    session = FunctionReward(lambda prompt, texts: [len(prompt)]).open(
        [{"role": "system", "content": "four"}]
    )
    assert session.score(ANSWERS[:1]) == [4.0]
    assert session.num_tokens == 0


@pytest.mark.parametrize(
    "numbers",
    [
        (1, 2, 0),
        [True, 2, False],
        np.array([1, 2, 0]),
        np.array([1, 2, 0], dtype=np.float16),
        np.array([[1.0], [2.0], [0.0]]),
        list(np.array([1, 2, 0])),
        torch.tensor([1, 2, 0], dtype=torch.bfloat16),
        torch.tensor([[1.0], [2.0], [0.0]]),
        torch.tensor([1.0, 2.0, 0.0], requires_grad=True),
        list(torch.tensor([1.0, 2.0, 0.0], requires_grad=True)),
    ],
)
def test_numbers_of_any_library_become_floats(numbers: Any) -> None:
    scores = score(lambda prompt, texts: numbers)
    assert scores == [1.0, 2.0, 0.0]
    assert [type(number) for number in scores] == [float] * 3


def test_count_and_nan_are_left_to_the_search() -> None:
    assert score(lambda prompt, texts: [1.0]) == [1.0]
    assert score(lambda prompt, texts: [1.0, 2.0, 3.0, 4.0]) == [1.0, 2.0, 3.0, 4.0]
    assert np.isnan(score(lambda prompt, texts: [float("nan")] * 3)).all()


@pytest.mark.parametrize("what", [None, "0.5", [1.0, 2.0], 1j, {}, np.zeros(2), torch.zeros(2)])
def test_what_is_no_number_is_named_with_its_candidate(what: Any) -> None:
    with pytest.raises(
        RewardError, match=rf"'mine' gave .*\({type(what).__name__}\) for candidate 5"
    ):
        score(lambda prompt, texts: [1.0, what, 3.0])


def test_what_is_no_number_beyond_the_candidates_is_named_by_position() -> None:
    with pytest.raises(RewardError, match=r"gave None \(NoneType\) for score 3"):
        score(lambda prompt, texts: [1.0, 2.0, 3.0, None])


@pytest.mark.parametrize("returned", [None, 0.5, torch.tensor(0.5), np.float64(0.5)])
def test_something_other_than_a_sequence_is_an_error(returned: Any) -> None:
    with pytest.raises(RewardError, match="reward 'mine' failed on candidate 3: TypeError"):
        score(lambda prompt, texts: returned)


def test_the_candidate_that_fails_is_found() -> None:
    def reciprocal(prompt: str, texts: list[str]) -> list[float]:
        return [1 / len(text) for text in texts]

    with pytest.raises(
        RewardError, match="reward 'mine' failed on candidate 9: ZeroDivisionError"
    ) as caught:
        score(reciprocal)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_generator_that_fails_on_its_way_counts_as_the_function() -> None:
    def reciprocals(prompt: str, texts: list[str]) -> Iterator[float]:
        yield from (1 / len(text) for text in texts)

    with pytest.raises(RewardError, match="candidate 9: ZeroDivisionError"):
        score(reciprocals)


def test_the_range_is_named_where_none_fails_alone() -> None:
    def single(prompt: str, texts: list[str]) -> list[float]:
        if len(texts) > 1:
            raise ValueError("one at a time")
        return [0.0]

    with pytest.raises(
        RewardError, match="failed on candidates 3 to 9: ValueError: one at a time"
    ) as caught:
        score(single)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_single_candidate_that_fails_is_not_tried_twice() -> None:
    calls = []

    def function(prompt: str, texts: list[str]) -> list[float]:
        calls.append(texts)
        raise ValueError("no")

    with pytest.raises(RewardError, match="failed on candidate 5: ValueError: no"):
        score(function, ANSWERS[1:2])
    assert calls == [["bb"]]


@pytest.mark.parametrize("at_call", [1, 2])
def test_keyboard_interrupt_passes_through(at_call: int) -> None:
    calls = []

    def function(prompt: str, texts: list[str]) -> list[float]:
        calls.append(texts)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        raise ValueError("no")

    with pytest.raises(KeyboardInterrupt):
        score(function)


def test_the_name_is_the_functions_own_unless_given() -> None:
    assert FunctionReward(lengths).name == "lengths"
    assert FunctionReward(partial(lengths)).name == "partial"
    assert FunctionReward(lengths, name="brevity").name == "brevity"
