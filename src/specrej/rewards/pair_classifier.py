"""A Hugging Face sequence classifier that reads a prompt and two answers, such as PairRM's kind.

    PairClassifier("org/pair-ranker")                                     # the template below
    PairClassifier("org/pair-ranker", template="{prompt}[A]{a}[B]{b}")
    PairClassifier((model, tokenizer), label="first")                     # one that is loaded

The input is one text: what the tokenizer puts before a text, the template with the last user
message for `{prompt}` and the answers for `{a}` and `{b}`, and what the tokenizer puts behind. Each
part is tokenized on its own. What the template spells may be special tokens; the prompt and the
answers hold none, whatever they spell. A model with one output gives the logit of a being better;
one with two outputs, the softmax of both, the first of them for a unless `label` says which.

Run with small random models against transformers' own pass; no trained ranker was at hand.
`llm-blender/PairRM` itself has a head that is no sequence classifier of transformers, so it cannot
be opened: the default template is its input format, for models that were made like it.
"""

import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from specrej.errors import PromptError, UsageError
from specrej.flops import linear_flops
from specrej.hub.pretrained import LoadedModel
from specrej.hub.tokenizers import TextCodec
from specrej.rewards.classifier import read_logits
from specrej.rewards.function import last_question
from specrej.rewards.labels import choose_output
from specrej.rewards.pretrained import open_network, score_by_length, token_limit
from specrej.rewards.ranking import Pair
from specrej.rewards.spec import check_sizes

_LOG = logging.getLogger("specrej")

TEMPLATE = "<|source|>{prompt}<|candidate1|>{a}<|candidate2|>{b}"
_FIELDS = ("{prompt}", "{a}", "{b}")


class PairClassifier:
    """Compares two answers by one pass of a sequence classifier over both.

    Attributes:
        name: the model, with label and template where they are given.
        flops_per_token: of its linear layers; attention, which grows with the length, and padding
            are left out.
        max_tokens: tokens of a pair that are read; of longer ones both answers lose their ends.
            None reads all.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        label: str | int | None = None,
        template: str = TEMPLATE,
        batch_size: int = 16,
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Open the model, or take over a loaded one and put it in evaluation mode.

        Args:
            model: a Hugging Face id, a local directory, or a loaded model with its tokenizer.
            label: the output that says that a is better, by name or number; of two outputs, the
                first by default.
            template: of the input, with `{prompt}`, `{a}` and `{b}` once each.
            batch_size: pairs in a forward pass; each pair is read in both orders.
            max_tokens: of a pair; by default what model and tokenizer can take.
            device: by default CUDA where there is some, else the CPU. Not for a loaded model.
            dtype: by default float32 on the CPU, that of the checkpoint elsewhere. Not for a loaded
                model.

        Raises:
            ModelError: the model cannot be opened.
            UnknownNameError: the model has no such label.
            UsageError: a template that lacks a field, more than two outputs, a size below 1, or
                device or dtype for a loaded model.
        """
        check_sizes(batch_size=batch_size, max_tokens=max_tokens)
        parts = split(template)
        self._model, tokenizer, source = open_network(
            model,
            AutoModelForSequenceClassification,
            "a sequence classifier",
            device=device,
            dtype=dtype,
        )
        self.name = _name_of(source, label, template)
        labels = self._model.config.id2label
        if len(labels) > 2:
            raise UsageError(
                f"the classifier {source!r} has {len(labels)} outputs; one that compares two "
                "answers has one or two",
                hint="classifier:MODEL#LABEL scores single answers by one of several",
            )
        self._better = choose_output(source, labels, 0 if label is None else label)
        self.flops_per_token: float | None = linear_flops(self._model)
        self.max_tokens = max_tokens or token_limit(self._model, tokenizer)
        self._batch_size = batch_size
        self._codec = TextCodec(tokenizer)
        before, behind = self._codec.added
        self._parts: list[tuple[str, list[int]]] = [("", before)]
        for part in parts:
            ids = tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            self._parts.append((part, []) if part in _FIELDS else ("", ids))
        self._parts.append(("", behind))

    def compare(self, pairs: Sequence[Pair]) -> tuple[list[float], list[int]]:
        """The probability that the first is better, and the tokens read, of each pair.

        Raises:
            PromptError: a prompt leaves no room for two answers.
            RewardError: a pass failed; names the first candidates of its pairs.
        """
        encode = cache(self._codec.encode_content)  # each answer is in many pairs
        rows = [self._row(pair, encode) for pair in pairs]
        if num_cut := sum(is_cut for _, is_cut in rows):
            _LOG.warning(
                "reward %r reads %d tokens: in %d of %d pairs answers lose their ends",
                self.name,
                self.max_tokens,
                num_cut,
                len(pairs),
            )
        lengths = [len(row) for row, _ in rows]

        def forward(batch: list[int]) -> list[float]:
            logits = read_logits(self._model, [{"input_ids": rows[i][0]} for i in batch])
            return [self._probability(row) for row in logits]

        firsts = [pair.first for pair in pairs]
        return score_by_length(self.name, firsts, lengths, self._batch_size, forward), lengths

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def _probability(self, logits: Sequence[float]) -> float:
        others = [logit for output, logit in enumerate(logits) if output != self._better]
        # Written so that no preference, however strong, overflows.
        return (1 + math.tanh((logits[self._better] - sum(others)) / 2)) / 2

    def _row(self, pair: Pair, encode: Callable[[str], list[int]]) -> tuple[list[int], bool]:
        """Token ids of a pair, as many as the model reads, and whether its answers are cut."""
        texts = (last_question(pair.messages), pair.first.text, pair.second.text)
        prompt, one, other = map(encode, texts)
        is_cut, num_fixed = False, len(prompt) + sum(len(ids) for _, ids in self._parts)
        if self.max_tokens is not None:
            room = self.max_tokens - num_fixed
            if room < 2:
                raise PromptError(
                    f"the prompt takes {num_fixed} tokens of the reward {self.name!r}, which reads "
                    f"{self.max_tokens}: there is no room for two answers",
                    hint="shorten the prompt, or choose a reward that reads more",
                )
            is_cut = len(one) + len(other) > room
            # Each may have half, and what the other leaves.
            one, other = (
                one[: max(room // 2, room - len(other))],
                other[: max(room - room // 2, room - len(one))],
            )
        of_field = dict(zip(_FIELDS, (prompt, one, other), strict=True))
        return [i for name, ids in self._parts for i in of_field.get(name, ids)], is_cut


def split(template: str) -> list[str]:
    """A template's fields and what stands between them, in their order.

    Raises:
        UsageError: it has not each field once.
    """
    if any(template.count(name) != 1 for name in _FIELDS):
        raise UsageError(
            f"the template of a pair must have {', '.join(_FIELDS)} once each, got {template!r}",
            hint=f"such as {TEMPLATE}",
        )
    return re.split(f"({'|'.join(map(re.escape, _FIELDS))})", template)


def _name_of(source: str, label: str | int | None, template: str) -> str:
    """What a pair's model is called, as `parse_pairwise` reads it."""
    written = template.replace("%", "%25").replace("&", "%26").replace("\n", "%0A")
    return (
        source
        + ("" if label is None else f"#{label}")
        + ("" if template == TEMPLATE else f"?template={written}")
    )
