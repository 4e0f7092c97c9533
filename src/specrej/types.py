"""What flows through specrej: candidates, decisions, usage, results.

Everything is frozen and checked on construction but `Candidate`, the one mutable record: the search
writes its tokens, its rewards and its fate as they come.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from specrej.policy import Policy as Policy
from specrej.policy import Rule as Rule
from specrej.policy import Schedule as Schedule
from specrej.policy import Standing as Standing
from specrej.policy import StepRule as StepRule
from specrej.prompt import Continuation as Continuation
from specrej.prompt import Conversation as Conversation
from specrej.prompt import Message as Message
from specrej.prompt import Prompt as Prompt
from specrej.sampling import SamplingParams as SamplingParams

State = Literal["live", "complete", "rejected"]
FinishReason = Literal["eos", "stop", "length", "lost"]
Reuse = Literal["none", "prompt", "answers"]
Cause = Literal["budget", "schedule", "complete", "out_of_memory", "filter", "lost"]

GREEDY_NOTE = "temperature 0 is greedy: all candidates would be the same answer, so one was decoded"
"""What a result says of itself where a greedy run began with one candidate, whatever n says."""

TopLogprobs = tuple[tuple[int, float], ...]
"""The likeliest tokens in a place, likeliest first: ids and log-probabilities under the model, in
nats, before all that `SamplingParams` does to them."""


class Piece(NamedTuple):
    """What one more token makes of an answer."""

    text: str
    """What it adds to the text. Often nothing, where it does not end a character."""
    special: str = ""
    """How it is spelled, if it is a special token, which is never a part of the text."""


class Detokenizer(Protocol):
    """Reads one answer, token by token. What it has given stays the beginning of the text.

    One that reads the answer to a prompt with tools says in `tool_form` how calls stand in it (a
    `specrej.hub.tool_formats.ToolForm`), and one of a reasoning model in `thinking` how thoughts do
    (a `specrej.hub.thinking.Thinking`). Without these, answers are text.
    """

    def add(self, token_id: int) -> Piece:
        """Read the next token."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One moment at which candidates were scored and some of them rejected.

    Attributes:
        cause: the budget was full, the schedule said so, every candidate was complete, the device
            ran out of memory, the engine lost some, or the reward's filter rejected some, just
            before the decision on the others.
        num_tokens: length of the longest candidate scored, in tokens.
        scored: indices of the candidates that were scored.
        rejected: indices of those that were rejected.
        cut: the lowest reward that stayed; None where nobody was rejected.
        kv_bytes: KV held for the prompt and its candidates before the decision, and after it.
    """

    cause: Cause
    num_tokens: int
    scored: tuple[int, ...]
    rejected: tuple[int, ...]
    cut: float | None
    kv_bytes: int
    kv_bytes_after: int


@dataclass(slots=True)
class Usage:
    """What a result cost. Tokens are counted once where they are made; seconds are wall clock and
    add up to total_s.

    Of the prompt's tokens, `shared_prompt_tokens` were not read for it: a prompt that begins alike
    was in flight. With several prompts in flight, a step's seconds are shared out by the number of
    candidates each had in it. `unused_tokens` were made and given to no candidate, `reread_tokens`
    of prompt and answers were read more than once, `num_preemptions` counts how often KV was taken
    away to be made anew: of engines that run ahead, or cache in pages. `reward_reuse` is what the
    reward model kept of its KV between decisions, to the last ("answers": prompt and answers),
    `reward_kv_bytes` the most it held.
    """

    prompt_tokens: int = 0
    shared_prompt_tokens: int = 0
    generated_tokens: int = 0
    reward_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reward_s: float = 0.0
    other_s: float = 0.0
    peak_kv_bytes: int = 0
    num_steps: int = 0
    unused_tokens: int = 0
    reread_tokens: int = 0
    num_preemptions: int = 0
    reward_reuse: Reuse = "none"
    reward_kv_bytes: int = 0

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s + self.reward_s + self.other_s

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_s": self.total_s}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The outcome of one prompt: the best answer, every candidate and its fate, and what it cost.

    `is_complete` is False where the run was interrupted: then `best` may be unfinished or unscored.
    `settings` says how to make the result again; `versions` with what.
    """

    best: Candidate
    candidates: tuple[Candidate, ...]
    decisions: tuple[Decision, ...]
    usage: Usage
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    is_complete: bool = True

    @property
    def note(self) -> str | None:
        """What is to be known of how it came about; None where there is nothing."""
        return self.settings.get("note")

    @property
    def text(self) -> str:
        """The best answer."""
        return self.best.text

    @property
    def reward(self) -> float | None:
        """The reward of the best answer."""
        return self.best.reward

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "text": self.text,
            "reward": self.reward,
            "best": self.best.index,
            "is_complete": self.is_complete,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "decisions": [asdict(decision) for decision in self.decisions],
            "usage": self.usage.to_dict(),
            "seed": self.seed,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
