"""When to decide, and whom to keep: what Speculative Rejection leaves open, as small functions.

A decision always comes when the next step would not fit in the budget and when no candidate is live; a schedule adds
moments to these. The rule then says who of the scored candidates stays.

    Policy(when=at((16, 32, 64)), keep=top(4), first_tokens=16)
    parse_policy(alpha=0.5, keep=None, decide="every:32", min_tokens=32)     # from a command line's words
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specrej.errors import UsageError
from specrej.search.choosing import rank

Schedule = Callable[[int, int], bool]
"""Whether to decide now, from the candidates' length in tokens and their length at the last decision."""

Rule = Callable[[Sequence[float]], list[bool]]
"""From the scores of a batch (in the order of the candidates' indices): which of them stay."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How Speculative Rejection decides.

    Attributes:
        when: moments to decide beside those that memory dictates.
        keep: who stays.
        first_tokens: length that all candidates of the initial batch must be able to reach; None is the full length,
            as it has to be for a rule that rejects nobody.
    """

    when: Schedule
    keep: Rule
    first_tokens: int | None


def never(_length: int, _last: int) -> bool:
    """Decide only when memory or the last candidate's end asks for it."""
    return False


def every(num_tokens: int) -> Schedule:
    """Decide after each so many tokens."""
    return lambda length, last: length - last >= num_tokens


def at(lengths: Sequence[int]) -> Schedule:
    """Decide at these lengths, in tokens."""
    return lambda length, last: length > last and length in lengths


def everyone(scores: Sequence[float]) -> list[bool]:
    """Keep all: the rule of Best-of-N."""
    return [True] * len(scores)


def fraction(alpha: float) -> Rule:
    """Keep the candidates at or above the alpha-quantile of the scores (Algorithm 1 of arXiv 2410.20290).

    Scores equal to the cut stay, unless fewer than a share alpha would go: then those with higher indices go, so that
    a reward with few values still rejects.
    """

    def keep(scores: Sequence[float]) -> list[bool]:
        if not scores:  # all were filtered
            return []
        cut = quantile(scores, alpha)
        num_rejected = max(sum(score < cut for score in scores), math.floor(alpha * len(scores)))
        # The cut between scores at both ends of the floats is infinite; the best stays all the same.
        return _best(scores, max(len(scores) - num_rejected, 1))

    return keep


def quantile(scores: Sequence[float], alpha: float) -> float:
    """The alpha-quantile of the scores, linear between neighbours (the common definition, numpy's default)."""
    ordered = sorted(scores)
    below = math.floor(alpha * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    share = alpha * (len(ordered) - 1) - below
    return ordered[below] + (ordered[above] - ordered[below]) * share


def top(k: int) -> Rule:
    """Keep the k best; of equals, those with lower indices."""
    return lambda scores: _best(scores, k)


def _best(scores: Sequence[float], k: int) -> list[bool]:
    order = sorted(range(len(scores)), key=lambda position: rank(scores[position], position))
    chosen = set(order[:k])
    return [position in chosen for position in range(len(scores))]


def parse_policy(*, alpha: float, keep: int | None, decide: str, min_tokens: int) -> Policy:
    """The policy that a user describes.

    Args:
        alpha: share rejected at each decision, in [0, 1); 0 rejects nobody.
        keep: keep this many at each decision in place of a share.
        decide: "budget", "every:K" or "at:A,B,C" (tokens).
        min_tokens: length that the initial batch can reach when the budget alone decides.

    Raises:
        UsageError: a value outside its range, or words that mean no schedule.
    """
    if not 0 <= alpha < 1:
        raise UsageError(
            f"alpha must be in [0, 1), got {alpha}", hint="alpha is the share of candidates rejected at each decision"
        )
    if keep is not None and keep < 1:
        raise UsageError(f"keep must be at least 1, got {keep}")
    if min_tokens < 1:
        raise UsageError(f"min_tokens must be at least 1, got {min_tokens}")
    when, first = _parse_schedule(decide)
    rule = fraction(alpha) if keep is None else top(keep)
    is_rejecting = keep is not None or alpha > 0
    return Policy(when, rule, (first or min_tokens) if is_rejecting else None)


def _parse_schedule(words: str) -> tuple[Schedule, int | None]:
    """The schedule, and the length of its first decision."""
    kind, _, rest = words.partition(":")
    # Python refuses to read a number of thousands of digits, and no answer is that long.
    numbers = [int(number) for number in rest.split(",") if number.strip().isdecimal() and len(number.strip()) < 10]
    is_clean = len(numbers) == len(rest.split(",")) and all(numbers)
    if words == "budget":
        return never, None
    if kind == "every" and is_clean and len(numbers) == 1:
        return every(numbers[0]), numbers[0]
    if kind == "at" and is_clean:
        return at(tuple(numbers)), min(numbers)
    raise UsageError(f"decide must be 'budget', 'every:K' or 'at:A,B,C' with K, A, B, C in tokens, got {words!r}")
