r"""A process reward model: every step of an answer gets a score, and the answer the least of them,
or another summary.

    ProcessReward("org/prm")  # steps end in a blank line, the weakest one counts
    ProcessReward("org/prm", step="\n", reduce="product")
    ProcessReward("org/prm", label="+")  # which label of the model means a good step

The model is a token classifier of transformers, in the format in which TRL trains them: the prompt,
then each step followed by the separator, each tokenized on its own. A step's score is the
probability of the good label at the last token of its separator. With two labels and none named,
the second is the good one, as TRL writes them; with one output the score is its sigmoid.

Of an unfinished answer the last step is left out while its separator has not come, unless it is the
only one: then it is closed as it stands. So what a partial answer is judged by does not change when
a step goes on, only when one ends. Blank steps are none. Nothing is kept between two decisions:
each reads the prompt again.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from transformers import AutoModelForTokenClassification

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.flops import linear_flops
from specrej.hub.contents import ChatTokenizer
from specrej.hub.pretrained import LoadedModel
from specrej.hub.template_parts import readable
from specrej.rewards.base import StatelessSession
from specrej.rewards.function import last_question
from specrej.rewards.labels import choose_output
from specrej.rewards.pretrained import open_network, pad_right, score_by_length, token_limit
from specrej.rewards.spec import check_sizes, parse_flag, parse_options
from specrej.rewards.together import alone, score_jointly
from specrej.types import Candidate, Message

_LOG = logging.getLogger("specrej")

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "last": lambda scores: scores[-1],
}
"""What an answer gets for the scores of its steps, which lie in [0, 1]."""


@dataclass(frozen=True, slots=True)
class SteppedAnswer:
    """An answer as the model reads it: token ids, the prompt's included, and the positions where
    steps end.
    """

    token_ids: list[int]
    ends: list[int]


class ProcessReward:
    """Scores the steps of an answer with a token classifier.

    Attributes:
        name: `process:MODEL`, with the options that differ from the defaults.
        flops_per_token: of its linear layers; attention, which grows with the length, and padding
            are left out.
        max_tokens: tokens of prompt and answer that are read; steps that end behind are not scored.
            None reads all.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        step: str = "\n\n",
        reduce: str = "min",
        label: str | int | None = None,
        template: bool = False,
        batch_size: int = 16,
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        r"""Open the model, or take over a loaded one and put it in evaluation mode.

        Args:
            model: a Hugging Face id, a local directory, or a loaded model with its tokenizer.
            step: what parts two steps, as in training; TRL's default there is "\n".
            reduce: "min", "product", "mean" or "last".
            label: which output means a good step, by the model's name for it or by number.
            template: write the conversation with the model's chat template; else the prompt is its
                last question as plain text behind the BOS token, as TRL trains.
            batch_size: answers in a forward pass.
            max_tokens: by default what the model and its tokenizer can take.
            device: by default CUDA where there is some, else the CPU. Not for a loaded model.
            dtype: by default float32 on the CPU, that of the checkpoint elsewhere. Not for a loaded
                model.

        Raises:
            ModelError: the model cannot be opened, or its checkpoint has no weights for the head.
            UnknownNameError: no such reduction or label.
            UsageError: a separator without tokens, more than two outputs and no label, a size below
                1, no chat template, or device or dtype for a loaded model.
        """
        if reduce not in REDUCTIONS:
            raise UnknownNameError("reduction of the process reward", reduce, REDUCTIONS)
        check_sizes(batch_size=batch_size, max_tokens=max_tokens)
        self._network, self._tokenizer, source = open_network(
            model, AutoModelForTokenClassification, "a token classifier", device=device, dtype=dtype
        )
        self._chat = ChatTokenizer(self._tokenizer)
        # The separator is what the model was trained with, and may be a special token.
        self._separator_ids = self._chat.ids(step)
        if not self._separator_ids:
            raise UsageError(
                f"the step separator {step!r} has no tokens in {source!r}", hint="give another one"
            )
        if template and self._tokenizer.chat_template is None:
            raise UsageError(f"{source!r} has no chat template", hint="leave out template")
        labels = self._network.config.id2label
        self.output = (
            1 if label is None and len(labels) == 2 else choose_output(source, labels, label)
        )
        self.flops_per_token: float | None = linear_flops(self._network)
        self.max_tokens = max_tokens or token_limit(self._network, self._tokenizer)
        self._step, self._reduce = step, REDUCTIONS[reduce]
        self._template, self._batch_size = template, batch_size
        self.name = _name(source, step, reduce, label, template)

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt.

        Raises:
            PromptError: the prompt leaves no room for a step, or the chat template refuses it.
        """
        prompt_ids = self._encode_prompt(messages)
        if self.max_tokens is not None and len(prompt_ids) >= self.max_tokens:
            raise PromptError(
                f"the prompt takes {len(prompt_ids)} tokens of the reward {self.name!r}, which "
                "reads "
                f"{self.max_tokens}: it would see no answer",
                hint="shorten the prompt, or choose a reward that reads more",
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

    def _encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        if not self._template:
            bos = self._tokenizer.bos_token_id
            return [*([] if bos is None else [bos]), *self._tokenize(last_question(messages))]
        try:
            written = self._chat.write(readable(self._chat, messages), add_generation_prompt=True)
        except Exception as error:
            raise PromptError(
                f"the chat template of reward {self.name!r} refuses the prompt: {error}"
            ) from error
        return self._chat.ids(written)

    def _tokenize(self, text: str) -> list[int]:
        return self._chat.ids(self._chat.content(text))

    def _score(self, pairs: Sequence[tuple[list[int], Candidate]]) -> tuple[list[float], list[int]]:
        rows = [self._lay_out(prompt_ids, candidate) for prompt_ids, candidate in pairs]
        lengths = [len(row.token_ids) for row in rows]

        def forward(batch: list[int]) -> list[float]:
            return [self._reduce(scores) for scores in self._step_scores([rows[i] for i in batch])]

        candidates = [candidate for _, candidate in pairs]
        return score_by_length(self.name, candidates, lengths, self._batch_size, forward), lengths

    def _lay_out(self, prompt_ids: list[int], candidate: Candidate) -> SteppedAnswer:
        token_ids, ends = list(prompt_ids), []
        for step in split_steps(
            candidate.text, self._step, is_finished=candidate.finish_reason is not None
        ):
            token_ids += [*self._tokenize(step), *self._separator_ids]
            ends.append(len(token_ids) - 1)
        if self.max_tokens is None or len(token_ids) <= self.max_tokens:
            return SteppedAnswer(token_ids, ends)
        _LOG.warning(
            "reward %r reads %d tokens: the last %d of candidate %d are cut off",
            self.name,
            self.max_tokens,
            len(token_ids) - self.max_tokens,
            candidate.index,
        )
        # A first step that is too long by itself is judged where the cut is.
        inside = [end for end in ends if end < self.max_tokens] or [self.max_tokens - 1]
        return SteppedAnswer(token_ids[: self.max_tokens], inside)

    @torch.inference_mode()
    def _step_scores(self, rows: Sequence[SteppedAnswer]) -> list[list[float]]:
        """Probability of the good label for every step of each row."""
        ids, mask = pad_right([row.token_ids for row in rows], self._network)
        logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        is_single = logits.shape[-1] == 1
        probabilities = logits.sigmoid() if is_single else logits.softmax(dim=-1)
        good = probabilities[:, :, self.output]
        return [good[i, row.ends].tolist() for i, row in enumerate(rows)]


def split_steps(text: str, separator: str, *, is_finished: bool) -> list[str]:
    """The steps of an answer, at least one; see the module's docstring on the last step of an
    unfinished one.
    """
    *ended, last = text.split(separator)
    steps = [step for step in ended if step.strip()]
    if last.strip() and (is_finished or not steps):
        steps.append(last)
    return steps or [""]


def _name(source: str, step: str, reduce: str, label: str | int | None, template: bool) -> str:
    options = {
        "step": None if step == "\n\n" else quote(step, safe=" "),
        "reduce": None if reduce == "min" else reduce,
        "label": label,
        "template": 1 if template else None,
    }
    given = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
    return f"process:{source}" + (f"?{given}" if given else "")


def parse_process(argument: str = "") -> ProcessReward:
    """`process:MODEL` with the options `step` (%0A is a line break), `reduce`, `label` and
    `template=1`.

    Raises:
        UsageError: no model, or an option that is not known.
    """
    model, options = parse_options(
        argument, {"step": str, "reduce": str, "label": str, "template": parse_flag}
    )
    if not model:
        raise UsageError(
            "the reward 'process' needs a model",
            hint="give it as process:PATH_OR_ID?step=%0A%0A&reduce=min",
        )
    return ProcessReward(model, **options)
