"""What a run is made of beside model and reward: algorithm, candidates, memory, sampling. Checked on construction.

Settings(algorithm="best_of_n", n=16, memory="64MiB", seed=1)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.memory import parse_bytes
from specrej.reading import check_characters
from specrej.registry import ALGORITHMS
from specrej.search.policies import Policy, parse_policy
from specrej.types import Prompt, SamplingParams, as_messages, check_types


class Options(TypedDict, total=False):
    """The keyword arguments that `generate`, `generate_batch` and `compare` share; `Settings` has the defaults."""

    algorithm: str
    n: int | str
    alpha: float
    keep: int | None
    decide: str
    min_tokens: int
    memory: str | int | None
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: Sequence[str]
    seed: int
    continue_final_message: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How answers are sampled and chosen.

    Attributes:
        algorithm: "speculative_rejection" or "best_of_n".
        n: candidates to begin with; "auto" is as many as the memory carries.
        alpha: share of the candidates rejected at each decision, in [0, 1).
        keep: keep this many at each decision, in place of a share.
        decide: "budget" (when memory is full), "every:K" or "at:A,B,C" tokens; a full memory always decides.
        min_tokens: length that the initial batch can reach when the budget alone decides.
        memory: KV budget, such as "64MiB" or a number of bytes; None leaves it to the engine: room for 8 full-length
            candidates on a CPU, 80% of the free memory on a GPU.
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed: see `SamplingParams`.
        continue_final_message: a conversation that ends in an assistant's message is gone on with inside that message;
            else it is refused.

    Raises:
        UsageError: a value outside its range; says which.
    """

    algorithm: str = "speculative_rejection"
    n: int | str = "auto"
    alpha: float = 0.5
    keep: int | None = None
    decide: str = "budget"
    min_tokens: int = 16
    memory: str | int | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        check_types(self, algorithm=str, alpha=float, decide=str, min_tokens=int, continue_final_message=bool)
        if self.keep is not None:
            check_types(self, keep=int)
        if self.algorithm not in ALGORITHMS:
            raise UnknownNameError("algorithm", self.algorithm, ALGORITHMS)
        if self.n != "auto" and (type(self.n) is not int or self.n < 1):
            raise UsageError(f"n must be 'auto' or a number of at least 1, got {self.n!r}")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise UsageError(f"stop must be a list of strings, got {self.stop!r}")
        check_characters(list(self.stop), "stop", UsageError)
        _ = self.policy, self.sampling, self.memory_bytes  # each checks its part

    @property
    def num_candidates(self) -> int | None:
        """N as a number; None for "auto"."""
        return self.n if isinstance(self.n, int) else None

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def policy(self) -> Policy:
        return parse_policy(alpha=self.alpha, keep=self.keep, decide=self.decide, min_tokens=self.min_tokens)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop),
            seed=self.seed,
        )

    def check(self, prompt: Prompt) -> None:
        """See that a prompt is one, and is to be answered as it ends.

        Raises:
            PromptError: see `as_messages`; or it ends in an assistant's message that nobody asked to continue, or is
                nothing else.
        """
        messages = as_messages(prompt)
        if messages[-1]["role"] != "assistant":
            return
        if not self.continue_final_message:
            raise PromptError(
                "the conversation ends in an assistant's message",
                hint="end it in a user's, or have this one gone on with: continue_final_message",
            )
        if len(messages) == 1:
            raise PromptError("an assistant's message alone answers nothing", hint="give what it answers before it")

    def to_dict(self) -> dict[str, Any]:
        """By name, in JSON's types."""
        return {name: getattr(self, name) for name in Options.__annotations__} | {"stop": list(self.stop)}
