"""Any function over texts as a reward.

    FunctionReward(lambda prompt, texts: [-len(text) for text in texts], name="short")

The function is called once for each decision, with the content of the last user message and the
answers so far, partial and complete alike; it returns one number for each, higher is better.
Whether there are as many numbers as texts, and whether they are finite, is checked by the search,
for all rewards in one place.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from specrej.errors import RewardError
from specrej.rewards.base import StatelessSession
from specrej.types import Candidate, Message

ScoreFunction = Callable[[str, list[str]], Iterable[Any]]
"""`(prompt, texts)` -> one number for each text: a list, an array, a tensor."""


def last_question(messages: Sequence[Message]) -> str:
    """Content of the last user message; of the last message where no user speaks."""
    questions = [message for message in messages if message["role"] == "user"]
    return str((questions or messages)[-1]["content"])


class FunctionReward:
    """Scores with a function `(prompt, texts) -> numbers`.

    Attributes:
        name: what results and errors call it; the function's own name unless one is given.
        flops_per_token: None: what a function computes is not known.
    """

    flops_per_token: float | None = None

    def __init__(self, function: ScoreFunction, name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt."""
        return StatelessSession(messages, self._score_batch)

    def close(self) -> None:
        """Nothing is held."""

    def _score_batch(
        self, messages: Sequence[Message], candidates: Sequence[Candidate]
    ) -> tuple[list[float], int]:
        """Scores, and no tokens: what a function reads is not known.

        Raises:
            RewardError: the function raised, or returned what is no number.
        """
        prompt = last_question(messages)
        try:
            scores = self._call(prompt, candidates)
        except Exception as exc:
            self._blame(prompt, candidates, exc)
        indices = [candidate.index for candidate in candidates]
        # zip would hide a surplus from the search's count: name what has no candidate by its
        # position.
        names = [f"candidate {index}" for index in indices] + [
            f"score {i}" for i in range(len(indices), len(scores))
        ]
        return [self._to_float(score, name) for score, name in zip(scores, names, strict=False)], 0

    def _call(self, prompt: str, candidates: Sequence[Candidate]) -> list[Any]:
        scores = self.function(prompt, [candidate.text for candidate in candidates])
        if not isinstance(scores, Iterable):
            raise TypeError(f"it returned {scores!r}, not a sequence of numbers")
        return list(scores)

    def _blame(self, prompt: str, candidates: Sequence[Candidate], cause: Exception) -> NoReturn:
        """Raise a RewardError that names the first candidate on which the function fails alone,
        or all of them.
        """
        indices = [candidate.index for candidate in candidates]
        which = f"candidates {min(indices)} to {max(indices)}"
        if len(indices) == 1:
            which = f"candidate {indices[0]}"
        else:
            for candidate in candidates:
                try:
                    self._call(prompt, [candidate])
                except Exception as exc:
                    which, cause = f"candidate {candidate.index}", exc
                    break
        raise RewardError(
            f"reward {self.name!r} failed on {which}: {type(cause).__name__}: {cause}",
            hint="it is called as (prompt, texts), with partial and empty texts too: one number "
            "for each text",
        ) from cause

    def _to_float(self, score: Any, name: str) -> float:
        try:
            number = score.item() if hasattr(score, "item") else score
            if isinstance(number, str | bytes):
                raise TypeError("a text is no number")
            return float(number)
        except (TypeError, ValueError, RuntimeError, OverflowError) as exc:
            raise RewardError(
                f"reward {self.name!r} gave {score!r} ({type(score).__name__}) for {name}, not a "
                "number",
                hint="return one number for each text",
            ) from exc
