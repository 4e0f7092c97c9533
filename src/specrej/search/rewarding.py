"""A reward at work on one prompt: its session, what it is shown, and what its work costs."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from specrej.errors import SpecrejError
from specrej.hub.thinking import Thinking
from specrej.rewards.base import Reward, RewardSession, Scores, is_relative, open_session
from specrej.rewards.scores import checked_scores, failing_as
from specrej.search.choosing import earlier
from specrej.search.clock import Clock
from specrej.types import Candidate, Detokenizer, Message, Usage

_LOG = logging.getLogger("specrej")


class ToScore(NamedTuple):
    """The batch of one search, on its way to its reward."""

    reward: Reward
    session: RewardSession
    candidates: Sequence[Candidate]


def seen_of(settings: Mapping[str, Any], detokenizer: Detokenizer) -> Callable[[str], str] | None:
    """What a reward is shown of an answer that this reads; None is all of it."""
    thinking: Thinking | None = getattr(detokenizer, "thinking", None)
    if thinking is None or settings.get("reward_sees") != "answer":
        return None
    return thinking.answer


class PromptReward:
    """A reward and its session on one prompt.

    Args:
        reward: scores.
        messages: the prompt as a conversation.
        usage: takes what the reward's work cost.
        clock: takes how long it took.
        sees: what it is shown of a text; None is all.
    """

    def __init__(
        self,
        reward: Reward,
        messages: Sequence[Message],
        usage: Usage,
        clock: Clock,
        sees: Callable[[str], str] | None = None,
    ) -> None:
        self.name = reward.name
        self._is_relative = is_relative(reward)
        self._beside: list[Candidate] = []
        self.scored_again: list[tuple[Candidate, float]] = []
        """Who was scored beside the last batch, and how."""
        self._reward = reward
        self._messages = list(messages)
        # To a reward, the beginning of an answer that was given and what continues it are one
        # answer.
        is_begun = self._messages[-1]["role"] == "assistant"
        self._beginning = self._messages.pop()["content"] if is_begun else ""
        self._sees = sees
        self._usage = usage
        self._clock = clock
        self._session: RewardSession | None = None

    def open(self) -> None:
        """Begin with the prompt.

        Raises:
            RewardError: the reward failed.
        """
        with self._working("the prompt"):
            self._session = open_session(self._reward, self._messages)

    def to_score(self, batch: Sequence[Candidate], candidates: Sequence[Candidate] = ()) -> ToScore:
        """The batch with what the reward sees of its texts, behind the beginning that was given.

        A relative reward is shown, beside it, those of all candidates that can still be the answer.
        """
        assert self._session is not None
        self._beside = earlier(candidates, batch) if self._is_relative and batch else []
        batch = [*self._beside, *batch]
        if self._sees is not None:
            batch = [replace(candidate, text=self._sees(candidate.text)) for candidate in batch]
        if self._beginning:
            batch = [
                replace(candidate, text=self._beginning + candidate.text) for candidate in batch
            ]
        return ToScore(self._reward, self._session, batch)

    def checked(self, batch: Sequence[Candidate], given: Scores) -> list[float]:
        """What the reward gave for the batch, as scores.

        Raises:
            RewardError: the reward failed, or gave NaN, infinity or no number; names the candidate.
        """
        with self._working(f"candidates {batch[0].index} to {batch[-1].index}"):
            if isinstance(given, BaseException):
                raise given
            num_beside = len(self._beside)
            scores = checked_scores(self.name, [*self._beside, *batch], given)
            self.scored_again = list(zip(self._beside, scores[:num_beside], strict=True))
            assert self._session is not None
            self._usage.reward_tokens = self._session.num_tokens
            self._usage.reward_reuse = self._session.reuse
            self._usage.reward_kv_bytes = self._session.peak_kv_bytes
            self._usage.reward_comparisons = getattr(self._session, "num_comparisons", 0)
        return scores[num_beside:]

    def drop(self, indices: Sequence[int]) -> None:
        """Let the reward forget these candidates.

        Raises:
            RewardError: it failed at it.
        """
        assert self._session is not None
        with self._working(f"the dropped candidates {list(indices)}"):
            self._session.drop(indices)

    def close(self) -> None:
        """Free what the session holds. A reward that fails at it is logged: the outcome is what it
        was.
        """
        session, self._session = self._session, None
        try:
            if session is not None:
                with self._working("its end"):
                    session.close()
        except SpecrejError:
            _LOG.exception("the reward %r failed to close a prompt", self.name)

    @contextmanager
    def _working(self, subject: str) -> Iterator[None]:
        """Count the seconds of the reward's work, and name what it failed on."""
        with (
            self._clock.span("reward_s"),
            failing_as(f"the reward {self.name!r} failed on {subject}"),
        ):
            yield
