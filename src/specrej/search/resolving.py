"""The algorithm and the policy that settings name.

algorithm_of(Settings(algorithm="best_of_n"))
policy_of(Settings(alpha=0.5, decide="every:32"))    # from a command line's words
policy_of(Settings(policy="policy.json"))            # from `specrej calibrate`
"""

from collections.abc import Callable

from specrej.errors import UsageError
from specrej.registry import find
from specrej.search.algorithms import Steps
from specrej.search.calibrated import read_policy
from specrej.search.policies import at, every, fraction, never, top
from specrej.search.view import SearchView
from specrej.settings import Settings, parse_decide
from specrej.types import Policy, Schedule


def algorithm_of(settings: Settings) -> Callable[[SearchView, int | None, Policy], Steps]:
    """The algorithm that settings name.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: what the name stands for is no function.
    """
    given = settings.algorithm
    found = find("algorithm", given) if isinstance(given, str) else given
    if not callable(found):
        raise UsageError(
            f"algorithm must be a function; {given!r} is {found!r}",
            hint="docs/extending.md has an example",
        )
    algorithm: Callable[[SearchView, int | None, Policy], Steps] = found
    return algorithm


def policy_of(settings: Settings) -> Policy:
    """The policy that settings describe: an object as it is, one by its name, that of a file, or
    alpha, keep and decide.

    Raises:
        UnknownNameError: no policy has this name.
        UsageError: what the name stands for is none, and makes none; or the file holds none.
    """
    given = settings.policy
    if given is None:
        decide, rejects = (
            parse_decide(settings.decide),
            settings.keep is not None or settings.alpha > 0,
        )
        first = min(decide.lengths, default=settings.min_tokens)
        rule = fraction(settings.alpha) if settings.keep is None else top(settings.keep)
        return Policy(_SCHEDULES[decide.kind](decide.lengths), rule, first if rejects else None)
    if isinstance(given, str) and given.endswith(".json"):
        return read_policy(given).to_policy()
    found = find("policy", given) if isinstance(given, str) else given
    try:
        policy = found() if callable(found) else found  # a function makes it
    except Exception as error:
        raise UsageError(
            f"the policy {given!r} cannot be made: {type(error).__name__}: {error}",
            hint="it is called without arguments",
        ) from error
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy must be a specrej.Policy, or the name of one or of what makes one; {given!r} "
            f"is {policy!r}",
            hint="docs/extending.md has an example",
        )
    return policy


_SCHEDULES: dict[str, Callable[[tuple[int, ...]], Schedule]] = {
    "budget": lambda _: never,
    "every": lambda lengths: every(lengths[0]),
    "at": at,
}
