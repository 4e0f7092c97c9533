"""Candidates of several prompts that are due at the same moment, scored as one batch where the
reward can.

    # scores or an error for each
    score_together(reward, [(session, candidates), (other_session, other_candidates)])

    class MyReward:
        def open(self, messages):
            return StatelessSession(self.encode(messages), alone(self._score))

        def score_together(self, asked):
            return score_jointly(asked, self._score)

        # [(what it made of the prompt, candidate), ...] of any number of prompts
        def _score(self, pairs):
            ...
            return scores, num_tokens     # one of each for every pair

Whoever calls `score_together` need not know what the reward can: it is asked session by session
where it cannot, and after a joint batch that failed, so that a prompt fails by its own fault only.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from specrej.errors import named
from specrej.rewards.base import Reward, RewardSession, Scores, StatelessSession
from specrej.types import Candidate

_LOG = logging.getLogger("specrej")

ScorePairs = Callable[[Sequence[tuple[Any, Candidate]]], tuple[Sequence[float], Sequence[int]]]
"""From pairs of what the reward made of a prompt, and a candidate: the score of each and the
tokens read for it."""


def score_together(
    reward: Reward, asked: Sequence[tuple[RewardSession, Sequence[Candidate]]]
) -> list[Scores]:
    """The scores of each prompt's candidates, or the exception that the prompt failed with.

    Args:
        reward: that opened the sessions.
        asked: each session once, with its candidates.
    """
    # A user's own reward may lack it.
    together = getattr(reward, "score_together", None)
    if together is not None and len(asked) > 1:
        try:
            return [_listed(given) for _, given in zip(asked, together(asked), strict=True)]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = "reward %r failed on %d prompts together, now one by one: %s"
            _LOG.warning(what, reward.name, len(asked), named(error))
    return score_each(asked)


def score_each(asked: Sequence[tuple[RewardSession, Sequence[Candidate]]]) -> list[Scores]:
    """The same, session by session."""
    return [_score(session, candidates) for session, candidates in asked]


def _score(session: RewardSession, candidates: Sequence[Candidate]) -> Scores:
    try:
        return _listed(session.score(candidates))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, of a reward that ends programs
        return error


def _listed(given: Scores) -> Scores:
    """What was given, computed to its end here, where a reward's time is taken: it may be a
    generator.
    """
    return given if isinstance(given, BaseException) else list(given)


def alone(
    score_pairs: ScorePairs,
) -> Callable[[Any, Sequence[Candidate]], tuple[Sequence[float], int]]:
    """The `score_batch` of a `StatelessSession`, for one prompt."""

    def score_batch(prompt: Any, candidates: Sequence[Candidate]) -> tuple[Sequence[float], int]:
        scores, num_tokens = score_pairs([(prompt, candidate) for candidate in candidates])
        return scores, sum(num_tokens)

    return score_batch


def score_jointly(
    asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]], score_pairs: ScorePairs
) -> list[Sequence[float]]:
    """The scores of each prompt's candidates from one batch; every session counts its own
    tokens.
    """
    scores, num_tokens = score_pairs(
        [(session.prompt, candidate) for session, batch in asked for candidate in batch]
    )
    parts, start = [], 0
    for session, batch in asked:
        end = start + len(batch)
        session.num_tokens += sum(num_tokens[start:end])
        parts.append(scores[start:end])
        start = end
    return parts
