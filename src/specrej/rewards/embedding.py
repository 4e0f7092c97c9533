"""How close an answer is in meaning to a reference text: the cosine of their embeddings, in [-1,
1].

    EmbeddingReward("org/encoder", reference="Drink water and sleep well.")
    EmbeddingReward("org/encoder", reference="@answers.jsonl")     # looked up by the prompt
    EmbeddingReward("org/encoder")  # the question itself: how much is it on the topic

An embedding is the mean of the model's last hidden states over all tokens of the text, special ones
included: what models trained with mean pooling give. Those trained on the first or the last token
(CLS pooling) are read the same way here, so their scores are not those of their authors; a prefix
that a model wants before its texts is not added.

The answer is read alone, without the prompt. A partial answer is embedded as it is: its score says
how close the text so far is, and mostly rises while the answer covers more of the reference. The
reference is embedded once for a prompt, the answers again at each decision.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from specrej.errors import RewardError, UsageError
from specrej.flops import linear_flops
from specrej.hub.contents import warn_of_parsed
from specrej.hub.pretrained import LoadedModel
from specrej.rewards.base import StatelessSession
from specrej.rewards.function import last_question
from specrej.rewards.pretrained import open_network, pad_right, score_by_length, token_limit
from specrej.rewards.references import read_references
from specrej.rewards.spec import check_sizes, parse_options
from specrej.rewards.together import alone, score_jointly
from specrej.types import Candidate, Message

_LOG = logging.getLogger("specrej")


class EmbeddingReward:
    """Cosine similarity to a reference.

    Attributes:
        name: `embedding:MODEL` or `embedding:MODEL?reference=...`.
        flops_per_token: of its linear layers; attention, which grows with the length, and padding
            are left out.
        max_tokens: tokens of a text that are read, a longer one loses its end; None reads all.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        reference: str | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Open the model, or take over a loaded one and put it in evaluation mode.

        Args:
            model: a Hugging Face id, a local directory, or a loaded model with its tokenizer.
            reference: a text for all prompts, or `@FILE.jsonl` with one for each (see
                `specrej.rewards.references`); None is the last question of each prompt.
            batch_size: answers in a forward pass.
            max_tokens: length limit of a text; by default what the model and its tokenizer can
                take.
            device: by default CUDA where there is some, else the CPU. Not for a loaded model.
            dtype: by default float32 on the CPU, that of the checkpoint elsewhere. Not for a loaded
                model.

        Raises:
            ModelError: the model cannot be opened.
            UsageError: a size below 1, a reference that cannot be read, or device or dtype for a
                loaded model.
        """
        check_sizes(batch_size=batch_size, max_tokens=max_tokens)
        self._find = last_question if reference is None else read_references(reference)
        self._network, self._tokenizer, source = open_network(
            model, AutoModel, "an encoder", device=device, dtype=dtype, unused="pooler"
        )
        self.flops_per_token: float | None = linear_flops(self._network)
        self._batch_size = batch_size
        self.max_tokens = max_tokens or token_limit(self._network, self._tokenizer)
        self.name = f"embedding:{source}" + ("" if reference is None else f"?reference={reference}")
        warn_of_parsed(self.name, getattr(self._tokenizer, "backend_tokenizer", None))

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt: its reference is embedded.

        Raises:
            PromptError: the file of references has none for it.
            RewardError: the reference has no tokens, or the model fails on it.
        """
        [row] = self._encode([self._find(messages)], ["the reference"])
        if not row:
            raise RewardError(
                f"the reference of reward {self.name!r} has no tokens",
                hint="give a text with words",
            )
        try:
            reference = self._embed([row])[0]
        except Exception as error:
            raise RewardError(
                f"reward {self.name!r} failed on the reference: {type(error).__name__}: {error}"
            ) from error

        return StatelessSession(reference, alone(self._score), num_tokens=len(row))

    def close(self) -> None:
        """Let the model go."""
        self._network = None

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> list[Sequence[float]]:
        """Answers to several prompts, in batches of like length."""
        return score_jointly(asked, self._score)

    def _score(self, pairs: Sequence[tuple[Tensor, Candidate]]) -> tuple[list[float], list[int]]:
        """Cosines, and tokens read. A text without tokens points nowhere: its cosine is 0."""
        candidates = [candidate for _, candidate in pairs]
        rows = self._encode(
            [c.text for c in candidates], [f"candidate {c.index}" for c in candidates]
        )

        def forward(batch: list[int]) -> list[float]:
            references = torch.stack([pairs[i][0] for i in batch])
            cosines: list[float] = (
                (self._embed([rows[i] or [0] for i in batch]) * references).sum(dim=1).tolist()
            )
            return [cosine if rows[i] else 0.0 for i, cosine in zip(batch, cosines, strict=True)]

        lengths = [len(row) for row in rows]
        return score_by_length(self.name, candidates, lengths, self._batch_size, forward), lengths

    def _encode(self, texts: list[str], names: list[str]) -> list[list[int]]:
        """Token ids of each text; what is cut off is said in the log, by name."""
        if not texts:
            return []
        rows: list[list[int]] = self._tokenizer(
            texts, padding=False, truncation=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        for i, row in enumerate(rows):
            if self.max_tokens is not None and len(row) > self.max_tokens:
                # The tokenizer cuts before its special tokens at the end, which stay.
                rows[i] = self._tokenizer(
                    texts[i],
                    padding=False,
                    truncation=True,
                    max_length=self.max_tokens,
                    split_special_tokens=True,
                )["input_ids"]
                _LOG.warning(
                    "reward %r reads %d tokens: the last %d of %s are cut off",
                    self.name,
                    self.max_tokens,
                    len(row) - self.max_tokens,
                    names[i],
                )
        return rows

    @torch.inference_mode()
    def _embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings `[rows, hidden]` of length 1, in float32."""
        ids, mask = pad_right(rows, self._network)
        states = self._network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        # A sum points where the mean points, which is all that is left of it at length 1.
        return normalize((states * mask[:, :, None]).sum(dim=1), dim=1)


def parse_embedding(argument: str = "") -> EmbeddingReward:
    """`embedding:MODEL`, `embedding:MODEL?reference=TEXT` or
    `embedding:MODEL?reference=@FILE.jsonl`.

    Raises:
        UsageError: no model, or an option that is not known.
    """
    model, options = parse_options(argument, {"reference": str})
    if not model:
        raise UsageError(
            "the reward 'embedding' needs a model",
            hint="give it as embedding:PATH_OR_ID?reference=@FILE.jsonl",
        )
    return EmbeddingReward(model, **options)
