"""Log-probability of the answer under another causal model, or how much more likely the generator
finds it.

    ReferenceReward("org/larger-model")                    # mean log p_ref of a token, in nats
    ReferenceReward("org/larger-model", reduce="sum")      # log p_ref of the whole answer
    # log p - log p_ref, for each token of the generator
    ReferenceReward("org/base-model", minus=True)

The other model reads text only: the prompt through its own chat template (a model without one
continues the prompt as it stands), and behind it the answer, tokenized on its own. The end of an
answer that ended by itself counts as a token, the tokenizer's EOS, as it does in the generator's
log-probabilities. An answer without any text is judged by that token alone, finished or not.

Two tokenizers cut a text into different numbers of tokens, so log p - log p_ref is defined on sums
over the answer, in nats. With "mean" it is then divided by the number of the generator's tokens. Of
the two, log p is that of the tokens as they were drawn, before temperature and filters, and log
p_ref that of the text. What the text lacks (special tokens, half a character, a stop string) is in
the one and not in the other.

A partial answer is read as it stands, with no end behind it. Each decision reads prompt and answers
anew, in full.
"""

import logging
import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specrej.errors import PromptError, RewardError, UnknownNameError, UsageError
from specrej.flops import linear_flops
from specrej.hub.pretrained import LoadedModel
from specrej.hub.tokenizers import TextCodec
from specrej.rewards.base import StatelessSession
from specrej.rewards.pretrained import open_network, pad_right, score_by_length, token_limit
from specrej.rewards.spec import check_sizes, parse_flag, parse_options
from specrej.rewards.together import alone, score_jointly
from specrej.types import Candidate, Message

_LOG = logging.getLogger("specrej")


class ReferenceReward:
    """Scores by the likelihood of the answer's text under a causal model.

    Attributes:
        name: `reference:MODEL`, with the options that differ from the defaults.
        flops_per_token: of its linear layers and its head, which in truth the prompt's tokens do
            not meet; attention, which grows with the length, and padding are left out.
        max_tokens: tokens of prompt and answer that are read, a longer one loses its end; None
            reads all.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        reduce: str = "mean",
        minus: bool = False,
        batch_size: int = 8,
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Open the model, or take over a loaded one and put it in evaluation mode.

        Args:
            model: a Hugging Face id, a local directory, or a loaded model with its tokenizer.
            reduce: "mean" over the answer's tokens, or "sum".
            minus: the generator's log-probability minus that of this model.
            batch_size: answers in a forward pass, whose logits are all held: answer tokens times
                vocabulary.
            max_tokens: by default what the model and its tokenizer can take.
            device: by default CUDA where there is some, else the CPU. Not for a loaded model.
            dtype: by default float32 on the CPU, that of the checkpoint elsewhere. Not for a loaded
                model.

        Raises:
            ModelError: the model cannot be opened.
            UnknownNameError: `reduce` is neither.
            UsageError: a size below 1, or device or dtype for a loaded model.
        """
        if reduce not in ("mean", "sum"):
            raise UnknownNameError("reduction of the reference reward", reduce, ["mean", "sum"])
        check_sizes(batch_size=batch_size, max_tokens=max_tokens)
        self._network, self._tokenizer, source = open_network(
            model, AutoModelForCausalLM, "a causal language model", device=device, dtype=dtype
        )
        self._codec = TextCodec(self._tokenizer)
        self._keeps_few_logits = "logits_to_keep" in signature(self._network.forward).parameters
        self.flops_per_token: float | None = linear_flops(self._network)
        self.max_tokens = max_tokens or token_limit(self._network, self._tokenizer)
        self._reduce, self._minus, self._batch_size = reduce, minus, batch_size
        given = "&".join(
            [*(["reduce=sum"] if reduce == "sum" else []), *(["minus=1"] if minus else [])]
        )
        self.name = f"reference:{source}" + (f"?{given}" if given else "")

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt.

        Raises:
            PromptError: the prompt has no tokens or leaves no room for an answer, the chat template
                refuses it, or a model without one meets a conversation.
        """
        is_single = len(messages) == 1 and messages[0]["role"] == "user"
        prompt_ids = self._codec.encode(
            messages[0]["content"] if is_single else self._codec.readable(messages)
        )
        if not prompt_ids or (self.max_tokens is not None and len(prompt_ids) >= self.max_tokens):
            raise PromptError(
                f"the prompt takes {len(prompt_ids)} tokens of the reward {self.name!r}, which "
                "reads "
                f"{self.max_tokens}: it needs at least one, and room for an answer"
            )

        return StatelessSession(prompt_ids, alone(self._score))

    def close(self) -> None:
        """Let the model go."""
        self._network = None

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> list[Sequence[float]]:
        """Answers to several prompts, in batches of like length."""
        return score_jointly(asked, self._score)

    def _score(self, pairs: Sequence[tuple[list[int], Candidate]]) -> tuple[list[float], list[int]]:
        candidates = [candidate for _, candidate in pairs]
        rows = [
            (prompt_ids, self._encode(candidate, len(prompt_ids)))
            for prompt_ids, candidate in pairs
        ]

        def forward(batch: list[int]) -> list[float]:
            sums = self._log_probs([rows[i] for i in batch])
            return [
                self._reduced(candidates[i], len(rows[i][1]), total)
                for i, total in zip(batch, sums, strict=True)
            ]

        lengths = [len(prompt_ids) + len(answer) for prompt_ids, answer in rows]
        return score_by_length(self.name, candidates, lengths, self._batch_size, forward), lengths

    def _encode(self, candidate: Candidate, num_prompt_tokens: int) -> list[int]:
        """Token ids of an answer, at least one, as many as there is room for."""
        if self._minus and not candidate.logprobs:
            raise RewardError(
                f"reward {self.name!r} cannot score candidate {candidate.index}: it has no tokens",
                hint="score a candidate after its first step",
            )
        ids = self._codec.encode_content(candidate.text)
        eos = self._tokenizer.eos_token_id
        if eos is not None and (candidate.finish_reason == "eos" or not ids):
            ids.append(eos)
        if not ids:
            raise RewardError(
                f"reward {self.name!r} cannot score candidate {candidate.index}: its text has no "
                "tokens",
                hint="a tokenizer with an EOS token can score empty answers",
            )
        room = len(ids) if self.max_tokens is None else self.max_tokens - num_prompt_tokens
        if len(ids) > room:
            _LOG.warning(
                "reward %r reads %d tokens: the last %d of candidate %d are cut off",
                self.name,
                self.max_tokens,
                len(ids) - room,
                candidate.index,
            )
        return ids[:room]

    @torch.inference_mode()
    def _log_probs(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-probability of each answer after its prompt, in nats."""
        ids, mask = pad_right(
            [[*prompt_ids, *answer] for prompt_ids, answer in rows], self._network
        )
        # Padding stands on the right: the last positions, from the end of the shortest prompt on,
        # hold all answers.
        first = min(len(prompt_ids) for prompt_ids, _ in rows) - 1
        num_kept = ids.shape[1] - first
        few = {"logits_to_keep": num_kept} if self._keeps_few_logits else {}
        logits: Tensor = self._network(input_ids=ids, attention_mask=mask, **few).logits[
            :, -num_kept:
        ]
        totals = []
        for row, (prompt_ids, answer) in zip(logits, rows, strict=True):
            start = len(prompt_ids) - 1 - first
            scores = row[start : start + len(answer)].float()
            targets = torch.tensor(answer, device=scores.device)[:, None]
            log_probs = scores.gather(1, targets)[:, 0] - scores.logsumexp(dim=1)
            totals.append(math.fsum(log_probs.tolist()))
        return totals

    def _reduced(self, candidate: Candidate, num_tokens: int, total: float) -> float:
        if self._minus:
            total, num_tokens = math.fsum(candidate.logprobs) - total, len(candidate.logprobs)
        return total / num_tokens if self._reduce == "mean" else total


def parse_reference(argument: str = "") -> ReferenceReward:
    """`reference:MODEL` with the options `reduce` (mean or sum) and `minus=1`.

    Raises:
        UsageError: no model, or an option that is not known.
    """
    model, options = parse_options(argument, {"reduce": str, "minus": parse_flag})
    if not model:
        raise UsageError(
            "the reward 'reference' needs a model",
            hint="give it as reference:PATH_OR_ID?reduce=sum&minus=1",
        )
    return ReferenceReward(model, **options)
