"""What flows through specrej: sampling parameters, candidates, decisions, usage, results.

Everything is frozen and checked on construction but `Candidate`, the one mutable record: the search
writes its tokens, its rewards and its fate as they come.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from specrej.constraint import Constraint
from specrej.errors import UsageError
from specrej.options import check, option, shown

Message = Mapping[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": text}`."""

Prompt = str | Sequence[Mapping[str, Any]]
"""A text (sent as one user message where the model has a chat template) or a conversation, see
`as_messages`."""


class Continuation(str):
    """A prompt that is gone on from as it stands, whether or not the model has a chat template."""

    __slots__ = ()


State = Literal["live", "complete", "rejected"]
FinishReason = Literal["eos", "stop", "length", "lost"]
Reuse = Literal["none", "prompt", "answers"]
Cause = Literal["budget", "schedule", "complete", "out_of_memory", "filter", "lost"]

GREEDY_NOTE = "temperature 0 is greedy: all candidates would be the same answer, so one was decoded"
"""What a result says of itself where a greedy run began with one candidate, whatever n says."""

_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-5, 1e30
"""Below the one the likeliest token is certain, above the other all that pass are alike; between
them float32 holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a candidate's tokens are drawn; the filters apply in the order transformers applies them.

    Engines compute in float32 or less. What it cannot tell from a limit acts as that limit; a bound
    beyond which a number means nothing there is refused by name.

    Attributes:
        max_new_tokens: length limit of an answer, in tokens, below 2^31.
        temperature: divides the logits. 0, or below 1e-5, is greedy: the likeliest token is taken,
            and a run decodes one candidate, since all would be alike. Above 1e30 all tokens that
            pass the filters are equally likely.
        top_k: keep the k most likely tokens; 0, or the vocabulary's size and more, keeps all. Below
            2^31.
        top_p: keep the smallest set of tokens whose probability reaches top_p, at least one; 1.0
            keeps all.
        min_p: drop tokens less likely than min_p times the most likely one; 0.0 keeps all.
        repetition_penalty: divides positive (multiplies negative) logits of tokens seen before; 1.0
            is off. From 1e-9 to 1e9.
        stop: strings that end an answer; the answer's text ends before them. They may spell special
            tokens.
        ignore_eos: go on to max_new_tokens; for measuring.
        seed: with the candidate's index and the position it decides every draw.
    """

    max_new_tokens: int = option(
        256,
        "Length limit of an answer, in tokens.",
        expected="at least 1, and below 2^31",
        ge=1,
        lt=2**31,
    )
    temperature: float = option(
        1.0,
        "Divides the logits; 0 is greedy: one candidate.",
        expected="0 (greedy) or above, and finite",
        ge=0,
        le=sys.float_info.max,
    )
    top_k: int = option(
        50,
        "Draw from the k most likely tokens; 0: from all.",
        expected="0 (all tokens) or more, and below 2^31",
        ge=0,
        lt=2**31,
    )
    top_p: float = option(
        1.0,
        "Draw from the likeliest tokens that reach this probability.",
        expected="in (0, 1]",
        gt=0,
        le=1,
    )
    min_p: float = option(
        0.0, "Drop tokens below this share of the likeliest one.", expected="in [0, 1)", ge=0, lt=1
    )
    repetition_penalty: float = option(
        1.0,
        "Makes tokens seen before less likely; 1.0 is off.",
        expected="in [1e-9, 1e9]",
        ge=1e-9,
        le=1e9,
    )
    stop: tuple[str, ...] = option(
        (), "Strings that end an answer, which holds none of them.", metavar="TEXT"
    )
    ignore_eos: bool = option(False, "Go on to the length limit; for measuring.")
    seed: int = option(
        0,
        "Decides every draw, with candidate and position: the same seed, the same answer.",
        expected="in [0, 2^64)",
        ge=0,
        lt=2**64,
    )
    constraint: Constraint | None = None
    """What every answer obeys; None leaves them free. Until an engine says that an answer is
    whole, it cannot end, so `ignore_eos` is refused beside it."""

    def __post_init__(self) -> None:
        check(self)
        if self.constraint is not None and self.ignore_eos:
            raise UsageError(
                f"ignore_eos must be off where answers obey a {self.constraint.kind}, which says "
                "where they end"
            )
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise UsageError(f"stop must be made of strings that are not empty, got {self.stop!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that all candidates are the same
        answer.
        """
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def divisor(self) -> float:
        """What logits are divided by: the temperature in a range that float32 holds, and 0.0
        where greedy.
        """
        return 0.0 if self.is_greedy else float(min(self.temperature, _MOST_TEMPERATURE))


class Piece(NamedTuple):
    """What one more token makes of an answer."""

    text: str
    """What it adds to the text. Often nothing, where it does not end a character."""
    special: str = ""
    """How it is spelled, if it is a special token, which is never a part of the text."""


class Detokenizer(Protocol):
    """Reads one answer, token by token. What it has given stays the beginning of the text."""

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
        text: the text of the tokens as of the last decision; never ends in half a character.
        rewards: reward by index of the decision that gave it, oldest first.
        state: live, complete, or rejected.
        finish_reason: why it ended; None while unfinished. "lost" where the engine lost it, which
            is rejected then.
    """

    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    rewards: dict[int, float] = field(default_factory=dict)
    state: State = "live"
    finish_reason: FinishReason | None = None

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

    def to_dict(self) -> dict[str, Any]:
        rewards = {str(decision): reward for decision, reward in self.rewards.items()}
        return {
            **asdict(self),
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


Schedule = Callable[[int, int], bool]
"""Whether to decide now, from the candidates' length in tokens and their length at the last
decision."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How the candidates of a batch stand at a decision: all that a rule goes by.

    Attributes:
        num_tokens: length of those that are live.
        scores: one for each candidate of the batch, in the order of their indices.
        is_live: whether each of them is still being decoded; the others have just ended.
        best: the highest reward of those that were complete before and can win; None if none is.
    """

    num_tokens: int
    scores: Sequence[float]
    is_live: Sequence[bool]
    best: float | None = None


Rule = Callable[[Standing], list[bool]]
"""From how a batch stands: which of its candidates stay, in the same order."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How Speculative Rejection decides.

    Attributes:
        when: moments to decide beside those that memory dictates.
        keep: who stays.
        first_tokens: length that all candidates of the initial batch must be able to reach; None is
            the full length, as it has to be for a rule that rejects nobody.
        name: what results call it.
        n: candidates to begin with where a run leaves their number open.
        recorded: the model, reward and sampling that it was calibrated for; empty if for none.

    Raises:
        UsageError: what is not of these types, or a number below 1; says which.
    """

    when: Schedule
    keep: Rule
    first_tokens: int | None
    name: str = "a policy of its own"
    n: int | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"a policy's name must be a string, got {self.name!r}")
        for name, form in (("when", "when(length, last)"), ("keep", "keep(standing)")):
            if not callable(given := getattr(self, name)):
                raise UsageError(
                    f"{name} of the policy {self.name!r} must be a function {form}, got {given!r}",
                    hint="docs/extending.md has an example",
                )
        for name in ("first_tokens", "n"):
            given = getattr(self, name)
            if given is not None and (type(given) is not int or given < 1):
                raise UsageError(
                    f"{name} of the policy {self.name!r} must be a whole number of at least 1, or "
                    f"None, got {shown(given)}"
                )
