"""The KV memory of one prompt, by arithmetic: how much there is, and how many candidates it carries
how far.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from specrej.engines.base import Engine
from specrej.errors import BudgetError, PromptError, UsageError
from specrej.memory import format_bytes
from specrej.types import Candidate


class Total(NamedTuple):
    """KV that several prompts share."""

    bytes: int
    grows: bool = False
    """To what one of them needs that is larger."""
    most_candidates: int | None = None
    """That a prompt begins with where nobody says how many; None leaves it to the memory."""


class Budget:
    """What a prompt and its candidates may hold.

    Args:
        engine: holds it.
        num_prompt_tokens: of the prompt.
        num_new_tokens: most of a candidate.
        given_bytes: KV of the prompt and its candidates; None leaves it to the engine.
        total: KV that several prompts share, of which a budget left to the engine is a part.

    Raises:
        PromptError: the prompt is too long for the context.
        UsageError: it is too long with its answer.
        BudgetError: the budget does not hold one candidate of full length, or the engine does not
            hold the budget.
    """

    def __init__(
        self,
        engine: Engine,
        num_prompt_tokens: int,
        num_new_tokens: int,
        given_bytes: int | None,
        total: Total | None,
    ) -> None:
        self._engine = engine
        self._num_prompt_tokens, self._num_new_tokens = num_prompt_tokens, num_new_tokens
        # The first token costs no KV. Counted like the second, it limits the number of candidates
        # all the same.
        num_new = max(num_new_tokens, 2)
        self.bytes = given_bytes or self._default(num_new, total)
        self._check()

    def _default(self, num_new_tokens: int, total: Total | None) -> int:
        """The engine's choice; of a total that does not grow at most all."""
        total_bytes = None if total is None else total.bytes
        wanted = self._engine.default_budget(self._num_prompt_tokens, num_new_tokens, total_bytes)
        return wanted if total is None or total.grows else min(wanted, total.bytes)

    def _check(self) -> None:
        num_prompt, num_new = self._num_prompt_tokens, self._num_new_tokens
        context = self._engine.context_tokens
        if num_prompt + 1 > context:
            raise PromptError(f"the prompt has {num_prompt} tokens, the model's context {context}")
        if num_prompt + num_new > context:
            raise UsageError(
                f"the prompt's {num_prompt} tokens and max_new_tokens={num_new} exceed the context "
                f"of {context}",
                hint=f"give max_new_tokens of at most {context - num_prompt}",
            )
        capacity = self._engine.capacity_bytes
        if capacity is not None and self.bytes > capacity:
            raise BudgetError(
                f"a budget of {format_bytes(self.bytes)} is more than the {format_bytes(capacity)} "
                "of KV that "
                f"the engine holds",
                hint=f"give a memory of at most {format_bytes(capacity)}, or open the engine with "
                "a larger KV cache",
            )
        needed = self.kv_bytes(1, num_new)
        if needed > self.bytes:
            raise BudgetError(
                f"a budget of {format_bytes(self.bytes)} does not hold one candidate: {num_prompt} "
                "prompt "
                f"tokens and {num_new} new ones need {format_bytes(needed)}",
                hint=f"give a memory of at least {format_bytes(needed)}, or fewer max_new_tokens",
            )

    def fitting(self, num_tokens: int) -> int:
        """Most candidates that can have so many tokens each, or as many as they may have."""
        num_tokens = min(num_tokens, self._num_new_tokens)
        counts = range(self._engine.most_candidates + 1)
        return bisect_right(counts, self.bytes, key=lambda n: self.kv_bytes(n, num_tokens)) - 1

    def surplus(self, live: Sequence[Candidate], num_ahead: int) -> Sequence[Candidate]:
        """Those of these, best first, that do not fit with one more token each, beyond so many
        that the engine has decoded ahead.
        """
        longest = max((len(candidate.token_ids) for candidate in live), default=0)
        return live[self.fitting(longest + num_ahead + 1) :]

    def room(self, num_live: int, num_tokens: int) -> int:
        """How many may begin beside so many live candidates, if all go on to num_tokens.

        An engine that cannot hold back decodes the live ones ahead while the new ones are read: to
        the full length at most.
        """
        if not self._engine.can_hold_back:
            num_tokens = self._num_new_tokens
        return max(self.fitting(num_tokens) - num_live, 0)

    def check_beside(self, live: Sequence[Candidate], num_new: int) -> None:
        """See that there is room for more candidates with one more token each.

        Raises:
            BudgetError: there is not; says for how many there is.
        """
        num_tokens = max((len(candidate.token_ids) for candidate in live), default=0) + 1
        room = max(self.fitting(num_tokens) - len(live), 0)
        if num_new > room:
            raise BudgetError(
                f"a budget of {format_bytes(self.bytes)} does not hold {num_new} more beside "
                f"{len(live)} live candidates of up to {num_tokens} tokens, only {room}",
                hint="give a larger memory, or begin fewer: search.room(num_tokens) says how many",
            )

    def kv_bytes(self, num_candidates: int, num_tokens: int) -> int:
        """What the prompt and so many candidates of so many tokens hold."""
        return self._engine.kv_bytes(self._num_prompt_tokens, num_candidates, max(num_tokens, 2))

    def first_bytes(self) -> int:
        """What must be free to begin: for the prompt and the first tokens of one candidate, or
        all it may ever hold.
        """
        return self.kv_bytes(1, 2) if self._engine.can_hold_back else self.bytes

    def most_bytes(self, num_candidates: int) -> int:
        """The most that the prompt and so many candidates will ever hold."""
        return min(self.kv_bytes(num_candidates, self._num_new_tokens), self.bytes)
