"""Token ids to text, one by one, so that text which was shown is never taken back.

    decoder = StreamDecoder(Pieces(tokenizer), continues=False)
    shown = "".join(decoder.add(token_id).text for token_id in token_ids)

For valid text this is `tokenizer.decode(token_ids, skip_special_tokens=True)`, for whatever
tokenizer. Where tokens stand for bytes, they are read as UTF-8. A character is shown with its last
byte. Bytes that no character begins with, or continues with, are one U+FFFD as soon as that is
certain, as Unicode recommends. Tokenizers that fall back to bytes would make each byte of such a
run a U+FFFD, those of whole characters in it as well.
"""

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from specrej.hub.thinking import Thinking
from specrej.hub.tool_formats import ToolForm
from specrej.types import Piece

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHORS = ("a", "1", ".", "\n")
"""Texts that an answer may be thought to go on from."""
_MOST_HELD = 16
"""Tokens that are waited for at most where nothing is known of their bytes: far more than a
character has."""
_utf8 = getincrementaldecoder("utf-8")


class _Kind(NamedTuple):
    """What a token is: special, bytes, or else a text that may depend on the token before."""

    special: str
    """How a special token is spelled; empty for others."""
    raw: bytes | None


class Pieces:
    """What the tokens of one tokenizer stand for.

    Args:
        tokenizer: of transformers, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _alphabet() if _is_byte_level(tokenizer) else None
        self.kind = lru_cache(maxsize=None)(self._kind)
        self.between = lru_cache(maxsize=2**16)(self._between)

    def __reduce__(self) -> tuple[type["Pieces"], tuple[Any]]:
        """What was looked up stays here; an engine that is sent to another process looks it up
        anew.
        """
        return Pieces, (self._tokenizer,)

    @cached_property
    def anchor(self) -> int | None:
        """A token with a text of its own, for what an answer goes on from; None where there is
        none.
        """
        found = [
            self._tokenizer(text, add_special_tokens=False)["input_ids"][-1:] for text in _ANCHORS
        ]
        return next((ids[0] for ids in found if ids and self._text(ids).strip()), None)

    def _kind(self, token_id: int) -> _Kind:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # the model knows more tokens than the tokenizer
            return _Kind("", b"")
        alone = self._text([token_id])
        if not alone and self._text([token_id], skips=False):
            return _Kind(token, None)
        if self._alphabet is not None:
            is_known = all(character in self._alphabet for character in token)
            return _Kind(
                "", bytes(map(self._alphabet.__getitem__, token)) if is_known else token.encode()
            )
        match = _BYTE.fullmatch(token)
        return _Kind("", bytes.fromhex(match[1]) if match and token not in alone else None)

    def _between(self, context: int | None, token_ids: tuple[int, ...]) -> str:
        """The text of tokens that follow another, or of the first ones."""
        if context is None:
            return self._text(token_ids)
        return self._text([context, *token_ids])[len(self._text([context])) :]

    def _text(self, token_ids: Sequence[int], *, skips: bool = True) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=skips, clean_up_tokenization_spaces=False
        )
        return text


class StreamDecoder:
    """Reads the tokens of one answer: a `Detokenizer`.

    Args:
        pieces: of the tokenizer.
        continues: whether the answer goes on from a text. Its first space is kept then, which some
            tokenizers leave out at the beginning of a text.
        tool_form: how calls stand in the answer, where functions may be called.
        thinking: how thoughts stand in it. Its marks are text, also where they are special tokens.
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        continues: bool,
        tool_form: ToolForm | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        self.tool_form = tool_form
        self.thinking = thinking
        self._marks = () if thinking is None else (thinking.opening, thinking.closing)
        self._pieces = pieces
        self._context = pieces.anchor if continues else None
        """The token before; None at the beginning of a text."""
        self._bytes = _utf8("replace")
        self._held: tuple[int, ...] = ()
        """Tokens behind the context whose text ends in what may become a character."""
        self._num_shown = 0
        """Characters of their text that were shown."""

    def add(self, token_id: int) -> Piece:
        """Read the next token."""
        special, raw = self._pieces.kind(token_id)
        if special in self._marks:
            return Piece(self._release() + self._bytes.decode(b"", final=True) + special)
        if special:
            return Piece("", special)
        # At the beginning, a byte that is a space is left out where a space is.
        if raw is None or (raw == b" " and self._context is None):
            return Piece(self._bytes.decode(b"", final=True) + self._add_text(token_id))
        text = self._release() + self._read(raw)
        if raw:
            self._context = token_id
        return Piece(text)

    def _read(self, raw: bytes) -> str:
        """The characters that these bytes complete."""
        text = self._bytes.decode(raw)
        pending, _ = self._bytes.getstate()
        # Python waits for the end of half a surrogate (ED A0 to ED BF), which no text holds.
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            text += self._bytes.decode(b"", final=True)
        return text

    def _add_text(self, token_id: int) -> str:
        held = (*self._held, token_id)
        text = self._pieces.between(self._context, held)
        safe = text.rstrip(_REPLACEMENT) if len(held) <= _MOST_HELD else text
        shown = safe[self._num_shown :]
        if len(safe) == len(text):
            self._context, self._held, self._num_shown = token_id, (), 0
        else:
            self._held, self._num_shown = held, max(self._num_shown, len(safe))
        return shown

    def _release(self) -> str:
        """The rest of what was held: no character comes of it."""
        if not self._held:
            return ""
        rest = self._pieces.between(self._context, self._held)[self._num_shown :]
        self._held, self._num_shown = (), 0
        return rest


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether every token is bytes in GPT-2's alphabet."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    names = {step["type"] for step in state.get("decoders", [state])}
    return "ByteLevel" in names and names <= {"ByteLevel", "Fuse"}


def _alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from
    U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
