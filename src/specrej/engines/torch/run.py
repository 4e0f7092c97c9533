"""The candidates of one prompt in the torch engine: a row each, where each stands, and which of
them take the next step.

    run.plan_step()              # who is not held
    run.fed_ids(), run.positions()
    run.lengths[row] += 1        # for each token that was drawn
    run.settle()

Mostly all rows step and have the same length. Only where they do not is anything gathered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from torch import Tensor

from specrej.attention.attention import ExtendPass
from specrej.attention.groups import Group
from specrej.engines.torch.sampling import History
from specrej.errors import SamplingError
from specrej.types import SamplingParams, TopLogprobs


class Obeying(Protocol):
    """Where the rows of a group stand in what answers obey, in their order."""

    def allowed(self, rows: Sequence[int]) -> Tensor | None:
        """What may come next in these rows, `[rows, vocabulary]`, or `[1, vocabulary]` for all;
        None where all may.
        """

    def take(self, token_ids: Sequence[int], rows: Sequence[int]) -> None:
        """What was drawn for these rows; below 0 where one is lost."""

    def failure(self, row: int) -> SamplingError | None:
        """Why nothing may come next in a row; None where this is not the cause."""

    def reorder(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that is named again is a copy."""

    def joined(self, other: Self) -> Self:
        """These rows and, behind them, others that obey the same."""


@dataclass
class Run:
    """A group with how its candidates are sampled and where they stand."""

    group: Group
    sampling: SamplingParams
    logits: Tensor
    """Of the prompt's last position, `[1, vocabulary]`: the first token of every candidate is
    drawn from them."""
    prompt_hidden: Tensor
    """The last hidden state `[1, hidden]` that these logits came from."""
    newest: Tensor
    """`[rows, 1]` last token of each row; anything before the first."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row."""
    held: set[int] = field(default_factory=set)
    """Candidates that wait."""
    rows: list[int] = field(default_factory=list)
    """Rows that take this step: those that are fed, then those without a token. A first token is
    drawn from the prompt's logits, without KV."""
    num_fed: int = 0
    drawn: tuple[int, ...] = ()
    """The candidates that took part in the latest step."""
    hidden: Tensor | None = None
    """`[drawn, hidden]` what their tokens were drawn from."""
    history: History = field(default_factory=History)
    """What bias and penalties go by; held only where they are on."""
    top: list[TopLogprobs | None] = field(default_factory=list)
    """Of each row of the latest step, where the likeliest tokens are asked for."""
    obeying: Obeying | None = None
    """Where the rows stand in what answers obey, where there is something."""

    def plan_step(self) -> bool:
        """See who takes the next step; False where nobody does."""
        every = list(range(self.group.num_rows))
        if self.held:
            every = [row for row in every if self.group.indices[row] not in self.held]
        fed = [row for row in every if self.lengths[row]]
        self.rows, self.num_fed = every, len(fed)
        if 0 < len(fed) < len(self.rows):
            self.rows = [*fed, *(row for row in every if not self.lengths[row])]
        return bool(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether all rows step, in their order."""
        return len(self.rows) == self.group.num_rows and self.num_fed in (0, len(self.rows))

    @property
    def is_even(self) -> bool:
        """Whether all rows are fed and have the same length."""
        return self.num_fed == self.group.num_rows and len(set(self.lengths)) == 1

    def fed_ids(self) -> Tensor:
        """`[fed, 1]` tokens that the model is fed."""
        return self.newest if self.is_even else self.newest[self.rows[: self.num_fed]]

    def positions(self) -> list[int]:
        """Where they stand."""
        before = len(self.group.prompt_ids) - 1
        return [before + self.lengths[row] for row in self.rows[: self.num_fed]]

    def apart(self) -> ExtendPass:
        """How they see each other, where not all rows are fed or some are longer."""
        fed = set(self.rows[: self.num_fed])
        slots = [max(length - 1, 0) for length in self.lengths]
        return ExtendPass(self.group, 0, slots, [int(row in fed) for row in range(len(slots))])

    def take_rows(self, order: Sequence[int]) -> None:
        """Let the state of its rows be that of these; of forks a row is named often."""
        self.lengths = [self.lengths[row] for row in order]
        self.newest = self.newest[order]
        self.history = self.history.of_rows(order)
        if self.obeying is not None:
            self.obeying.reorder(order)

    def settle(self) -> None:
        """Take note of how long the longest row is now."""
        # The newest token's KV is made when it is fed.
        self.group.length = max([length - 1 for length in self.lengths if length], default=0)
