"""One answer in the making: the one mutable record. The search writes its tokens, its rewards and
its fate as they come.

candidate = Candidate(3)
candidate.take(token_id, logprob)
fork = candidate.fork(8)        # begins as a copy
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["live", "complete", "rejected"]
FinishReason = Literal["eos", "stop", "length", "lost"]

TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens in a place, likeliest first: ids and log-probabilities under the model, in
nats, before all that `SamplingParams` does to them."""


@dataclass(slots=True)
class Candidate:
    """One answer in the making.

    Attributes:
        index: its number among the prompt's candidates; names its random stream.
        token_ids: generated tokens, the ending one (EOS) included.
        logprobs: log-probability of each token under the model (nats, before temperature and
            filters); none where the engine is not told.
        top_logprobs: the likeliest tokens in the place of each, where these were asked for.
        text: the text of the tokens as of the last decision; never ends in half a character.
        rewards: reward by index of the decision that gave it, oldest first.
        state: live, complete, or rejected.
        finish_reason: why it ended; None while unfinished. "lost" where the engine lost it, which
            is rejected then.
        parent: index of the candidate that it began as a copy of; None where it began empty.
        num_inherited: tokens that it began with, which were drawn for others.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list, kw_only=True)
    text: str = ""
    rewards: dict[int, float] = field(default_factory=dict)
    state: State = "live"
    finish_reason: FinishReason | None = None
    parent: int | None = field(default=None, kw_only=True)
    num_inherited: int = field(default=0, kw_only=True)

    @property
    def reward(self) -> float | None:
        """The latest reward, None before the first decision."""
        return next(reversed(self.rewards.values()), None)

    @property
    def perplexity(self) -> float | None:
        """Exp of minus the mean log-probability of the answer's tokens; None without tokens.

        Capped at exp(700), about 1e304: beyond it no float would hold it.
        """
        if not self.logprobs:
            return None
        return math.exp(min(-math.fsum(self.logprobs) / len(self.logprobs), 700.0))

    def take(self, token_id: int, logprob: float | None, top: TopLogprobs | None = None) -> None:
        """Add a token that was drawn."""
        self.token_ids.append(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)
        if top is not None:
            self.top_logprobs.append(top)

    def fork(self, index: int) -> "Candidate":
        """A candidate of this number that begins as a copy of this one, its rewards included."""
        return Candidate(
            index,
            list(self.token_ids),
            list(self.logprobs),
            top_logprobs=list(self.top_logprobs),
            text=self.text,
            rewards=dict(self.rewards),
            parent=self.index,
            num_inherited=len(self.token_ids),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types; `top_logprobs` only where they were asked for, `parent` and
        `num_inherited` only of a fork.
        """
        rewards = {str(decision): reward for decision, reward in self.rewards.items()}
        own = asdict(self)
        if not self.top_logprobs:
            del own["top_logprobs"]
        if self.parent is None:
            del own["parent"], own["num_inherited"]
        return {
            **own,
            "rewards": rewards,
            "reward": self.reward,
            "perplexity": self.perplexity,
        }
