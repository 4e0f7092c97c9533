"""Answers that a request gives itself, before the reward that judges the answers of searches.

    given = GivenAnswers(reward, scorer, calls.put, 64)
    future = given.submit(messages, ["Because.", "Air."])
    future.result().rewards         # and num_tokens, seconds

Sessions are opened and closed on the thread that owns engine and searches, and asked on the thread
that scores, as those of searches are. So a reward that raises or hangs is handled in the same way.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

from specrej.errors import QueueFullError, ShutdownError, SpecrejError
from specrej.rewards.base import Reward
from specrej.search.clock import Clock
from specrej.search.rewarding import PromptReward
from specrej.search.scheduler import as_outcome
from specrej.search.scoring import Given
from specrej.server.scorer import TimedScorer
from specrej.types import Candidate, Message, Usage

_RECENT = 0.2
"""Weight of the newest request in the mean of seconds that one takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenRewards:
    """What the reward says.

    Attributes:
        rewards: of the answers, in order; minus infinity where its filter rejects one.
        num_tokens: that it read.
        seconds: that it took, its waiting left out.
    """

    rewards: list[float]
    num_tokens: int
    seconds: float


class GivenAnswers:
    """Requests for rewards that wait or are scored.

    Args:
        reward: judges.
        scorer: scores on a thread of its own.
        make_call: has a call made on the thread that owns the searches.
        max_queue: most requests at a time; those beyond are turned away.
    """

    def __init__(
        self,
        reward: Reward,
        scorer: TimedScorer,
        make_call: Callable[[Callable[[], None]], None],
        max_queue: int,
    ) -> None:
        self._reward = reward
        self._scorer = scorer
        self._make_call = make_call
        self._max_queue = max_queue
        self._open: dict[Future[GivenRewards], None] = {}
        self._lock = Lock()
        self._mean_s = 1.0
        self.is_stopping = False

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def submit(self, messages: Sequence[Message], answers: Sequence[str]) -> Future[GivenRewards]:
        """Have answers judged. Cancelled before its turn, the reward is not asked.

        Args:
            messages: the prompt, as `as_messages` gives it.
            answers: to it, complete.

        Returns:
            What the reward says, or RewardError where it fails.

        Raises:
            QueueFullError: too many wait already.
            ShutdownError: the server is being stopped.
        """
        if self.is_stopping:
            raise ShutdownError("the server is being stopped", hint="send it to another one")
        judged: Future[GivenRewards] = Future()
        with self._lock:
            if (number := len(self._open)) >= self._max_queue:
                retry_after_s = max(math.ceil(self._mean_s * number), 1)
                raise QueueFullError(
                    f"answers of {number} requests wait for the reward already",
                    retry_after_s=retry_after_s,
                )
            self._open[judged] = None
        self._make_call(lambda: self._begin(judged, messages, answers))
        return judged

    def end_all(self, error: SpecrejError) -> None:
        """Take nothing more, and tell all that wait. From any thread."""
        self.is_stopping = True
        for judged in list(self._open):
            self._tell(judged, error)

    # What the thread of the searches does

    def _begin(
        self, judged: Future[GivenRewards], messages: Sequence[Message], answers: Sequence[str]
    ) -> None:
        if judged.done():
            self._forget(judged)
            return
        usage = Usage()
        asked = PromptReward(self._reward, messages, usage, Clock(usage))
        batch = [
            Candidate(index, text=text, state="complete", finish_reason="eos")
            for index, text in enumerate(answers)
        ]
        try:
            asked.open()
            scored = self._scorer.score([asked.to_score(batch)])
        except Exception as error:
            asked.close()
            self._tell(judged, as_outcome(error))
            return
        judged.add_done_callback(lambda _: scored.cancel())
        scored.add_done_callback(
            lambda _: self._make_call(lambda: self._end(judged, asked, batch, scored, usage))
        )

    def _end(
        self,
        judged: Future[GivenRewards],
        asked: PromptReward,
        batch: Sequence[Candidate],
        scored: Future[list[Given]],
        usage: Usage,
    ) -> None:
        try:
            if scored.cancelled():
                self._forget(judged)
                return
            [(scores, seconds)] = scored.result()
            rewards = asked.checked(batch, scores)
            self._mean_s += _RECENT * (seconds - self._mean_s)
            num_tokens = usage.reward_tokens
            self._tell(
                judged, GivenRewards(rewards=rewards, num_tokens=num_tokens, seconds=seconds)
            )
        except Exception as error:
            self._tell(judged, as_outcome(error))
        finally:
            asked.close()

    def _tell(self, judged: Future[GivenRewards], outcome: GivenRewards | SpecrejError) -> None:
        if not self._forget(judged) or not judged.set_running_or_notify_cancel():
            return
        if isinstance(outcome, SpecrejError):
            judged.set_exception(outcome)
        else:
            judged.set_result(outcome)

    def _forget(self, judged: Future[GivenRewards]) -> bool:
        """False where it had ended already."""
        with self._lock:
            is_open = judged in self._open
            self._open.pop(judged, None)
            return is_open
