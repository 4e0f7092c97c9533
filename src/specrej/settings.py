"""What a run is made of beside model and reward: algorithm, candidates, memory, sampling. Checked
on construction.

Settings(algorithm="best_of_n", n=16, memory="64MiB", seed=1)
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from specrej.constraint import Constraint, constraint_of, schema_of
from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.files.reading import check_characters
from specrej.memory import parse_bytes
from specrej.messages import as_conversation, as_messages
from specrej.options import check, option, options_of, same_as, shown
from specrej.policy import parse_decide
from specrej.registry import is_name, names
from specrej.sampling import bias_of
from specrej.types import Continuation, Policy, Prompt, SamplingParams

_N = "'auto' or a number of at least 1, and below 2^31"


class Options(TypedDict, total=False):
    """The keyword arguments that `generate`, `generate_batch` and `compare` share; `Settings`
    has the defaults.
    """

    algorithm: str | Callable[..., Any]
    n: int | str
    alpha: float
    keep: int | None
    decide: str
    min_tokens: int
    policy: str | Policy | None
    strict: bool
    refill: str
    reward_sees: str
    max_thinking_tokens: int | None
    extract: str | Callable[[str], str | None]
    threshold: float | None
    window: int
    warm_up: int
    memory: str | int | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[str, float] | None
    top_logprobs: int
    stop: Sequence[str]
    seed: int
    continue_final_message: bool
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    r"""How answers are sampled and chosen.

    Attributes:
        algorithm: "speculative_rejection", "best_of_n" or another of docs/algorithms.md, a name
            that a package adds, "module:function", or a function: see docs/extending.md.
        n: candidates to begin with; "auto" is as many as the memory carries.
        alpha: share of the candidates rejected at each decision, in [0, 1).
        keep: keep this many at each decision, in place of a share.
        decide: "budget" (when memory is full), "every:K" or "at:A,B,C" tokens; a full memory always
            decides.
        min_tokens: length that the initial batch can reach when the budget alone decides.
        policy: when to decide and whom to keep, in place of the four above: a `Policy`, its name,
            "module:object", or a file of `specrej calibrate` (its name ends in ".json").
        strict: refuse a policy that was calibrated for another model, reward or sampling; else the
            result has a note of it.
        refill: what Speculative Rejection begins in memory that it has freed: "none", "forks" of
            the best candidates, or "fresh" ones.
        reward_sees: "all" of an answer, or "answer": it without what a reasoning model thinks.
        max_thinking_tokens: tokens that a reasoning model may think before each answer; then the
            mark that ends a thought is written for it. None sets no limit.
        extract: what is compared of an answer, where answers vote or are checked: "auto" (what
            `\boxed{}` or `####` marks, else the last number), "boxed", "number", "text",
            "regex:PATTERN", "module:function", or a function of the text: see docs/algorithms.md.
        threshold: reward at which the algorithm "threshold" stops.
        window, warm_up: of DeepConf: tokens in a row whose mean confidence it goes by, and (online)
            candidates that it decodes to their end before it stops any.
        memory: KV budget, such as "64MiB" or a number of bytes; None leaves it to the engine: room
            for 8 full-length candidates on a CPU, 80% of the free memory on a GPU.
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingParams`.
        frequency_penalty, presence_penalty: see `SamplingParams`.
        logit_bias: what is added to the logits of tokens, from -100 to 100, by their ids, which may
            be strings, as in JSON.
        top_logprobs, stop, seed: see `SamplingParams`.
        continue_final_message: a conversation that ends in an assistant's message is continued
            inside that message; else it is refused.
        json_schema: what all answers obey, a mapping or JSON text; `{"type": "object"}` is any JSON
            object.
        regex: a regular expression that all answers match as a whole, in Rust's syntax without
            look-around.
        grammar: a grammar that all answers obey, in Lark's form as llguidance takes it.

    Raises:
        UsageError: a value outside its range; says which. At most one of json_schema, regex,
            grammar and max_thinking_tokens may be given.
    """

    algorithm: str | Callable[..., Any] = option(
        "speculative_rejection",
        "speculative_rejection, best_of_n, majority_vote and others of docs/algorithms.md, or a "
        "name that a package adds.",
        metavar="NAME|module:function",
    )
    n: int | str = option(
        "auto",
        "Candidates to begin with; auto: as many as memory carries to the first decision.",
        expected=_N,
        ge=1,
        lt=2**31,
        choices=("auto",),
        metavar="auto|INT",
    )
    alpha: float = option(
        0.5,
        "Share of the candidates rejected at each decision; 0 makes it Best-of-N, token for token.",
        expected="in [0, 1)",
        hint="alpha is the share of candidates rejected at each decision",
        ge=0,
        lt=1,
    )
    keep: int | None = option(
        None,
        "Keep this many at each decision, in place of a share.",
        expected="at least 1",
        ge=1,
        unset="off",
    )
    decide: str = option(
        "budget",
        "When to decide: budget (when memory is full), every:K or at:A,B tokens; a full memory "
        "always decides.",
        metavar="budget|every:K|at:A,B",
    )
    min_tokens: int = option(
        16,
        "Length that all first candidates can reach when the budget alone decides.",
        expected="at least 1",
        ge=1,
    )
    policy: str | Policy | None = option(
        None,
        "When to decide and whom to keep, in place of alpha, keep, decide and min-tokens: a file "
        "of specrej calibrate, or a name that a package adds.",
        metavar="FILE.json|NAME|module:object",
        unset="off",
    )
    strict: bool = option(
        False,
        "Refuse a policy that was calibrated for another model, reward or sampling; else the "
        "result has a note of it.",
    )
    refill: str = option(
        "none",
        "What begins in memory that rejection has freed: none, forks (of the best candidates) or "
        "fresh (new candidates).",
        choices=("none", "forks", "fresh"),
        metavar="none|forks|fresh",
    )
    reward_sees: str = option(
        "all",
        "What the reward sees of an answer: all, or answer (what a reasoning model thinks is left "
        "out).",
        choices=("all", "answer"),
        metavar="all|answer",
    )
    max_thinking_tokens: int | None = option(
        None,
        "Tokens that a reasoning model may think; then its thought is ended, and it answers.",
        expected="0 or more, and below 2^31",
        ge=0,
        lt=2**31,
        unset="off",
    )
    extract: str | Callable[[str], str | None] = option(
        "auto",
        "What is compared of answers that vote or are checked: auto (boxed, else the last number), "
        "boxed, number, text, or a pattern.",
        metavar="NAME|regex:PATTERN|module:function",
    )
    threshold: float | None = option(
        None, "Reward at which the algorithm threshold stops.", unset="off"
    )
    window: int = option(
        32, "Tokens in a row whose mean confidence DeepConf goes by.", expected="at least 1", ge=1
    )
    warm_up: int = option(
        16,
        "Candidates that online DeepConf decodes to their end before it stops any.",
        expected="at least 2",
        ge=2,
    )
    memory: str | int | None = option(
        None,
        "KV budget of a prompt and its candidates, such as 64MiB.",
        metavar="SIZE",
        unset="8 full-length candidates on a CPU, 80% of a GPU's free memory",
    )
    max_new_tokens: int = same_as(SamplingParams, "max_new_tokens")
    temperature: float = same_as(SamplingParams, "temperature")
    top_k: int = same_as(SamplingParams, "top_k")
    top_p: float = same_as(SamplingParams, "top_p")
    min_p: float = same_as(SamplingParams, "min_p")
    repetition_penalty: float = same_as(SamplingParams, "repetition_penalty")
    frequency_penalty: float = same_as(SamplingParams, "frequency_penalty")
    presence_penalty: float = same_as(SamplingParams, "presence_penalty")
    logit_bias: Mapping[str, float] | None = same_as(SamplingParams, "logit_bias", default=None)
    top_logprobs: int = same_as(SamplingParams, "top_logprobs")
    stop: Sequence[str] = same_as(SamplingParams, "stop")
    seed: int = same_as(SamplingParams, "seed")
    continue_final_message: bool = option(
        False, "Continue the assistant's message that a conversation ends in; else it is refused."
    )
    json_schema: Mapping[str, Any] | str | None = option(
        None,
        'A JSON schema that every answer obeys; {"type": "object"} is any JSON object.',
        metavar="FILE|JSON",
        unset="off",
    )
    regex: str | None = option(
        None,
        "A regular expression that every answer matches as a whole.",
        metavar="REGEX",
        unset="off",
    )
    grammar: str | None = option(
        None, "A Lark grammar that every answer obeys.", metavar="FILE|LARK", unset="off"
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("keep", "max_thinking_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | None):
                raise UsageError(f"{name} must be a whole number, got {value!r}")
        if self.n != "auto" and type(self.n) is not int:
            raise UsageError(f"n must be {_N}, got {self.n!r}")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise UsageError(f"stop must be a list of strings, got {self.stop!r}")
        check_characters(list(self.stop), "stop", UsageError)
        self._check_algorithm()
        self._check_thinking()
        _ = parse_decide(self.decide), self.sampling, self.memory_bytes  # each checks its part

    def _check_algorithm(self) -> None:
        """See that the algorithm has a name that is known or can be looked for, and that one
        thing alone decides.
        """
        if isinstance(self.algorithm, str):
            if ":" not in self.algorithm and not is_name("algorithm", self.algorithm):
                raise UnknownNameError("algorithm", self.algorithm, names("algorithm"))
        elif not callable(self.algorithm):
            raise UsageError(f"algorithm must be a name or a function, got {self.algorithm!r}")
        if not isinstance(self.policy, str | Policy | None):
            raise UsageError(f"policy must be a name or a specrej.Policy, got {self.policy!r}")
        self._check_choice()
        if self.policy is not None:
            usual = {name: field.default for name, (field, _) in options_of(Settings).items()}
            for name in ("alpha", "keep", "decide", "min_tokens"):
                if getattr(self, name) != usual[name]:
                    raise UsageError(
                        f"{name} must be left out where there is a policy, got "
                        f"{getattr(self, name)!r}"
                    )

    def _check_choice(self) -> None:
        """See that what answers are chosen by is there."""
        if isinstance(self.extract, str):
            if ":" not in self.extract and not is_name("extract", self.extract):
                raise UnknownNameError("extract", self.extract, names("extract"))
        elif not callable(self.extract):
            raise UsageError(f"extract must be a name or a function, got {self.extract!r}")
        given = self.threshold
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if given is not None and not (is_number and abs(given) <= sys.float_info.max):
            raise UsageError(f"threshold must be a finite number, got {shown(given)}")
        if self.threshold is None and self.algorithm == "threshold":
            raise UsageError(
                "the algorithm 'threshold' needs a threshold",
                hint="give the reward at which an answer is good enough",
            )

    def _check_thinking(self) -> None:
        """See that nothing else says what comes first in an answer."""
        if self.max_thinking_tokens is not None and (obeyed := self.constraint):
            raise UsageError(
                f"max_thinking_tokens must be left out where answers obey a {obeyed.kind}",
                hint="they obey it from their first token on: nothing is thought before it",
            )

    @property
    def num_candidates(self) -> int | None:
        """N as a number; None for "auto"."""
        return self.n if isinstance(self.n, int) else None

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def sampling(self) -> SamplingParams:
        mine = {
            name: getattr(self, name) for name in options_of(SamplingParams) if hasattr(self, name)
        }
        bias = bias_of({} if self.logit_bias is None else self.logit_bias)
        own = {"stop": tuple(self.stop), "logit_bias": bias, "constraint": self.constraint}
        return SamplingParams(**mine | own)

    @property
    def constraint(self) -> Constraint | None:
        """What all answers obey."""
        return constraint_of(json_schema=self.json_schema, regex=self.regex, grammar=self.grammar)

    def check(self, prompt: Prompt) -> None:
        """See that a prompt is one, and is to be answered as it ends.

        Raises:
            PromptError: see `as_messages`; or it ends in an assistant's message that nobody asked
                to continue, or is nothing else; or in another message that was to be continued.
        """
        messages = as_conversation(prompt).messages
        if (last := messages[-1]["role"]) != "assistant":
            if self.continue_final_message:
                raise PromptError(
                    "continue_final_message needs a conversation that ends in an assistant's "
                    f"message, this one ends in a {last}'s",
                    hint="leave it out, or put the beginning of the answer behind the conversation",
                )
            return
        if not (self.continue_final_message or "prefix" in messages[-1]):
            raise PromptError(
                "the conversation ends in an assistant's message",
                hint="end it in a user's, or have this one continued: continue_final_message",
            )
        if "tool_calls" in messages[-1]:
            raise PromptError(
                f"messages[{len(messages) - 1}].tool_calls cannot be continued",
                hint="give what the calls came to behind them, as messages of the role tool",
            )
        if len(messages) == 1:
            raise PromptError(
                "an assistant's message alone answers nothing",
                hint="give what it answers before it",
            )

    def common_to(self, prompt: Prompt) -> "Settings":
        """These, as what many prompts have in common: those that end in an assistant's message are
        continued where `continue_final_message` says so, and the others are answered. Where a text
        is continued, nothing is thought.
        """
        if isinstance(prompt, Continuation):
            return replace(self, continue_final_message=False, max_thinking_tokens=None)
        is_begun = as_messages(prompt)[-1]["role"] == "assistant"
        asks_more = self.continue_final_message and not is_begun
        return replace(self, continue_final_message=False) if asks_more else self

    def to_dict(self) -> dict[str, Any]:
        """By name, in JSON's types; a function or a policy by its name."""
        values = {name: getattr(self, name) for name in Options.__annotations__}
        if not isinstance(self.algorithm, str):
            values["algorithm"] = _name_of(self.algorithm)
        if not isinstance(self.extract, str):
            values["extract"] = _name_of(self.extract)
        if isinstance(self.policy, Policy):
            values["policy"] = self.policy.name
        if self.logit_bias is not None:
            values["logit_bias"] = {str(one): bias for one, bias in self.logit_bias.items()}
        if self.json_schema is not None:
            values["json_schema"] = schema_of(self.json_schema)
        return values | {"stop": list(self.stop)}


def _name_of(function: Any) -> str:
    """A function by module and name; a partial by what it calls, an object by its class."""
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}:{function.__qualname__}"
    return _name_of(getattr(function, "func", type(function)))
