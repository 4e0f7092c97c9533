"""A Hugging Face sequence classifier as the reward: a reward model with one output, or one output
of several.

    ClassifierReward("org/reward-model")                        # one output
    ClassifierReward("./toxicity", label="harmless")  # one of several; "a*0.7+b*0.3": some of them
    ClassifierReward((model, tokenizer), batch_size=4)          # already loaded
    # what may be held of a prompt's answers
    ClassifierReward("org/reward-model", memory_bytes=2**28)
    # an unfinished answer is shown as unfinished
    ClassifierReward("org/reward-model", partial="open")

Reads text only, never the generator's token ids: the conversation is written out by the reward
model's own chat template; a tokenizer without one (a cross-encoder) gets the last question and the
answer as a pair. Scores are raw logits, those that transformers gives for each conversation alone.
A causal model with a chat template reads each token once (see `incremental`); the others, BERT and
its like, read the prompt and every answer anew at each decision.
"""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from specrej.attention.prefixes import longest_prefix
from specrej.flops import linear_flops
from specrej.hub.pretrained import LoadedModel
from specrej.rewards.base import RewardSession, Scores, StatelessSession
from specrej.rewards.causal import CausalScorer
from specrej.rewards.conversations import (
    ConversationReader,
    Encoded,
    Partial,
    check_options,
    name_of,
    until_pooled,
)
from specrej.rewards.incremental import Conversations, IncrementalSession
from specrej.rewards.labels import choose_outputs, weigh
from specrej.rewards.pretrained import open_network, score_by_length, token_limit
from specrej.rewards.together import alone, score_each, score_jointly
from specrej.types import Candidate, Message

_MEMORY_BYTES = 2**30
_MEMORY_SHARE = 0.1


class ClassifierReward:
    """Scores conversations with a sequence classifier.

    Attributes:
        name: `classifier:MODEL` with `#LABEL` and `?partial=open` where they are given, as
            `as_reward` reads it.
        flops_per_token: of its linear layers, as if each read every token once; attention, which
            grows with the length, and padding are left out.
        weights: of the logits whose sum is the score, by their numbers.
        reader: writes out and tokenizes the conversations.
        max_tokens: tokens of a conversation that are read, a longer one loses the end of its
            answer; None reads all.
        partial: how an unfinished answer is shown.
        memory_bytes: KV that may be held for one prompt.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        label: str | int | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        partial: Partial = "closed",
        memory_bytes: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Open the model, or take over a loaded one: it is put in evaluation mode and its linear
        layers may be packed.

        Args:
            model: a Hugging Face id, a local directory, or a loaded model with its tokenizer.
            label: which output is the score, by the model's name for it or by number; needed where
                there are several. "helpful*0.7+harmless*0.3" is a weighted sum of some.
            batch_size: conversations in a forward pass.
            max_tokens: of a conversation; by default what model and tokenizer can take.
            partial: how an unfinished answer is shown: "open" or "closed", see
                `specrej.rewards.conversations.Partial`.
            memory_bytes: KV that a causal model may hold for each prompt, of the prompt and its
                answers; by default 1 GiB on the CPU and a tenth of the free memory on a GPU. Where
                it does not do, less is kept and more is read, with the same scores; 0 keeps
                nothing. Weights and activations come on top.
            device: by default CUDA where there is some, else the CPU. Not for a loaded model.
            dtype: by default float32 on the CPU, that of the checkpoint elsewhere. Not for a loaded
                model.
            trust_remote_code: run the code that comes with the model, such as ArmoRM's gated head.
                Its logits are the scores.

        Raises:
            ModelError: the model cannot be opened, or its checkpoint has no weights for the
                classifier's head.
            UnknownNameError: the model has no such label, or `partial` is neither.
            UsageError: several outputs and no label, a size below 1, device or dtype for a loaded
                model, or an open answer for a tokenizer without a chat template.
        """
        check_options(partial, memory_bytes, batch_size=batch_size, max_tokens=max_tokens)
        self._model, tokenizer, source = open_network(
            model,
            AutoModelForSequenceClassification,
            "a sequence classifier",
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        self.flops_per_token: float | None = linear_flops(self._model)
        self._batch_size, self.partial = batch_size, partial
        self.weights = choose_outputs(source, self._model.config.id2label, label)
        self.max_tokens = max_tokens or token_limit(self._model, tokenizer)
        self.name = name_of("classifier", source, label, partial)
        has_types = "token_type_ids" in signature(self._model.forward).parameters
        self.reader = ConversationReader(self.name, tokenizer, self.max_tokens, partial, has_types)
        self.memory_bytes = most_memory(memory_bytes, self._model.device)
        reads_once = self.reader.has_template and not has_types
        self._scorer = CausalScorer.of(self._model) if reads_once else None

    @property
    def _text_config(self) -> Any:
        return self._model.config.get_text_config()

    def open(self, messages: Sequence[Message]) -> RewardSession:
        """Begin with a prompt: a causal model reads it here.

        Raises:
            PromptError: the prompt alone is longer than what the model reads, so that no answer
                would be seen.
            RewardError: the chat template refuses the conversation, or does not show where an open
                answer ends.
        """
        shortest = self.reader.shortest(messages)
        if self._scorer is None:
            return StatelessSession(messages, alone(self._score_pairs))

        def encode(candidates: Sequence[Candidate]) -> list[list[int]]:
            rows = self.reader.rows(messages, candidates)
            return [until_pooled(row["input_ids"], self._text_config.pad_token_id) for row in rows]

        def read_whole(
            candidates: Sequence[Candidate], ids: list[list[int]]
        ) -> tuple[list[float], int]:
            scores, lengths = self._score_rows(candidates, [{"input_ids": row} for row in ids])
            return scores, sum(lengths)

        return IncrementalSession(
            Conversations(self.name, self._scorer, self.weights, encode, read_whole),
            shortest[0][: min(longest_prefix(shortest[0], ids[:-1]) for ids in shortest)],
            memory_bytes=self.memory_bytes,
            batch_size=self._batch_size,
        )

    def close(self) -> None:
        """Let the model go."""
        self._model = self._scorer = None

    def score_together(self, asked: Sequence[tuple[Any, Sequence[Candidate]]]) -> Sequence[Scores]:
        """Answers to several prompts in batches of like length; prompt by prompt where KV is
        kept for each.
        """
        return (
            score_jointly(asked, self._score_pairs) if self._scorer is None else score_each(asked)
        )

    def _score_pairs(
        self, pairs: Sequence[tuple[Sequence[Message], Candidate]]
    ) -> tuple[Sequence[float], Sequence[int]]:
        return self._score_rows(
            [candidate for _, candidate in pairs], self.reader.rows_of_prompts(pairs)
        )

    def _score_rows(
        self, candidates: Sequence[Candidate], rows: Sequence[Encoded]
    ) -> tuple[list[float], list[int]]:
        """Scores from transformers' own pass over whole rows, and the tokens of each."""
        lengths = [len(row["input_ids"]) for row in rows]

        def forward(batch: list[int]) -> list[float]:
            return self._forward([rows[i] for i in batch])

        return score_by_length(self.name, candidates, lengths, self._batch_size, forward), lengths

    def _forward(self, rows: Sequence[Encoded]) -> list[float]:
        """The chosen logits of each row, weighed."""
        return [weigh(row, self.weights) for row in read_logits(self._model, rows)]


@torch.inference_mode()
def read_logits(model: Any, rows: Sequence[Encoded]) -> list[list[float]]:
    """The logits of each row from transformers' own pass, whatever the other rows are.

    Args:
        model: a sequence classifier.
        rows: what it reads, of the same names each.
    """
    config = model.config.get_text_config()
    given = config.pad_token_id
    padding = choose_padding(given, config.vocab_size, [row["input_ids"][-1] for row in rows])
    fillers = {"input_ids": padding, "token_type_ids": 0}
    inputs = {name: _pad([row[name] for row in rows], fillers[name]) for name in rows[0]}
    inputs["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in rows], 0)
    config.pad_token_id = padding
    try:
        on_device = {name: values.to(model.device) for name, values in inputs.items()}
        logits: list[list[float]] = model(**on_device).logits.float().tolist()
    finally:
        config.pad_token_id = given
    return logits


def choose_padding(pad_token_id: int | None, vocab_size: int, last_ids: Sequence[int]) -> int:
    """The token id to pad a batch with, so that each row is pooled where transformers pools it
    alone.

    Classifiers on causal models score at the last token that is not `config.pad_token_id`. Where
    the checkpoint names one, a row alone is pooled by it too, and padding with the same one changes
    nothing. Where it names none, a row
    alone is pooled at its very last token: any id will do but those that rows end with. (So EOS,
        the usual stand-in,
    will not: conversations end with it.)
    """
    if pad_token_id is not None and 0 <= pad_token_id < vocab_size:
        return pad_token_id
    return next(token_id for token_id in range(vocab_size) if token_id not in last_ids)


def most_memory(given: int | None, device: torch.device) -> int:
    """Bytes that the KV of a prompt and its answers may take: as given, or by the device."""
    if given is not None:
        return given
    if device.type != "cuda":
        return _MEMORY_BYTES
    return int(torch.cuda.mem_get_info(device)[0] * _MEMORY_SHARE)


def _pad(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """Rows as a matrix as wide as the longest, filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
