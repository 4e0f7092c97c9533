"""Likelihood of prompt and answer together under a causal model: the paper's perplexity as a
reward.

    LikelihoodReward("org/model")             # mean log-probability of a token, in nats

The perplexity of prompt and answer is exp of minus that. As in Speculative Rejection (Sun et al.,
NeurIPS 2024, arXiv 2410.20290, Table 2) the mean is over every token after the first. A base model
reads BOS, the prompt and the answer. A model with a chat template reads both as one user message,
in its template, without the beginning of a reply.

The reward `logprob` costs nothing and has the answer's tokens alone; this one is a pass of the
model over prompt and answer at each decision.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from specrej.errors import PromptError, RewardError, UsageError
from specrej.flops import linear_flops
from specrej.hub.contents import ChatTokenizer
from specrej.hub.pretrained import LoadedModel
from specrej.hub.tokenizers import TextCodec
from specrej.rewards.base import StatelessSession
from specrej.rewards.pretrained import open_network, pad_right, score_by_length
from specrej.rewards.spec import parse_options
from specrej.rewards.together import alone, score_jointly
from specrej.types import Candidate, Message

_BATCH = 8


class LikelihoodReward:
    """Scores by the mean log-probability of prompt and answer, in nats.

    Attributes:
        name: `likelihood:MODEL`.
        flops_per_token: of its linear layers and its head; attention, which grows with the length,
            and padding are left out.
    """

    def __init__(self, model: str | Path | LoadedModel) -> None:
        """Open the model, or take over a loaded one and put it in evaluation mode.

        Args:
            model: a default generator's name, a Hugging Face id, a local directory, or a loaded
                model with its tokenizer.

        Raises:
            ModelError: the model cannot be opened.
        """
        self._network, self._tokenizer, source = open_network(
            model, AutoModelForCausalLM, "a causal language model", device=None, dtype=None
        )
        self._codec = TextCodec(self._tokenizer)
        self._chat = ChatTokenizer(self._tokenizer)
        self.flops_per_token: float | None = linear_flops(self._network)
        self.name = f"likelihood:{source}"

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt.

        Raises:
            PromptError: a model without a chat template meets a conversation.
        """
        if self._tokenizer.chat_template is None and len(messages) > 1:
            raise PromptError(
                f"the reward {self.name!r} has no chat template, so it cannot read a conversation",
                hint="give the prompt as a text",
            )
        return StatelessSession(messages, alone(self._score))

    def close(self) -> None:
        """Let the model go."""
        self._network = None

    def score_together(
        self, asked: Sequence[tuple[StatelessSession, Sequence[Candidate]]]
    ) -> list[Sequence[float]]:
        """Answers to several prompts, in batches of like length."""
        return score_jointly(asked, self._score)

    def _score(
        self, pairs: Sequence[tuple[Sequence[Message], Candidate]]
    ) -> tuple[list[float], list[int]]:
        rows = [self._encode(messages, candidate) for messages, candidate in pairs]
        lengths = [len(row) for row in rows]
        candidates = [candidate for _, candidate in pairs]

        def forward(batch: list[int]) -> list[float]:
            return self._means([rows[i] for i in batch])

        return score_by_length(self.name, candidates, lengths, _BATCH, forward), lengths

    def _encode(self, messages: Sequence[Message], candidate: Candidate) -> list[int]:
        """Token ids of prompt and answer, at least two."""
        *before, last = messages
        text = last["content"] + candidate.text
        if self._tokenizer.chat_template is None:
            ids = self._codec.encode(text)
            bos = self._tokenizer.bos_token_id
            if bos is not None and ids[:1] != [bos]:
                ids = [bos, *ids]
        else:
            whole = [*before, {"role": last["role"], "content": text}]
            ids = self._chat.ids(self._chat.write(whole))
        if len(ids) < 2:
            raise RewardError(
                f"reward {self.name!r} cannot score candidate {candidate.index}: prompt and answer "
                "are one token, and the first has no likelihood"
            )
        return ids

    @torch.inference_mode()
    def _means(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Mean log-probability of each row's tokens after the first."""
        ids, mask = pad_right(rows, self._network)
        logits = self._network(input_ids=ids, attention_mask=mask).logits
        means = []
        for row, tokens in zip(logits, rows, strict=True):
            scores = row[: len(tokens) - 1].float()
            targets = torch.tensor(tokens[1:], device=scores.device)[:, None]
            log_probs = scores.gather(1, targets)[:, 0] - scores.logsumexp(dim=1)
            means.append(float(log_probs.double().mean()))
        return means


def parse_likelihood(argument: str = "") -> LikelihoodReward:
    """The reward of `likelihood:MODEL`, which takes no options.

    Raises:
        UsageError: no model, or an option.
    """
    model, _ = parse_options(argument, {})
    if not model:
        raise UsageError(
            "the reward 'likelihood' needs a model", hint="give it as likelihood:PATH_OR_ID"
        )
    return LikelihoodReward(model)
