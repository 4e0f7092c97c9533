"""Which prompts of a batch get more candidates: those that are expected to gain most, per token.

    worths = [worth(standing, top, num_more=8) for standing in standings]
    for number in most_worth(worths, at_most=12):
        ...                             # these prompts get 8 more

The rule knows no distribution of rewards. Among n + m candidates the best is one of the m new ones
with a chance of m / (n + m), whatever they are drawn from. What it then gains is taken to be in
proportion to the room above the best so far: up to the highest reward that any prompt of the batch
has. That needs rewards that mean the same for all prompts. Where they do not, prompts are ranked
wrongly, and 1 / (n + m) still keeps any of them from taking all.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Allotted(NamedTuple):
    """What a prompt has got so far."""

    num_candidates: int
    num_tokens: int
    """Of all its candidates."""
    best: float
    """The highest reward of its candidates."""


def worth(prompt: Allotted, top: float, num_more: int) -> float:
    """The gain that so many more candidates of a prompt promise, for each token they cost; in no
    unit: only comparisons of prompts mean something.

    0 for a prompt that has the top reward.

    Args:
        prompt: what it has.
        top: the highest reward of all prompts.
        num_more: candidates that it would get.
    """
    chance = num_more / (prompt.num_candidates + num_more)
    cost = num_more * prompt.num_tokens / prompt.num_candidates
    return (top - prompt.best) * chance / max(cost, 1.0)


def most_worth(worths: Sequence[float], at_most: int) -> list[int]:
    """The numbers of the prompts that get more, in their order: those of the highest worth, of
    equals the first. None that gains nothing.
    """
    order = sorted(range(len(worths)), key=lambda number: -worths[number])
    return sorted(number for number in order[:at_most] if worths[number] > 0)
