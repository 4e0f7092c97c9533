"""Conversations as a reward model with a tokenizer of its own reads them: written out, tokenized,
cut to its length.

    reader = ConversationReader("org/model", tokenizer, max_tokens=4096, partial="closed")
    [row] = reader.rows(messages, [candidate])
    row["input_ids"]

Text only goes in, never the generator's token ids: the tokenizers differ. The conversation is
written by the reward model's own chat template; a tokenizer without one (a cross-encoder) gets the
last question and the answer as a pair.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NoReturn, get_args

from specrej.errors import PromptError, RewardError, UnknownNameError, UsageError
from specrej.hub.contents import ChatTokenizer, warn_of_parsed
from specrej.hub.template_parts import readable
from specrej.rewards.function import last_question
from specrej.rewards.spec import check_sizes
from specrej.types import Candidate, Message

_log = logging.getLogger("specrej")

Encoded = dict[str, list[int]]
"""One conversation as the model reads it: `input_ids`, and `token_type_ids` where the model
takes them."""
Partial = Literal["open", "closed"]
"""How an unfinished answer is shown: with nothing behind it, as while it is being written, or as if
it were complete.

Answers that ended by themselves are shown as ended either way; one that was cut off at its length
limit counts as unfinished.
"""

_MARK = "an answer that nobody gives"
_SHORT_ANSWERS = (Candidate(index=0), Candidate(index=0, text="x"))
"""What these conversations begin with in common stands before the answer, but where a tokenizer
joins the two."""


@dataclass(frozen=True)
class ConversationReader:
    """Writes out and tokenizes conversations. No text in them becomes a special token, whatever it
    spells.

    Attributes:
        name: of the reward, for messages.
        tokenizer: of transformers.
        max_tokens: of a conversation; a longer one loses the end of its answer. None reads all.
        partial: how an unfinished answer is shown.
        takes_types: whether the model takes `token_type_ids`.

    Raises:
        UsageError: an open answer for a tokenizer without a chat template.
    """

    name: str
    tokenizer: Any
    max_tokens: int | None
    partial: Partial
    takes_types: bool = False

    def __post_init__(self) -> None:
        if self.partial == "open" and not self.has_template:
            raise UsageError(
                f"the tokenizer of the reward {self.name!r} has no chat template: it cannot show "
                "an answer as "
                "unfinished",
                hint="leave partial='closed'",
            )
        if self.has_template:
            _ = self._chat  # says at once what it cannot do
        else:
            warn_of_parsed(self.name, getattr(self.tokenizer, "backend_tokenizer", None))

    @property
    def has_template(self) -> bool:
        """Whether conversations are written by a chat template."""
        return self.tokenizer.chat_template is not None

    @cached_property
    def _chat(self) -> ChatTokenizer:
        return ChatTokenizer(self.tokenizer)

    def shortest(self, messages: Sequence[Message]) -> list[list[int]]:
        """Token ids of the prompt with two very short answers: what they begin with in common is
        the prompt's.

        Raises:
            PromptError: the prompt alone is longer than what the model reads, so that no answer
                would be seen.
            RewardError: the chat template refuses the conversation, or does not show where an open
                answer ends.
        """
        shortest = [row["input_ids"] for row in self._encode(messages, _SHORT_ANSWERS)]
        num_tokens = len(shortest[0])
        if self.max_tokens is not None and num_tokens >= self.max_tokens:
            raise PromptError(
                f"the prompt takes {num_tokens} tokens of the reward {self.name!r}, which reads "
                f"{self.max_tokens}: "
                "it would see no answer",
                hint="shorten the prompt, or choose a reward that reads more",
            )
        return shortest

    def rows(self, messages: Sequence[Message], candidates: Sequence[Candidate]) -> list[Encoded]:
        """Each candidate's conversation; what is cut off is said in the log.

        Raises:
            RewardError: the chat template refuses the conversation, or does not show where an open
                answer ends.
        """
        rows = self._encode(messages, candidates)
        return [
            self._cut(messages, candidate, row)
            for candidate, row in zip(candidates, rows, strict=True)
        ]

    def rows_of_prompts(
        self, pairs: Sequence[tuple[Sequence[Message], Candidate]]
    ) -> list[Encoded]:
        """The same for candidates of several prompts, those of one prompt side by side."""
        rows: list[Encoded] = []
        for messages, of_prompt in groupby(pairs, itemgetter(0)):
            rows += self.rows(messages, [candidate for _, candidate in of_prompt])
        return rows

    def _encode(
        self, messages: Sequence[Message], candidates: Sequence[Candidate]
    ) -> list[Encoded]:
        """Token ids of each conversation, uncut."""
        texts = [candidate.text for candidate in candidates]
        if not self.has_template:
            return self._as_rows(
                self.tokenizer(
                    [last_question(messages)] * len(texts),
                    texts,
                    split_special_tokens=True,
                    verbose=False,
                )
            )
        messages = readable(self._chat, messages)
        rendered = [self._render(messages, text) for text in texts]
        if self.partial == "open":
            ending = self._ending(messages)
            for i, candidate in enumerate(candidates):
                if candidate.finish_reason in (None, "length"):
                    rendered[i] = self._without(ending, rendered[i])
        # The template has written the special tokens already.
        return self._as_rows(self._chat.rows(rendered))

    def _render(self, messages: Sequence[Message], text: str) -> str:
        try:
            return self._chat.write([*messages, {"role": "assistant", "content": text}])
        except Exception as exc:
            raise RewardError(
                f"the chat template of reward {self.name!r} refuses the conversation: "
                f"{type(exc).__name__}: {exc}",
                hint="see which roles the reward model was trained with",
            ) from exc

    def _ending(self, messages: Sequence[Message]) -> str:
        """What the template writes behind an answer."""
        _, answer, ending = self._render(messages, _MARK).rpartition(_MARK)
        return ending if answer else self._no_end()

    def _without(self, ending: str, rendered: str) -> str:
        return rendered.removesuffix(ending) if rendered.endswith(ending) else self._no_end()

    def _no_end(self) -> NoReturn:
        raise RewardError(
            f"the chat template of reward {self.name!r} does not show where an answer ends",
            hint="give partial='closed'",
        )

    def _as_rows(self, encoding: Any) -> list[Encoded]:
        names = ["input_ids"]
        if self.takes_types and "token_type_ids" in encoding:
            names.append("token_type_ids")
        return [
            dict(zip(names, columns, strict=True))
            for columns in zip(*(encoding[name] for name in names), strict=True)
        ]

    def _cut(self, messages: Sequence[Message], candidate: Candidate, row: Encoded) -> Encoded:
        """The row, without the end of its answer where it is too long."""
        num_cut = len(row["input_ids"]) - (self.max_tokens or len(row["input_ids"]))
        if num_cut <= 0:
            return row
        _log.warning(
            "reward %r reads %d tokens: the last %d of candidate %d are cut off",
            self.name,
            self.max_tokens,
            num_cut,
            candidate.index,
        )
        if self.has_template:
            return {name: values[: self.max_tokens] for name, values in row.items()}
        # A pair ends in special tokens, which stay: its tokenizer cuts before them.
        pair = self.tokenizer(
            [last_question(messages)],
            [candidate.text],
            truncation="only_second",
            max_length=self.max_tokens,
            split_special_tokens=True,
            verbose=False,
        )
        return self._as_rows(pair)[0]


def check_options(partial: str, memory_bytes: int | None, **sizes: int | None) -> None:
    """What can be said of a reward model's options before it is opened, which takes time.

    Raises:
        UnknownNameError: no such way to show a partial answer.
        UsageError: a size below 1, or a negative memory.
    """
    if partial not in get_args(Partial):
        raise UnknownNameError("way to show a partial answer", partial, get_args(Partial))
    if memory_bytes is not None and memory_bytes < 0:
        raise UsageError(f"memory_bytes must be at least 0, got {memory_bytes!r}")
    check_sizes(**sizes)


def name_of(kind: str, source: str, label: str | int | None, partial: Partial) -> str:
    """What a reward model is called, as `as_reward` reads it."""
    return (
        f"{kind}:{source}"
        + ("" if label is None else f"#{label}")
        + ("?partial=open" if partial == "open" else "")
    )


def until_pooled(ids: list[int], pad_token_id: int | None) -> list[int]:
    """The ids up to the one at which transformers scores this conversation alone: what follows
    changes nothing.
    """
    stop = len(ids)
    while stop > 1 and ids[stop - 1] == pad_token_id:
        stop -= 1
    return ids[:stop]
