"""What flows through specrej: candidates, decisions, usage, results.

Everything is frozen and checked on construction but `Candidate`, the one mutable record: the search
writes its tokens, its rewards and its fate as they come.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

from specrej.candidate import Candidate as Candidate
from specrej.candidate import FinishReason as FinishReason
from specrej.candidate import State as State
from specrej.candidate import TopLogprobs as TopLogprobs
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

Reuse = Literal["none", "prompt", "answers"]
Cause = Literal["budget", "schedule", "complete", "out_of_memory", "filter", "lost"]

GREEDY_NOTE = "temperature 0 is greedy: all candidates would be the same answer, so one was decoded"
"""What a result says of itself where a greedy run began with one candidate, whatever n says."""

UNSPLIT_NOTE = (
    "reward_sees 'answer' changes nothing here: nothing tells what this model thinks from what it "
    "answers"
)
"""What a result says of itself where the reward was to see no thoughts, and none can be told."""

RELATIVE_NOTE = (
    "its rewards compare the answers of this run, and say nothing beside those of another"
)
"""What a result says of itself where its reward is relative."""


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
    `reward_kv_bytes` the most it held. `reward_comparisons` counts what a relative reward compared:
    pairs, each order by itself, or rankings that a judge was asked for.
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
    reward_comparisons: int = 0

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s + self.reward_s + self.other_s

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_s": self.total_s}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The outcome of one prompt: the best answer, every candidate and its fate, and what it cost.

    `is_complete` is False where the run was interrupted: then `best` may be unfinished or unscored.
    `settings` says how to make the result again; `versions` with what. `votes` has what each
    answer's votes sum to, the most first, where the algorithm goes by votes; else None.
    """

    best: Candidate
    candidates: tuple[Candidate, ...]
    decisions: tuple[Decision, ...]
    usage: Usage
    seed: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    is_complete: bool = True
    votes: Mapping[str, float] | None = None

    @property
    def note(self) -> str | None:
        """What is to be known of how it came about; None where there is nothing."""
        return self.settings.get("note")

    @property
    def is_relative(self) -> bool:
        """Whether its rewards say who is better, among those scored at one decision, and nothing
        else.
        """
        return bool(self.settings.get("has_relative_rewards"))

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
            "votes": None if self.votes is None else dict(self.votes),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "decisions": [asdict(decision) for decision in self.decisions],
            "usage": self.usage.to_dict(),
            "seed": self.seed,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
