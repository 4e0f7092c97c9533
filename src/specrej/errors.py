"""The exceptions of specrej, each with a message that says what was given and a hint that says what
to do.

SpecrejError
 ├── UsageError            an argument that cannot be honoured (the command exits with 2)
 │    ├── UnknownNameError   a model, reward or algorithm nobody knows
 │    ├── PromptError        an empty prompt, or one longer than the context
 │    ├── BudgetError        a memory budget that does not hold one candidate
 │    └── SamplingError      a way of drawing tokens that this engine does not have
 ├── ModelError            a model that cannot be opened, or needs what the engine cannot honour
 ├── EngineError           a program or a server that decodes for us failed, or lost all candidates
 ├── RewardError           a reward that failed, gave NaN or too few scores, or left nobody
 ├── DeviceMemoryError     the device ran out of memory although the budget was kept
 └── ServingError          a request that the server could not answer
      ├── QueueFullError     too many requests wait already
      ├── DeadlineError      its time was up before a candidate was complete
      └── ShutdownError      the server is being stopped
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any


def named(error: BaseException, show: Callable[[Any], str] = repr) -> str:
    """An exception as `repr` or `str` shows it, and by its class where that raises: a user's own
    may.
    """
    try:
        return show(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"{type(error).__name__} (its message cannot be shown)"


@contextmanager
def contained(what: str) -> Iterator[None]:
    """A SystemExit or the like that a user's own code raises in this block fails its prompt, and
    does not end the program.

    Args:
        what: the code is, in the words that the error begins with.

    Raises:
        SpecrejError: in place of all but an `Exception` and Ctrl-C, which pass.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise SpecrejError(f"{what} failed: {named(error)}") from error


def is_ctrl_c(error: BaseException) -> bool:
    """Whether it is the user who interrupts. That comes to the main thread alone; on another one a
    KeyboardInterrupt is the code's own.
    """
    return isinstance(error, KeyboardInterrupt) and current_thread() is main_thread()


def guess(given: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant; empty where none is near."""
    near = difflib.get_close_matches(given, list(known), n=3)
    return f"did you mean {' or '.join(near)}?" if near else ""


_MOST_LISTED = 24


def listed(known: Iterable[str]) -> str:
    """All known names, for a hint; their number where they are many."""
    names = sorted(known)
    if len(names) > _MOST_LISTED:
        return f"there are {len(names)} others"
    return f"known: {', '.join(names) or 'none'}"


class SpecrejError(Exception):
    """Root of all errors raised on purpose. `hint` is one sentence on what to do, or None.

    `str` gives the message alone; a traceback shows the hint below it, as a note.
    """

    _hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def hint(self) -> str | None:
        return self._hint

    @hint.setter
    def hint(self, words: str | None) -> None:
        others = [note for note in getattr(self, "__notes__", []) if note != f"hint: {self._hint}"]
        self.__notes__ = others if words is None else [*others, f"hint: {words}"]
        self._hint = words

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets it as it is, whatever its kind is made from."""
        return _restore, (type(self), self.args, vars(self))


class UsageError(SpecrejError):
    """An argument that cannot be honoured."""


class UnknownNameError(UsageError):
    """A name that is not in a table; the hint lists the nearest known names, and all where they are
    few.
    """

    def __init__(
        self, kind: str, given: str, known: Iterable[str], *, hint: str | None = None
    ) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(given, known, n=3)
        guess = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
        super().__init__(f"unknown {kind} {given!r}", hint=hint or guess + listed(known))
        if hint and guess:
            self.hint = guess + hint


class PromptError(UsageError):
    """A prompt that is empty or does not fit in the model's context."""


class BudgetError(UsageError):
    """A memory budget that does not hold what was asked for."""


class SamplingError(UsageError):
    """A way of drawing tokens that this engine does not have; others may."""


class ModelError(SpecrejError):
    """A model that cannot be opened or honoured."""


class EngineError(SpecrejError):
    """What decodes failed: an engine that stopped, or a server that lost all candidates."""


class RewardError(SpecrejError):
    """A reward that failed; the message names the candidate."""


class DeviceMemoryError(SpecrejError):
    """The device has no memory left for the next step."""


class ServingError(SpecrejError):
    """A request that the server could not answer, for no fault of its own."""


class QueueFullError(ServingError):
    """Too many requests wait already; `retry_after_s` is when it is worth trying again."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, hint=f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlineError(ServingError):
    """The time of a request was up before one of its candidates was complete."""


class ShutdownError(ServingError):
    """The server is being stopped, or the session was closed before the answer was complete."""


def _restore(
    kind: type[SpecrejError], args: tuple[object, ...], state: Mapping[str, Any]
) -> SpecrejError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error
