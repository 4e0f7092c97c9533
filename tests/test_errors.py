import pickle
import traceback

import pytest

import specrej
from specrej.errors import (
    BudgetError,
    DeadlineError,
    DeviceMemoryError,
    ModelError,
    PromptError,
    QueueFullError,
    RewardError,
    SamplingError,
    ServingError,
    ShutdownError,
    SpecrejError,
    UnknownNameError,
    UsageError,
)


def test_the_tree_is_the_one_drawn_in_the_docstring() -> None:
    first = (UsageError, ModelError, RewardError, DeviceMemoryError, ServingError)
    assert {error.__base__ for error in first} == {SpecrejError}
    assert {error.__base__ for error in (QueueFullError, DeadlineError, ShutdownError)} == {
        ServingError
    }
    assert {
        error.__base__ for error in (UnknownNameError, PromptError, BudgetError, SamplingError)
    } == {UsageError}
    assert SpecrejError.__base__ is Exception


def test_the_docstring_draws_every_error() -> None:
    errors = {
        name
        for name, value in vars(specrej.errors).items()
        if isinstance(value, type) and "Error" in name
    }
    assert specrej.errors.__doc__ is not None
    assert all(name in specrej.errors.__doc__ for name in errors)


def test_an_error_has_a_message_and_a_hint_if_given() -> None:
    error = UsageError("n must be at least 1, got 0", hint="give 1")
    assert (str(error), error.hint) == ("n must be at least 1, got 0", "give 1")
    assert UsageError("no").hint is None


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("best_of_m", "did you mean 'best_of_n'? known: best_of_n, greedy"),
        ("xyz", "known: best_of_n, greedy"),
    ],
)
def test_an_unknown_name_lists_near_and_known_ones(given: str, hint: str) -> None:
    error = UnknownNameError("algorithm", given, ["greedy", "best_of_n"])
    assert (str(error), error.hint) == (f"unknown algorithm {given!r}", hint)


def test_an_unknown_name_keeps_the_hint_it_is_given_after_the_guess() -> None:
    known = ["best_of_n"]
    assert (
        UnknownNameError("algorithm", "best_of_m", known, hint="Look.").hint
        == "did you mean 'best_of_n'? Look."
    )
    assert UnknownNameError("algorithm", "xyz", known, hint="Look.").hint == "Look."


@pytest.mark.parametrize(
    "error",
    [
        UsageError("n must be at least 1", hint="give 1"),
        UnknownNameError("algorithm", "best_of_m", ["best_of_n"]),
        QueueFullError("64 requests wait", retry_after_s=3),
    ],
)
def test_an_error_comes_to_another_process_as_it_is(error: SpecrejError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert (str(there), vars(there)) == (str(error), vars(error))


def test_a_traceback_shows_the_hint() -> None:
    error = UsageError("n must be at least 1, got 0", hint="give 1")
    error.add_note("of the second row")
    error.hint = "give 2"
    shown = "".join(traceback.format_exception(error))
    assert shown.endswith("got 0\nof the second row\nhint: give 2\n")
    again = pickle.loads(pickle.dumps(error))
    assert "".join(traceback.format_exception(again)) == shown
    assert "hint" not in "".join(traceback.format_exception(UsageError("no")))
