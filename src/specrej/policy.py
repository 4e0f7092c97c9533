"""How Speculative Rejection decides: a record that a user may make, and what its parts see.

Policy(when=lambda length, last: length - last >= 16, keep=my_rule, first_tokens=16)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from specrej.errors import UsageError
from specrej.options import shown

Schedule = Callable[[int, int], bool]
"""Whether to decide now, from the candidates' length in tokens and their length at the last
decision."""

StepRule = Callable[[str, int], bool]
"""Whether a step of an answer is over, from its text so far and its length in tokens."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How the candidates of a batch stand at a decision: all that a rule goes by.

    Attributes:
        num_tokens: length of those that are live.
        scores: one for each candidate of the batch, in the order of their indices.
        is_live: whether each of them is still being decoded; the others have just ended.
        best: the highest reward of those that were complete before and can win; None if none is.
    """

    num_tokens: int
    scores: Sequence[float]
    is_live: Sequence[bool]
    best: float | None = None


Rule = Callable[[Standing], list[bool]]
"""From how a batch stands: which of its candidates stay, in the same order."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How Speculative Rejection decides.

    Attributes:
        when: moments to decide beside those that memory dictates.
        keep: who stays.
        first_tokens: length that all candidates of the initial batch must be able to reach; None is
            the full length, as it has to be for a rule that rejects nobody.
        name: what results call it.
        n: candidates to begin with where a run leaves their number open.
        recorded: the model, reward and sampling that it was calibrated for; empty if for none.

    Raises:
        UsageError: what is not of these types, or a number below 1; says which.
    """

    when: Schedule
    keep: Rule
    first_tokens: int | None
    name: str = "a policy of its own"
    n: int | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"a policy's name must be a string, got {self.name!r}")
        for name, form in (("when", "when(length, last)"), ("keep", "keep(standing)")):
            if not callable(given := getattr(self, name)):
                raise UsageError(
                    f"{name} of the policy {self.name!r} must be a function {form}, got {given!r}",
                    hint="docs/extending.md has an example",
                )
        for name in ("first_tokens", "n"):
            given = getattr(self, name)
            if given is not None and (type(given) is not int or given < 1):
                raise UsageError(
                    f"{name} of the policy {self.name!r} must be a whole number of at least 1, or "
                    f"None, got {shown(given)}"
                )


class Decide(NamedTuple):
    """What the words of `decide` mean."""

    kind: Literal["budget", "every", "at"]
    lengths: tuple[int, ...]
    """In tokens: K of "every:K", all of "at:A,B,C"; none of "budget"."""


def parse_decide(words: str) -> Decide:
    """Read "budget", "every:K" or "at:A,B,C".

    Raises:
        UsageError: it is none of these.
    """
    kind, _, rest = words.partition(":")
    # Python refuses to read a number of thousands of digits, and no answer is that long.
    numbers = [
        int(number)
        for number in rest.split(",")
        if number.strip().isdecimal() and len(number.strip()) < 10
    ]
    is_clean = len(numbers) == len(rest.split(",")) and all(numbers)
    if words == "budget":
        return Decide("budget", ())
    if kind == "every" and is_clean and len(numbers) == 1:
        return Decide("every", tuple(numbers))
    if kind == "at" and is_clean:
        return Decide("at", tuple(numbers))
    raise UsageError(
        f"decide must be 'budget', 'every:K' or 'at:A,B,C' with K, A, B, C in tokens, got {words!r}"
    )
