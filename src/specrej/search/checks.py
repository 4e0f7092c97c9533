"""What policies, algorithms and engines of a user's own give to a search, checked: each fault names
whose it is.

stays = checked_fates(settings, batch, is_kept)     # what a policy's `keep` said
check_start(settings, n, most, live, room, is_at_work=True)     # what an algorithm begins
check_tokens(tokens, candidates)                    # what an engine gave
with engine_at_work(): ...                          # what it raises
steps = checked_steps("my_algorithms:champion", started)
"""

import logging
import reprlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from specrej.engines.base import Token
from specrej.errors import EngineError, SpecrejError, UsageError, is_ctrl_c, named
from specrej.registry import ALGORITHMS
from specrej.search.algorithms import Steps
from specrej.types import Candidate

_LOG = logging.getLogger("specrej")

_ALGORITHM_HINT = (
    "an algorithm is a generator function of (search, n, policy) that yields a schedule, a "
    "function of two lengths, for each decision: docs/extending.md has one"
)


def checked_fates(
    settings: Mapping[str, Any], batch: Sequence[Candidate], given: Any
) -> list[bool]:
    """Who of the batch stays, as True and False of Python; of numpy's or torch's they are taken
    too.

    Args:
        settings: of the run, which say who is asked.
        batch: of whom it is said.
        given: what was said.

    Raises:
        UsageError: it is not one boolean for each; names the policy or the algorithm.
    """
    fates = _plain(given)
    if isinstance(fates, Sequence) and not isinstance(fates, str | bytes):
        said = [_plain(fate) for fate in fates]
        if len(said) == len(batch) and all(isinstance(fate, bool) for fate in said):
            return said
        shown = f"{len(said)}: {reprlib.repr(given)}"
    else:
        shown = reprlib.repr(given)
    raise UsageError(
        f"{_decider(settings)} must say True or False of each of {len(batch)} candidates, got "
        f"{shown}",
        hint="give a list of booleans, one for each candidate of the batch, in its order; for "
        "example [score >= cut for score in scores]",
    )


def _plain(value: Any) -> Any:
    """A value of numpy or torch, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _decider(settings: Mapping[str, Any]) -> str:
    """Who says who stays: the policy by way of an algorithm of ours, else the algorithm, which may
    ask it.
    """
    policy, algorithm = settings.get("policy"), settings.get("algorithm")
    if algorithm in ALGORITHMS:
        return f"the policy {policy!r}"
    asked = "" if policy is None else f", or the policy {policy!r} that it asks,"
    return f"the algorithm {algorithm!r}{asked}"


def check_start(
    settings: Mapping[str, Any],
    n: Any,
    most: Any,
    live: Sequence[Candidate],
    room: int | None,
    *,
    is_at_work: bool,
) -> None:
    """See that an algorithm may begin n candidates now.

    Args:
        settings: of the run, which say whose algorithm it is.
        n: how many it begins.
        most: how many are live at a time, with forks; None where none will come.
        live: who is being decoded.
        room: how many may be live beside each other in their wave; None where nobody may begin
            beside them.
        is_at_work: whether the prompt is open; a generator does nothing before.

    Raises:
        UsageError: n is no number of at least 1, most none of at least n, others are being decoded
            and have no room beside them, or it is no generator; names the algorithm.
    """
    algorithm = settings.get("algorithm")
    if not is_at_work:
        raise UsageError(
            f"the algorithm {algorithm!r} must be a generator function, it started candidates when "
            "it was called",
            hint=_ALGORITHM_HINT,
        )
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise UsageError(
            f"the algorithm {algorithm!r} must start a whole number of at least 1 candidates, got "
            f"{reprlib.repr(n)}",
            hint="search.waves(n, None) gives sizes that fit in the memory",
        )
    if most is not None and (not isinstance(most, Integral) or most < n):
        raise UsageError(
            f"the algorithm {algorithm!r} must set room aside for at least the {n} candidates that "
            f"it starts, got most={reprlib.repr(most)}",
            hint="most is how many are live at a time, with their forks",
        )
    if live and (most is not None or len(live) + int(n) > (room or 0)):
        raise UsageError(
            f"the algorithm {algorithm!r} started {n} candidates while {len(live)} are being "
            f"decoded, and set room aside for {room or 'no others'}",
            hint="yield a schedule until search.live is empty, reject them by search.keep, or say "
            "at the beginning of the wave how many will be live: search.start(n, most=...)",
        )


def check_fork(
    settings: Mapping[str, Any],
    parents: Sequence[Candidate],
    live: Sequence[Candidate],
    most: int | None,
) -> None:
    """See that an algorithm may fork these candidates now.

    Args:
        settings: of the run, which say whose algorithm it is.
        parents: what it forks, once for each fork.
        live: who is being decoded.
        most: how many may be live at a time; None where no forks were announced.

    Raises:
        UsageError: one is not being decoded, or more would be live than was said; names the
            algorithm.
    """
    algorithm = settings.get("algorithm")
    for parent in parents:
        if not any(parent is candidate for candidate in live):
            raise UsageError(
                f"the algorithm {algorithm!r} must fork candidates that are live, got "
                f"{reprlib.repr(parent)}",
                hint="give candidates of search.live, after search.keep",
            )
    if most is None or len(live) + len(parents) > most:
        raise UsageError(
            f"the algorithm {algorithm!r} forked {len(parents)} candidates beside {len(live)} that "
            f"are live, and set room aside for {most or 'no forks'}",
            hint="say it at the beginning of the wave: search.start(n, most=...)",
        )


def checked_steps(algorithm: str, steps: Any) -> Steps:
    """The algorithm at work, with what it yields checked.

    Args:
        algorithm: its name.
        steps: what it returned.

    Raises:
        UsageError: it returned no generator.
    """
    if not isinstance(steps, Generator):
        raise UsageError(
            f"the algorithm {algorithm!r} must be a generator function, it returned "
            f"{reprlib.repr(steps)}",
            hint=_ALGORITHM_HINT,
        )
    return _checking(algorithm, steps)


def _checking(algorithm: str, steps: Steps) -> Steps:
    """Raises UsageError where the algorithm waits by no schedule. `Progress.answered` sees to what
    it returns.
    """
    scores: Any = None  # what a generator begins with
    while True:
        try:
            schedule = steps.send(scores)
        except StopIteration as end:
            return end.value
        if not callable(schedule):
            raise UsageError(
                f"the algorithm {algorithm!r} must yield a schedule, it yielded "
                f"{reprlib.repr(schedule)}",
                hint=_ALGORITHM_HINT,
            )
        scores = yield schedule


def check_tokens(tokens: Sequence[Token], candidates: Sequence[Candidate]) -> None:
    """See that what an engine gave is of candidates that are being decoded.

    Raises:
        EngineError: a token is of another; names the candidate.
    """
    for token in tokens:
        number = token.candidate
        if not 0 <= number < len(candidates):
            raise EngineError(
                f"the engine failed: it gave a token of candidate {number}, but {len(candidates)} "
                "were added, from 0 on"
            )
        if candidates[number].state != "live":
            raise EngineError(
                f"the engine failed: it gave a token of candidate {number}, which is not decoded "
                f"any more: it is {candidates[number].state}"
            )


def engine_failed(error: BaseException) -> SpecrejError:
    """What searches end with when the engine raised this: the error itself, or one that quotes
    it.
    """
    if isinstance(error, SpecrejError):
        return error
    outcome = EngineError(f"the engine failed: {named(error)}", hint="the log says where")
    outcome.__cause__ = error
    return outcome


@contextmanager
def engine_at_work() -> Iterator[None]:
    """Whatever is raised in this block, where an engine is asked for something, is an error of the
    engine's.

    Raises:
        SpecrejError: as it was raised.
        EngineError: of anything else but Ctrl-C.
    """
    try:
        yield
    except SpecrejError:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        _LOG.error("the engine failed on a prompt, the others go on", exc_info=error)
        raise engine_failed(error) from error
