"""Which tokens may come next where thoughts have a limit: all, or the next of a forced mark.

    rows = Thoughts(ThoughtLimit(256, "<think>", "</think>", is_begun=True), codec, 8, 1000, device)
    rows.allowed([0, 1])         # [2, 1000] where the mark is written for one of them; else None
    rows.take([5, 17], [0, 1])   # and after the draw

A text is read as long as nobody knows whether it begins with a thought, and once when the thought
has been as long as it may be. In between only lengths count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specrej.constraint import ThoughtLimit
from specrej.hub.thinking import Thinking

if TYPE_CHECKING:
    from specrej.hub.tokenizers import TextCodec


@dataclass
class _Answer:
    """Where one candidate stands."""

    token_ids: list[int]
    bound: int | None
    """Length at which the thought is ended; None while it may still begin."""
    forced: tuple[int, ...] = ()
    """What comes next, whatever the model says."""
    is_free: bool = False
    """Whether nothing is forced any more: no thought came, or it has ended."""


class Thoughts:
    """Where the candidates of a group stand in their thoughts, in the order of its rows.

    Args:
        limit: how long they may be.
        codec: reads tokens.
        num_rows: candidates, each before its first token.
        width: of the logits.
        device: of the logits.

    Raises:
        SamplingError: the tokenizer cannot write the closing mark.
    """

    def __init__(
        self,
        limit: ThoughtLimit,
        codec: "TextCodec",
        num_rows: int,
        width: int,
        device: torch.device,
    ) -> None:
        self._thinking = Thinking(limit.opening, limit.closing, limit.is_begun)
        self._most_tokens, self._codec = limit.most_tokens, codec
        self._closing_ids = tuple(codec.mark_ids(limit.closing))
        self._width, self._device = width, device
        bound = limit.most_tokens if limit.is_begun else None
        self._answers = [_Answer([], bound) for _ in range(num_rows)]
        for answer in self._answers:
            self._look(answer)

    def allowed(self, rows: Sequence[int]) -> Tensor | None:
        """What may come next in these rows, `[rows, width]`; None where all may in each."""
        forced = {
            place: answer.forced[0]
            for place, answer in enumerate(self._answers[row] for row in rows)
            if answer.forced
        }
        if not forced:
            return None
        allowed = torch.ones(len(rows), self._width, dtype=torch.bool)
        allowed[list(forced)] = False
        allowed[list(forced), list(forced.values())] = True
        return allowed.to(self._device)

    def take(self, token_ids: Sequence[int], rows: Sequence[int]) -> None:
        """What was drawn for these rows; below 0 where one is lost."""
        for row, token_id in zip(rows, token_ids, strict=True):
            answer = self._answers[row]
            if answer.forced:
                answer.forced = answer.forced[1:]
                answer.is_free = not answer.forced
            elif token_id >= 0 and not answer.is_free:
                answer.token_ids.append(token_id)
                self._look(answer)

    def _look(self, answer: _Answer) -> None:
        """See whether a thought has begun, or has been long enough."""
        num_tokens = len(answer.token_ids)
        if answer.bound is None:
            text = self._codec.decode(answer.token_ids)
            if self._thinking.is_inside(text):
                answer.bound = num_tokens + self._most_tokens
            else:
                answer.is_free = not self._thinking.may_begin(text)
        if answer.bound == num_tokens:
            if self._thinking.is_inside(self._codec.decode(answer.token_ids)):
                answer.forced = self._closing_ids
            else:
                answer.is_free = True

    def failure(self, row: int) -> None:
        """A limit leaves a token in each place: no row is lost for it."""

    def reorder(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that is named again is a copy."""
        self._answers = [
            replace(self._answers[row], token_ids=list(self._answers[row].token_ids))
            if row in order[:place]
            else self._answers[row]
            for place, row in enumerate(order)
        ]

    def joined(self, other: "Thoughts") -> "Thoughts":
        """These rows and, behind them, others under the same limit."""
        self._answers += other._answers
        return self
