"""Which tokens may come next where answers obey a constraint: a matcher for each candidate.

    grammars = Grammars(tokenizer, num_logits, eos_ids)      # once an engine
    rows = grammars.start(constraint, num_rows=8, device=device)
    rows.allowed()                                           # [8, num_logits], before a draw
    rows.take(token_ids)                                     # and after it
    rows.reorder(order)                                      # rows that ended are gone

llguidance does the work. The masks of all rows are made side by side, on the CPU.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specrej.constraint import Constraint
from specrej.engines.constraints import checked, limits, not_compiled
from specrej.errors import SamplingError

_MOST_HELD = 64
"""Constraints that stay compiled."""


class _Compiled(NamedTuple):
    matcher: Any
    """At the beginning of an answer; copied, and never moved on."""
    first: NDArray[np.bool_]
    """`[1, vocabulary]` what may begin it."""


class Grammars:
    """The constraints of an engine, compiled once each. May be asked from several threads.

    Args:
        tokenizer: of transformers.
        num_logits: width of the model's logits.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, num_logits: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer, self._num_logits, self._eos_ids = tokenizer, num_logits, eos_ids
        self._vocabulary: Any = None
        self._executor: Any = None
        self._compiled: OrderedDict[Constraint, _Compiled] = OrderedDict()
        self._lock = Lock()

    def compile(self, constraint: Constraint) -> _Compiled:
        """A constraint, ready to be followed.

        Raises:
            UsageError: llguidance is not installed.
            SamplingError: it cannot be compiled, the tokenizer is none that llguidance reads, or no
                token ends an answer.
        """
        with self._lock:
            if (found := self._compiled.get(constraint)) is not None:
                self._compiled.move_to_end(constraint)
                return found
        text = checked(constraint)
        vocabulary = self._read_vocabulary()
        from llguidance import LLMatcher

        matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits())
        if matcher.is_error():
            raise not_compiled(constraint, matcher.get_error())
        first = self.allowed([matcher])
        if matcher.is_error() or not first.any():
            raise not_compiled(constraint, matcher.get_error() or "no token can begin an answer")
        compiled = _Compiled(matcher, first)
        with self._lock:
            self._compiled[constraint] = compiled
            while len(self._compiled) > _MOST_HELD:
                self._compiled.popitem(last=False)
        return compiled

    def _read_vocabulary(self) -> Any:
        """Llguidance's view of the tokenizer; takes about a second, once."""
        with self._lock:
            if self._vocabulary is None:
                from llguidance import LLExecutor
                from llguidance.hf import from_tokenizer

                if not self._eos_ids:
                    raise SamplingError("no token of this model ends an answer that is whole")
                try:
                    self._vocabulary = from_tokenizer(
                        self._tokenizer,
                        n_vocab=max(self._num_logits, len(self._tokenizer)),
                        eos_token=sorted(self._eos_ids),
                    )
                except ValueError as error:
                    raise SamplingError(
                        f"llguidance cannot read this tokenizer: {error}"
                    ) from error
                self._executor = LLExecutor()
            return self._vocabulary

    def start(self, constraint: Constraint, num_rows: int, device: torch.device) -> "Rows":
        """Rows at the beginning of their answers."""
        compiled = self.compile(constraint)
        return Rows(self, constraint, compiled, num_rows, device)

    def allowed(self, matchers: Sequence[Any]) -> NDArray[np.bool_]:
        """What may come next, `[matchers, vocabulary]`: nothing where a matcher has failed."""
        from llguidance.numpy import fill_next_token_bitmask_par

        bits = np.zeros((len(matchers), -(-self._vocabulary.vocab_size // 32)), np.int32)
        fill_next_token_bitmask_par(
            self._executor, [(matcher, row) for row, matcher in enumerate(matchers)], bits
        )
        # One that has failed would let the answer end.
        bits[[row for row, matcher in enumerate(matchers) if matcher.is_error()]] = 0
        flat = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        return flat[:, : self._num_logits].view(np.bool_)


class Rows:
    """Where the candidates of a group stand in their constraint, in the order of its rows."""

    def __init__(
        self,
        grammars: Grammars,
        constraint: Constraint,
        compiled: _Compiled,
        num_rows: int,
        device: torch.device,
    ) -> None:
        self._grammars, self._device, self._first = grammars, device, compiled.first
        self._constraint = constraint
        self._matchers = [compiled.matcher.deep_copy() for _ in range(num_rows)]
        self._has_begun = False

    def allowed(self, rows: Sequence[int]) -> Tensor:
        """What may come next in these rows, `[rows, vocabulary]`, or `[1, vocabulary]` for all
        before the first token.
        """
        allowed = self._first
        if self._has_begun:
            allowed = self._grammars.allowed([self._matchers[row] for row in rows])
        return torch.from_numpy(allowed).to(self._device)

    def take(self, token_ids: Sequence[int], rows: Sequence[int]) -> None:
        """What was drawn for these rows; below 0 where one is lost."""
        self._has_begun = True
        for row, token_id in zip(rows, token_ids, strict=True):
            if token_id >= 0:
                self._matchers[row].consume_token(token_id)

    def failure(self, row: int) -> SamplingError | None:
        """Why nothing may come next in a row; None where the constraint is not the cause."""
        said = self._matchers[row].get_error()
        return not_compiled(self._constraint, said) if said else None

    def reorder(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order; a row that is named again is a copy."""
        self._matchers = [
            self._matchers[row].deep_copy() if row in order[:place] else self._matchers[row]
            for place, row in enumerate(order)
        ]

    def joined(self, other: "Rows") -> "Rows":
        """These rows and, behind them, others of the same constraint."""
        self._matchers += other._matchers
        return self
