"""What a server has written of one answer, as tokens: with its ids, or with ours where it gives
only text.

answer = PartialAnswer(index=3)
answer.take(chunk, num_asked=32, vocabulary=vocabulary, by_text=False)
answer.ids, answer.finish, answer.lost
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specrej.engines.openai.replies import Chunk
from specrej.types import FinishReason, TopLogprobs

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ANCHORS = ("\n", "a", ".")
"""What a piece of text is put behind to be tokenized, so that it is not taken for the beginning
of a text."""


class Vocabulary:
    """A model's tokenizer, as the text that a server gives needs it.

    Args:
        tokenizer: of transformers.
        ends: tokens that end an answer, beside the tokenizer's own.
        size: number of tokens that the model knows, where that is known.
    """

    def __init__(self, tokenizer: Any, ends: Iterable[int] = (), size: int = 0) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.eos_token_id
        self.end: int | None = own if own is not None else next(iter(ends), None)
        self.ends = {*ends} if own is None else {own, *ends}
        self.size = max(len(tokenizer), size)

    def prompt_text(self, ids: Sequence[int]) -> str:
        """The text of a prompt, special tokens included; without the BOS that a server adds by
        itself.
        """
        added = self._tokenizer("")["input_ids"][:1]
        rest = ids[1:] if added and list(ids[:1]) == list(added) and added[0] != self.end else ids
        return self._text(rest)

    def ids_of(self, text: str) -> list[int]:
        """Tokens of a piece of text that follows another."""
        for anchor in _ANCHORS:
            before, both = self._ids(anchor), self._ids(anchor + text)
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._ids(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that follow others."""
        before = self._ids(_ANCHORS[0])
        return self._text([*before, *ids]).removeprefix(self._text(before))

    def is_like(self, text: str, ids: Sequence[int]) -> bool:
        """Whether a server's text may be that of these tokens."""
        ours = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return _REPLACEMENT in ours + text or ours.strip() == text.strip()

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


@dataclass(slots=True)
class PartialAnswer:
    """One candidate's answer, as far as the server has written it.

    Attributes:
        index: of the candidate.
        ids, logprobs, top_logprobs: one a token.
        text: of all of them, as the server wrote it.
        finish: why it ends behind the last of them; None where it goes on.
        lost: why nothing more will come; empty where it may.
        cause: what was raised then, if anything.
        request: number of the request that is under way, 0 where none is.
        position: tokens that its candidate was given.
        target: tokens that it has, or ends before, when no request is under way.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    text: str = ""
    finish: FinishReason | None = None
    lost: str = ""
    cause: Exception | None = None
    request: int = 0
    position: int = 0
    target: int = 0

    @property
    def is_done(self) -> bool:
        return self.finish is not None or bool(self.lost)

    def fork(self, index: int, vocabulary: Vocabulary) -> "PartialAnswer":
        """Another candidate's answer that begins with what this one's candidate was given."""
        num = self.position
        fork = PartialAnswer(
            index,
            self.ids[:num],
            self.logprobs[:num],
            self.top_logprobs[:num],
            self.text if num == len(self.ids) else vocabulary.text_of(self.ids[:num]),
            position=num,
            target=num,
        )
        if fork.text.endswith(_REPLACEMENT):
            fork.lost = "a copy begins within a character, which text cannot say"
        return fork

    def fail(self, failure: Exception) -> None:
        """Nothing more will come, because of this."""
        self.request, self.lost, self.cause = 0, str(failure), failure

    def take(
        self,
        chunk: Chunk,
        *,
        num_asked: int,
        vocabulary: Vocabulary,
        by_text: bool,
        prompt: str = "",
    ) -> None:
        """Add what came for `num_asked` tokens more, or note why it cannot be used.

        Args:
            chunk: what came.
            num_asked: tokens that it may have at most.
            vocabulary: the model's.
            by_text: whether the answer is continued as text; ids are then ours.
            prompt: the prompt's text, where the answer is continued as text.
        """
        num_given = (
            len(chunk.ids or ())
            if chunk.num_tokens is None
            else max(chunk.num_tokens, len(chunk.ids or ()))
        )
        if num_given > num_asked:
            self.lost = f"the server gave {num_given} tokens where it was asked for {num_asked}"
        elif prompt and chunk.text.startswith(prompt):
            self.lost = "the server repeated the prompt"
        elif chunk.ids is not None and (
            unknown := [one for one in chunk.ids if one >= vocabulary.size]
        ):
            self.lost = f"the server gave the token {unknown[0]}, which the tokenizer does not know"
        else:
            self._add(chunk, vocabulary, by_text)

    def _add(self, chunk: Chunk, vocabulary: Vocabulary, by_text: bool) -> None:
        piece = chunk.text.rstrip(_REPLACEMENT)  # half a character; the server writes it anew
        ids = vocabulary.ids_of(piece) if by_text or chunk.ids is None else list(chunk.ids)
        is_ours = by_text or chunk.ids is None
        if chunk.end == "stop":
            is_marked = (
                bool(ids)
                and not is_ours
                and (ids[-1] in vocabulary.ends or ids[-1] == chunk.matched)
            )
            if not is_marked and vocabulary.end is not None:
                ids.append(vocabulary.end)
            self.finish = "eos"
        if not ids:
            self.lost = "the server gave no token"
            return
        logprobs = (
            chunk.logprobs if len(chunk.logprobs) == len(chunk.ids or ids) and not is_ours else []
        )
        self.ids += ids
        top = chunk.top_logprobs if logprobs else []
        self.logprobs += [*logprobs, *[None] * (len(ids) - len(logprobs))]
        self.top_logprobs += [*top, *[()] * (len(ids) - len(top))]
        self.text += piece

    def cut(self, length: int) -> int:
        """Leave out what exceeds a length; the number of tokens that did."""
        surplus = max(len(self.ids) - length, 0)
        if surplus:
            del self.ids[length:], self.logprobs[length:], self.top_logprobs[length:]
            self.finish = None
        return surplus
