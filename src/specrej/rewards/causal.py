"""A causal classifier that reads only what is new: its backbone on the engine's attention, its head
on the last token.

    scorer = CausalScorer.of(model)                 # None where the architecture does not allow it
    group = scorer.prefill(prompt_ids)              # once for a prompt
    group.indices = [0, 1]
    group.resize(slots=8)
    # logits [2, outputs] after two more tokens and one more
    scorer.extend(group, 0, [0, 0], [[7, 8], [9]])

Knows token ids and KV; not texts, templates or budgets. Tokens are packed: the linear layers see no
padding. Before a model is trusted, short rows go through it both ways, as when the engine opens
one.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specrej.attention.attention import ExtendPass, Pass, PrefillPass, use_groups
from specrej.attention.groups import Group
from specrej.attention.layout import PREFILL_CHUNK, KvLayout
from specrej.attention.linear import pack_linears
from specrej.attention.verify import Recorder, verify
from specrej.engines.torch.kernels import products_here
from specrej.errors import ModelError
from specrej.hub.quiet import quiet_transformers

_log = logging.getLogger("specrej")

_PROBE_PROMPT, _PROBE_ROWS = 9, (3, 7)
"""Tokens of the prompt, and of each row's own, that are compared."""


class CausalScorer:
    """A sequence classifier on a causal backbone: `model.score` on the hidden state of a
    conversation's last token.

    Attributes:
        layout: what a token holds in KV.
    """

    def __init__(self, model: Any) -> None:
        """Take the model over; it computes with transformers' own attention but while this reads.

        Raises:
            ModelError: the architecture does not allow it; says why.
        """
        self._model = model
        self._backbone = model.base_model
        self._own_attention = model.config._attn_implementation
        self.layout = KvLayout(0, 0, granule=1)
        with quiet_transformers():
            self.layout = self._verify()
        if model.device.type == "cpu" and model.dtype == torch.float32:
            pack_linears(model, "fp32", products_here(model.device))

    @classmethod
    def of(cls, model: Any) -> "CausalScorer | None":
        """The scorer of a model, None (and a word in the log) where it must read every
        conversation whole.
        """
        try:
            return cls(model)
        except ModelError as reason:
            _log.info("every conversation is read whole at each decision: %s", reason)
            return None

    @torch.inference_mode()
    def prefill(self, prompt_ids: Sequence[int]) -> Group:
        """A group with the KV of a prompt and without rows."""
        group = Group(list(prompt_ids), 0, self.layout, 0)
        for start in range(0, len(prompt_ids), PREFILL_CHUNK):
            ids = group.prompt_ids[start : start + PREFILL_CHUNK]
            positions = torch.arange(start, start + len(ids), device=self._model.device)[None]
            self._read(ids, positions, PrefillPass(group, start))
        return group

    @torch.inference_mode()
    def extend(
        self, group: Group, first_row: int, lengths: Sequence[int], new_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Feed new tokens to neighbouring rows and write their KV; all logits at the last one of
        each row.

        Args:
            group: its block has a slot for every token of these rows.
            first_row: the row of the first.
            lengths: own tokens that each row has; what its slots hold beyond them is written over.
            new_ids: at least one for each row; one row alone may have any number, more rows
                `PREFILL_CHUNK` together.
        """
        longest = max(len(ids) for ids in new_ids)
        for start in range(0, longest, PREFILL_CHUNK):
            pieces = [ids[start : start + PREFILL_CHUNK] for ids in new_ids]
            kv = ExtendPass(
                group,
                first_row,
                [length + start for length in lengths],
                [len(ids) for ids in pieces],
            )
            hidden = self._read([token_id for ids in pieces for token_id in ids], kv.positions, kv)
        logits: list[list[float]] = self._model.score(hidden[kv.last]).float().tolist()
        return logits

    def _read(self, ids: list[int], positions: Tensor, kv: Pass) -> Tensor:
        """The last hidden states `[tokens, hidden]`."""
        given = torch.tensor([ids], device=self._model.device)
        with self._group_attention():
            output = self._backbone(input_ids=given, position_ids=positions, use_cache=False, kv=kv)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @contextmanager
    def _group_attention(self) -> Iterator[None]:
        use_groups(self._model)
        try:
            yield
        finally:
            self._model.set_attn_implementation(self._own_attention)

    def _verify(self) -> KvLayout:
        """Compare with the classifier's own logits on short rows; what a token holds in KV."""
        model, config = self._model, self._model.config.get_text_config()
        _check_rope(model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(
            config.vocab_size, (_PROBE_PROMPT + sum(_PROBE_ROWS),), generator=generator
        )
        ids[ids == config.pad_token_id] += (
            1 if config.pad_token_id == 0 else -1
        )  # pooling would pass over it
        prompt, *rows = (
            piece.tolist() for piece in torch.split(ids, [_PROBE_PROMPT, *_PROBE_ROWS])
        )

        def expect() -> Tensor:
            return torch.stack(
                [model(torch.tensor([prompt + row], device=model.device)).logits[0] for row in rows]
            )

        recorder, _ = verify(model, expect, lambda: self._probe(prompt, rows))
        return recorder.layout(granule=1)

    def _probe(self, prompt: list[int], rows: list[list[int]]) -> tuple[Tensor, Recorder]:
        """Logits `[rows, outputs]` after each row, read in two pieces of different lengths."""
        group = self.prefill(prompt)
        group.indices = list(range(len(rows)))
        group.resize(max(len(row) for row in rows))
        lengths = [len(row) // 2 for row in rows]
        self.extend(
            group,
            0,
            [0] * len(rows),
            [row[:length] for row, length in zip(rows, lengths, strict=True)],
        )
        rests = [row[length:] for row, length in zip(rows, lengths, strict=True)]
        kv = ExtendPass(group, 0, lengths, [len(rest) for rest in rests])
        recorder = Recorder(kv)
        hidden = self._read(
            [token_id for rest in rests for token_id in rest], kv.positions, recorder
        )
        return self._model.score(hidden[kv.last]).float(), recorder


def _check_rope(model: torch.nn.Module) -> None:
    """Refuse rotary positions that depend on the length of the whole text: keys would change as
    it grows.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if found := {"dynamic", "longrope"} & set(
            kind.values() if isinstance(kind, dict) else [kind]
        ):
            raise ModelError(
                f"{type(module).__name__} has rotary positions of kind {found.pop()!r}"
            )
