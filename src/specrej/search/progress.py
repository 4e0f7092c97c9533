"""Whether an algorithm moves its search on between two decisions.

progress = Progress({"algorithm": "best_of_n"})
progress.decide(candidates, num_tokens)  # raises where nothing has changed since the last time
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from specrej.errors import UsageError
from specrej.types import Candidate


class Progress:
    """What an algorithm had done by its last decision.

    Args:
        settings: of the run: they name the algorithm and the policy.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        policy = settings.get("policy")
        self._who = f"the algorithm {settings.get('algorithm')!r}" + (
            f" with the policy {policy!r}" if policy else ""
        )
        self._num_tokens = 0
        self._last: tuple[int, int, int] | None = None

    def is_new(self, num_tokens: int) -> bool:
        """Whether there is a token since the last decision: without one no schedule is asked."""
        return num_tokens > self._num_tokens

    def decide(self, candidates: Sequence[Candidate], num_tokens: int) -> None:
        """A decision is due.

        Args:
            candidates: all that were ever started.
            num_tokens: that all of them have drawn together.

        Raises:
            UsageError: there was neither a token nor a rejection nor a start since the last one, so
                it would go on like this for ever.
        """
        num_rejected = sum(candidate.state == "rejected" for candidate in candidates)
        now = len(candidates), num_rejected, num_tokens
        if now == self._last:
            raise UsageError(
                f"{self._who} has decided twice without a new token, a rejection or a new "
                "candidate between",
                hint="an algorithm ends when none of its candidates is live; an engine says of "
                "those that are left a memory() within the budget",
            )
        self._last, self._num_tokens = now, num_tokens

    def unanswered(self, num_live: int) -> UsageError:
        """What is wrong with an algorithm that ends with so many candidates live and none
        complete.
        """
        return UsageError(
            f"{self._who} has ended with {num_live} candidates live and none complete",
            hint="an algorithm begins candidates, and goes on while search.live",
        )

    def answered(
        self, candidates: Sequence[Candidate], num_live: int, given: object
    ) -> Candidate | None:
        """What the algorithm returned, as its answer; None leaves the choice to the rewards.

        Args:
            candidates: all that were ever started.
            num_live: those of them that it left live.
            given: what it returned.

        Raises:
            UsageError: it began nobody, left live ones and nobody complete, or returned no
                candidate of this search that can win.
        """
        is_answered = any(candidate.state == "complete" for candidate in candidates)
        if not is_answered and (num_live or not candidates):
            raise self.unanswered(num_live)
        if given is None:
            return None
        found = next((candidate for candidate in candidates if candidate is given), None)
        if found is None or found.state != "complete":
            what = reprlib.repr(given) if found is None else f"a {found.state} one"
            raise UsageError(
                f"{self._who} must return a complete candidate of its search, or None, it returned "
                f"{what}",
                hint="return one of search.candidates whose state is complete; with None the one "
                "of highest reward is the answer",
            )
        return found
