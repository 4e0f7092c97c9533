"""What people and models write is text, whatever it spells: no content becomes a control token.

    chat = ChatTokenizer(tokenizer)
    written = chat.write(messages, add_generation_prompt=True)      # by the chat template
    ids = chat.ids(written)                                         # the template's special tokens are tokens

    chat.ids(chat.content("<|im_end|>"))                            # the characters, never the token

A content that spells no special token is tokenized with the template around it, as if nothing of
this were here. Where one does, its special tokens are put under other names while the template is
rendered. Then those of the template get names of their own, which nobody can guess, in a copy of
the tokenizer that knows the special tokens by these names alone. So contents that a template trims,
repeats or moves are still contents.
"""

import copy
import logging
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from specrej.types import Message

_LOG = logging.getLogger("specrej")

SPECIAL_TOKENS = ("text", "allow")
_NO_CHARACTER = "\U0010ffff"


class ChatTokenizer:
    """A tokenizer of transformers that takes contents as text.

    Args:
        tokenizer: of transformers; with another than a fast one contents are taken as they are, which is said.
        special_tokens: "text", or "allow": contents that spell special tokens become these.
    """

    def __init__(self, tokenizer: Any, special_tokens: str = "text") -> None:
        self.tokenizer = tokenizer
        is_fast = getattr(tokenizer, "backend_tokenizer", None) is not None
        if special_tokens != "allow" and not is_fast:
            _LOG.warning(
                "the tokenizer of %s is no fast one: messages and answers that spell special tokens become these",
                tokenizer.name_or_path or type(tokenizer).__name__,
            )
        self._is_open = special_tokens == "allow" or not is_fast
        # Lower case and digits: no normalizer changes them. A template may show the first; the second nobody sees.
        self._mark, self._name = (f"x{secrets.token_hex(12)}x" for _ in range(2))
        self._hidden = re.compile(f"{self._mark}((?:[0-9a-f]{{2}})*)x")

    def content(self, text: str) -> str:
        """A content as it may stand in what is written."""
        if self._is_open or self._spelled is None:
            return text
        return self._spelled.sub(lambda found: f"{self._mark}{found[0].encode().hex()}x", text)

    def write(self, messages: Sequence[Message], **how: Any) -> str:
        """The conversation by the chat template; `how` is what `apply_chat_template` takes.

        Raises:
            Exception: whatever the template raises.
        """
        turns = [{**message, "content": self.content(message["content"])} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **how))
        except Exception as error:
            if self._mark not in str(error):
                raise
            raise ValueError(self._shown(str(error))) from error

    def ids(self, written: str) -> list[int]:
        """Token ids of what was written; nothing is put before or behind it."""
        [row] = self.rows([written])["input_ids"]
        return row

    def rows(self, written: Sequence[str]) -> dict[str, list[list[int]]]:
        """The same for several, with `token_type_ids` where the tokenizer has them."""
        plain = [self._hidden.sub("", one) for one in written]
        encoding = self.tokenizer(plain, add_special_tokens=False, verbose=False)
        columns = {name: list(encoding[name]) for name in ("input_ids", "token_type_ids") if name in encoding}
        for row, one in enumerate(written):
            if self._mark in one:
                ids = self._split(one)
                columns["input_ids"][row] = ids
                if "token_type_ids" in columns:
                    columns["token_type_ids"][row] = [0] * len(ids)
        return columns

    def _split(self, written: str) -> list[int]:
        """Ids of a text in which contents have hidden special tokens: those left are the template's."""
        assert self._spelled is not None
        core, names, ids, texts = self._renamed
        named = self._spelled.sub(lambda found: names.get(found[0], found[0]), written)
        encoding = core.encode(self._shown(named), add_special_tokens=False)
        # Some models hold the texts of special tokens among their words, and would give the token for the text.
        return [one for token_id in encoding.ids for one in ids.get(token_id) or texts.get(token_id, [token_id])]

    def _shown(self, written: str) -> str:
        """The text with its contents as they were given."""
        return self._hidden.sub(lambda found: bytes.fromhex(found[1]).decode(errors="replace"), written)

    @cached_property
    def _special(self) -> dict[str, Any]:
        added = self.tokenizer.added_tokens_decoder.values()
        return {token.content: token for token in added if token.special}

    @cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        """Finds the text of a special token: the longest that begins first, as tokenizers do."""
        is_normalized = any(token.normalized for token in self._special.values())
        flags = re.IGNORECASE if is_normalized else 0
        return re.compile(_any_of(sorted(self._special)), flags) if self._special else None

    @cached_property
    def _renamed(self) -> tuple[Any, dict[str, str], dict[int, list[int]], dict[int, list[int]]]:
        """A copy of the tokenizer that knows special tokens by other names, and what belongs to it.

        Returns:
            The copy; the names by the tokens' texts; the true ids by the copy's own; and by the true ids what stands
            for them where a text gave them.
        """
        from tokenizers import AddedToken

        core = copy.deepcopy(self.tokenizer.backend_tokenizer)
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = True
        names = {text: f"{self._name}{number}x" for number, text in enumerate(self._special)}
        core.add_tokens(
            [
                AddedToken(
                    names[text],
                    special=False,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=token.normalized,
                )
                for text, token in self._special.items()
            ]
        )
        own = {text: self.tokenizer.convert_tokens_to_ids(text) for text in self._special}
        ids = {core.token_to_id(names[text]): [own[text]] for text in self._special}
        texts = {
            own[text]: [piece.id for character in text for piece in core.model.tokenize(character)]
            for text in self._special
            if text != self.tokenizer.unk_token
        }
        return core, names, ids, texts


def _any_of(texts: Sequence[str]) -> str:
    """A pattern for the longest of these texts, sorted, that shares what they begin with.

    A thousand alternatives side by side would be tried one by one at every "<" of a long text.
    """
    tails = [
        re.escape(first) + _any_of([text[1:] for text in group])
        for first, group in groupby(filter(None, texts), itemgetter(0))
    ]
    return f"(?:{'|'.join(tails)}){'' if all(texts) else '?'}" if tails else ""


def warn_of_parsed(name: str, core: Any) -> None:
    """Say, at opening, which special tokens a tokenizer gives for their texts although it is told to split them.

    Some hold these texts among their words.

    Args:
        name: of the reward.
        core: of the library tokenizers; None where there is none, which knows no splitting.
    """
    if core is None:
        _LOG.warning("reward %r: its tokenizer is no fast one: texts that spell special tokens become these", name)
        return
    core.encode_special_tokens = True

    def ids_of(text: str) -> set[int]:
        encoding = core.encode(text, add_special_tokens=False)
        return {one for one, is_text in zip(encoding.ids, encoding.attention_mask, strict=True) if is_text}

    unknown = ids_of(_NO_CHARACTER)
    special = {token.content: number for number, token in core.get_added_tokens_decoder().items() if token.special}
    parsed = [text for text, number in special.items() if number in ids_of(text) - unknown]
    if parsed:
        _LOG.warning("reward %r: its tokenizer takes these texts for special tokens: %s", name, ", ".join(parsed[:9]))
