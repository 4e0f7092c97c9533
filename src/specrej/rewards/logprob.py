"""The generator's own likelihood as the reward: no reward model, no text, no cost.

    LogprobReward()         # mean log-probability of a token: minus the log of the perplexity
    LogprobReward("sum")    # log-probability of the whole answer: prefers short ones

Knows the log-probabilities that the engine wrote into each candidate, nothing else. Speculative
Rejection (Sun et al., NeurIPS 2024, arXiv 2410.20290) has such an experiment, with perplexity as
the reward. There it is the perplexity of prompt and answer together, from a further pass of the
model; here it is that of the answer's tokens only, as they were drawn. The prompt is the same for
all candidates, but its weight in a mean over both falls as the answer grows: the two order
candidates of unlike length differently, and our figures are not to be compared with the paper's.
"""

import math
from collections.abc import Sequence
from typing import Literal

from specrej.errors import RewardError, UnknownNameError
from specrej.rewards.base import StatelessSession
from specrej.types import Candidate, Message


class LogprobReward:
    """Log-probability of the answer's tokens so far, in nats, before temperature and filters.

    With "mean" it orders candidates as minus their perplexity does, for perplexity = exp(-mean).
    With "sum" it can only fall as an answer grows, so partial answers are judged by their length as
    well.
    """

    def __init__(self, reduction: Literal["mean", "sum"] = "mean") -> None:
        """Take the mean over tokens, or their sum.

        Raises:
            UnknownNameError: `reduction` is neither.
        """
        if reduction not in ("mean", "sum"):
            raise UnknownNameError("reduction of the logprob reward", reduction, ["mean", "sum"])
        self.reduction = reduction
        self.flops_per_token: float | None = 0.0  # it reads no tokens
        self.name = "logprob" if reduction == "mean" else f"logprob:{reduction}"

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt, of which nothing is read."""
        return StatelessSession(messages, self._score_batch)

    def close(self) -> None:
        """Nothing is held."""

    def _score_batch(
        self, messages: Sequence[Message], candidates: Sequence[Candidate]
    ) -> tuple[list[float], int]:
        return [self._score(candidate) for candidate in candidates], 0

    def _score(self, candidate: Candidate) -> float:
        if not candidate.logprobs:
            has_tokens = bool(candidate.token_ids)
            lacking = (
                "the engine is not told the log-probability of its tokens"
                if has_tokens
                else "it has no tokens"
            )
            raise RewardError(
                f"reward {self.name!r} cannot score candidate {candidate.index}: {lacking}",
                hint="take another reward"
                if has_tokens
                else "score a candidate after its first step",
            )
        total = math.fsum(candidate.logprobs)
        return total if self.reduction == "sum" else total / len(candidate.logprobs)
