"""The seam between search and reward: open a session for a prompt, score its candidates as they
grow.

session = reward.open(messages)
session.score(candidates)      # a batch, partial and complete texts alike; higher is better
session.drop([3, 5])           # these candidates will not come back
session.close()
reward.close()                 # by whoever opened it

A reward may also score candidates of several prompts as one batch: see `BatchedReward`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specrej.errors import RewardError, UsageError
from specrej.registry import missing
from specrej.types import Candidate, Message, Reuse

Scores = Sequence[float] | BaseException
"""Of one prompt's candidates, or why there are none."""


class RewardSession(Protocol):
    """The scoring of one prompt's candidates."""

    num_tokens: int
    """Tokens that the reward model has read for this prompt so far."""
    reuse: Reuse
    """What the reward model keeps between decisions: "answers" (with the prompt), the "prompt"
    alone, or "none"."""
    peak_kv_bytes: int
    """Most KV that the reward model held for this prompt."""

    def score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        """One finite number for each candidate, on its text (or its log-probabilities) so far.

        Minus infinity rejects a candidate at once, whatever the others score.
        """

    def drop(self, indices: Sequence[int]) -> None:
        """Forget these candidates: they were rejected."""

    def close(self) -> None:
        """Free what the session holds."""


class Reward(Protocol):
    """Scores answers to a prompt."""

    name: str
    flops_per_token: float | None
    """Floating-point operations for each token that a session counts in `num_tokens`; None where it
    is not known.

    Only reports of compute read it: where it is None, the cost is told in seconds and tokens.
    """

    def open(self, messages: Sequence[Message]) -> RewardSession:
        """Begin with a prompt; what depends on the prompt alone is computed here, once."""

    def close(self) -> None:
        """Free all that the reward holds: its model, connections, processes. May be called twice.

        Whoever opened the reward calls it, when its sessions are closed. Nothing can be scored any
        more.
        """


class BatchedReward(Reward, Protocol):
    """A reward that scores candidates of several prompts faster as one batch. See
    `specrej.rewards.together`.
    """

    def score_together(self, asked: Sequence[tuple[Any, Sequence[Candidate]]]) -> Sequence[Scores]:
        """What `session.score(candidates)` would give for each of these pairs, in order.

        A prompt that fails alone may have its exception in the place of its scores. One that is
        raised says nothing
        about which prompt is at fault: all of them are scored again, session by session.

        Args:
            asked: sessions that this reward opened, each once, with candidates to score.
        """


class RelativeReward(Reward, Protocol):
    """A reward whose scores say who is better within the group that was scored, and nothing else.

    A search shows it, with a batch, the complete answers that can still win, and takes their new
    scores: so those that are compared were given together. What sets scores beside each other that
    were not, of other prompts, runs or decisions, is refused (`check_absolute`). Sessions have
    `num_comparisons`: how often the reward compared so far.
    """

    is_relative: bool
    """True. A reward without it is none."""


@dataclass(slots=True)
class StatelessSession:
    """The session of a reward that keeps nothing between two decisions.

    `score_batch(prompt, candidates)` returns the scores and the number of tokens it read; `prompt`
    is what the reward made of the prompt when it opened the session, or just its messages.
    """

    prompt: Any
    score_batch: Callable[[Any, Sequence[Candidate]], tuple[Sequence[float], int]]
    num_tokens: int = 0
    reuse: Reuse = "none"
    peak_kv_bytes: int = 0

    def score(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        scores, num_tokens = self.score_batch(self.prompt, candidates)
        self.num_tokens += num_tokens
        return scores

    def drop(self, indices: Sequence[int]) -> None:
        """Nothing is held for a candidate."""

    def close(self) -> None:
        """Nothing is held for a prompt."""


MEMBERS = ("name", "flops_per_token", "open", "close")
"""What every reward has."""
SESSION_MEMBERS = ("num_tokens", "reuse", "peak_kv_bytes", "score", "drop", "close")
"""What every session has."""


def open_session(reward: Reward, messages: Sequence[Message]) -> RewardSession:
    """A session of a reward, whoever wrote it.

    Raises:
        RewardError: the session lacks a member.
    """
    session = reward.open(messages)
    if lacking := missing(session, SESSION_MEMBERS):
        if hasattr(session, "close"):
            session.close()
        raise RewardError(
            f"a session of the reward {reward.name!r} ({type(session).__name__}) lacks: {lacking}",
            hint="docs/extending.md says what they are; a StatelessSession has them all",
        )
    return session


def is_relative(reward: Reward) -> bool:
    """Whether it says so; a user's own reward may lack the attribute."""
    return bool(getattr(reward, "is_relative", False))


def check_absolute(reward: Reward, what: str) -> None:
    """See that scores of a reward mean the same everywhere.

    Args:
        reward: scores.
        what: needs that, in the words that the error begins with.

    Raises:
        UsageError: they are relative.
    """
    if is_relative(reward):
        raise UsageError(
            f"{what} needs a reward whose scores mean the same everywhere; {reward.name!r} says "
            "who is better within one group of answers",
            hint="give a reward that scores each answer by itself, such as classifier:MODEL or "
            "judge:MODEL",
        )
