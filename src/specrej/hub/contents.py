"""What people and models write is text, whatever it spells: no content becomes a control token.

    chat = ChatTokenizer(tokenizer)
    written = chat.write(messages, add_generation_prompt=True)      # by the chat template
    ids = chat.ids(written)  # the template's special tokens are tokens

    chat.ids(chat.content("<|im_end|>"))  # the characters, never the token

Every special token has a character that marks it, such as the bar of "<|im_end|>". While the
template is rendered, these marks are hidden in contents: other characters stand for them, one for
one, so that a template may trim, repeat, cut or turn contents. Special tokens that are found then
are the template's. If the text with its contents shown has the same ones, its ids are taken as they
are. Otherwise the template's get names that nobody can guess, in a copy of the tokenizer that knows
special tokens by these names alone.
"""

import copy
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from specrej.errors import PromptError
from specrej.types import Message

_LOG = logging.getLogger("specrej")

SPECIAL_TOKENS = ("text", "allow")
_NO_CHARACTER = "\U0010ffff"
_NONE: Mapping[str, Any] = {}

# Planes 0 and 1 are hidden in planes 12 and 13, which have no characters.
# Where a content holds such code points itself, five hidden digits stand for them.
_SHIFT = 0xC0000
_LEAD = chr(_SHIFT + 0xFFFF)
_DIGITS = {chr(_SHIFT + ord(digit)): digit for digit in "0123456789abcdef"}
_UNASSIGNED = re.compile("[\U000c0000-\U000dffff\uffff]")
_HIDDEN = re.compile(f"{_LEAD}([{''.join(_DIGITS)}]{{5}})|[\U000c0000-\U000dffff]")


def _hide(found: re.Match[str]) -> str:
    return "".join(map(_hidden, found[0]))


def _hidden(character: str) -> str:
    code = ord(character)
    if _UNASSIGNED.match(character):
        return _LEAD + "".join(map(_hidden, f"{code:05x}"))
    return chr(_SHIFT + code) if code < 0x20000 else character


def _shown(written: str) -> str:
    """The text with its contents as they were given."""
    return _HIDDEN.sub(_show, written)


def _show(found: re.Match[str]) -> str:
    if found[1] is None:
        return chr(ord(found[0]) - _SHIFT)
    return chr(int("".join(_DIGITS[digit] for digit in found[1]), 16))


class ChatTokenizer:
    """A tokenizer of transformers that takes contents as text.

    Args:
        tokenizer: of transformers; with another than a fast one contents are taken as they are,
            which is said.
        special_tokens: "text", or "allow": contents that spell special tokens become these.
    """

    def __init__(self, tokenizer: Any, special_tokens: str = "text") -> None:
        self.tokenizer = tokenizer
        is_fast = getattr(tokenizer, "backend_tokenizer", None) is not None
        if special_tokens != "allow" and not is_fast:
            _LOG.warning(
                "the tokenizer of %s is no fast one: messages and answers that spell special "
                "tokens become these",
                tokenizer.name_or_path or type(tokenizer).__name__,
            )
        self._is_open = special_tokens == "allow" or not is_fast or not self._special
        self._name = f"x{secrets.token_hex(12)}x"

    def content(self, text: str) -> str:
        """A content as it may stand in what is written."""
        if self._is_open:
            return text
        hidden = self._marks.sub(_hide, _UNASSIGNED.sub(_hide, text))
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is not None and self._marks.search(normalizer.normalize_str(hidden)):
            # It would make marks of other characters, such as the wide ones of East Asia. What JSON
            # escapes is seen by templates that write it.
            hidden = re.sub(r"[^\s\"\\]", _hide, text)
        return hidden

    def write(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] = _NONE,
        **how: bool,
    ) -> str:
        """The conversation by the chat template.

        Args:
            messages: checked; see `specrej.messages`.
            tools: see `Conversation`. Whatever texts they hold are contents.
            arguments: the same for its `template_arguments`.
            how: what `apply_chat_template` takes beside them.

        Raises:
            PromptError: the template makes what cannot be told from its own of contents that spell
                special tokens.
            Exception: whatever the template raises.
        """
        turns = _for_template(messages)
        plain = self._render(turns, tools, arguments, how)
        hidden = [{**self._values(turn), "role": turn["role"]} for turn in turns]
        hidden_tools, values = [self._hidden(tool) for tool in tools], self._values(arguments)
        if (hidden, hidden_tools, values) == (turns, list(tools), arguments):
            return plain
        try:
            written = self._render(hidden, hidden_tools, values, how)
        except Exception as error:
            raise ValueError(_shown(str(error))) from error
        shown = _shown(written)
        if shown == plain:
            return written
        # The template looked at the marks, as those do that leave out what stands before
        # "</think>".
        if self._is_honest(plain, self._ids(plain), written):
            return _UNASSIGNED.sub(_hide, plain)
        if Counter(self._marks.findall(plain)) - Counter(self._marks.findall(shown)):
            raise _refusal()
        return written

    def ids(self, written: str) -> list[int]:
        """Token ids of what was written; nothing is put before or behind it.

        Raises:
            PromptError: special tokens cannot be kept out of its contents.
        """
        [row] = self.rows([written])["input_ids"]
        return row

    def rows(self, written: Sequence[str]) -> dict[str, list[list[int]]]:
        """The same for several, with `token_type_ids` where the tokenizer has them."""
        plain = list(written) if self._is_open else [_shown(one) for one in written]
        encoding = self.tokenizer(plain, add_special_tokens=False, verbose=False)
        columns = {
            name: list(encoding[name])
            for name in ("input_ids", "token_type_ids")
            if name in encoding
        }
        for row, (text, one) in enumerate(zip(plain, written, strict=True)):
            if text != one and not self._is_honest(text, columns["input_ids"][row], one):
                ids = self._split(one)
                columns["input_ids"][row] = ids
                if "token_type_ids" in columns:
                    columns["token_type_ids"][row] = [0] * len(ids)
        return columns

    def _hidden(self, value: Any) -> Any:
        """A value of JSON's types with all its texts as contents, those that are names included."""
        if isinstance(value, str):
            return self.content(value)
        if isinstance(value, Mapping):
            return {self.content(name): self._hidden(one) for name, one in value.items()}
        return [self._hidden(one) for one in value] if isinstance(value, list | tuple) else value

    def _values(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by the names that the template knows, with their values hidden."""
        return {name: self._hidden(value) for name, value in arguments.items()}

    def _render(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any],
        arguments: Mapping[str, Any],
        how: Mapping[str, bool],
    ) -> str:
        written = self.tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, tokenize=False, **arguments, **how
        )
        return str(written)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _is_honest(self, text: str, ids: Sequence[int], written: str) -> bool:
        """Whether the special tokens of a text, with these ids, are those of the same with its
        contents hidden.
        """
        of_template = [token_id for token_id, _, _ in self._found(written)]
        of_text = [token_id for token_id, _, _ in self._found(text)]
        return of_text == of_template and self._control(ids) == self._control(of_template)

    def _control(self, ids: Sequence[int]) -> list[int]:
        texts = self._renamed[3]
        return [one for one in ids if one in texts]

    def _split(self, written: str) -> list[int]:
        """Ids of a text whose contents are hidden: the special tokens that are found in it are
        the template's.
        """
        core, names, own, texts = self._renamed
        found = self._found(written)
        parts, done = [], 0
        for token_id, start, stop in found:
            parts += [_shown(written[done:start]), names[token_id]]
            done = stop
        encoding = core.encode("".join([*parts, _shown(written[done:])]), add_special_tokens=False)
        # Some models hold the texts of special tokens among their words, and would give the token
        # for the text.
        ids = [
            one
            for token_id in encoding.ids
            for one in own.get(token_id) or texts.get(token_id, [token_id])
        ]
        if self._control(ids) != self._control([token_id for token_id, _, _ in found]):
            raise _refusal()
        return ids

    def _found(self, text: str) -> list[tuple[int, int, int]]:
        """Special tokens of a text, each with where it starts and stops, with the blanks that it
        takes in.
        """
        scanner, ids = self._scanner
        encoding = scanner.encode(text, add_special_tokens=False)
        return [
            (ids[one], *place)
            for one, place in zip(encoding.ids, encoding.offsets, strict=True)
            if one in ids
        ]

    @cached_property
    def _special(self) -> dict[str, int]:
        """Ids of special tokens by their texts. One of blanks alone is no mark of anything."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {
            token.content: token_id
            for token_id, token in added
            if token.special and token.content.strip()
        }

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Finds what is hidden: of each special token one character, or all of one that is a
        word.
        """
        signs = {text: set(re.findall(r"[^\w\s]|_", text)) for text in self._special}
        words = sorted((text for text in signs if not signs[text]), key=len, reverse=True)
        marks: list[str] = []
        while left := [found for found in signs.values() if found and found.isdisjoint(marks)]:
            counts = Counter(sign for found in left for sign in found)
            # The bar comes behind the brackets, which templates look at more often.
            marks.append(max(counts, key=lambda sign: (counts[sign], sign)))
        return re.compile("|".join(map(re.escape, [*marks, *words])), re.IGNORECASE)

    @cached_property
    def _scanner(self) -> tuple[Any, dict[int, int]]:
        """What finds special tokens as the tokenizer does but reads nothing else; their true ids
        by its own.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        core = self.tokenizer.backend_tokenizer
        scanner: Any = Tokenizer(WordLevel({self._name: 0}, unk_token=self._name))
        if core.normalizer is not None:
            scanner.normalizer = core.normalizer
        scanner.add_tokens([token for _, token in sorted(core.get_added_tokens_decoder().items())])
        return scanner, {
            scanner.token_to_id(text): token_id for text, token_id in self._special.items()
        }

    @cached_property
    def _renamed(self) -> tuple[Any, dict[int, str], dict[int, list[int]], dict[int, list[int]]]:
        """A copy of the tokenizer that knows special tokens by other names, and what belongs to it.

        Returns:
            The copy; the names by the tokens' ids; the true ids by the copy's own; and by the true
            ids what stands for them where a text gave them. Those that a text gives in any case are
            left out.
        """
        from tokenizers import AddedToken

        core = copy.deepcopy(self.tokenizer.backend_tokenizer)
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = True
        names = {token_id: f"{self._name}{token_id}x" for token_id in self._special.values()}
        # Found before any normalizer sees them.
        core.add_tokens(
            [AddedToken(name, special=False, normalized=False) for name in names.values()]
        )
        own = {core.token_to_id(name): [token_id] for token_id, name in names.items()}
        texts = {
            token_id: [piece.id for character in text for piece in core.model.tokenize(character)]
            for text, token_id in self._special.items()
            if text != self.tokenizer.unk_token
        }
        return core, names, own, {one: pieces for one, pieces in texts.items() if one not in pieces}


def _for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: the arguments of calls are objects, and results have
    the names of what was called.
    """
    turns, names = [dict(message) for message in messages], dict[str, str]()
    for turn in turns:
        if "tool_calls" in turn:
            turn["tool_calls"] = [
                {**call, "function": {**called, "arguments": json.loads(called["arguments"])}}
                for call in turn["tool_calls"]
                for called in (call["function"],)
            ]
            names |= {call.get("id"): call["function"]["name"] for call in turn["tool_calls"]}
        elif turn["role"] == "tool" and turn.get("tool_call_id") in names:
            turn.setdefault("name", names[turn["tool_call_id"]])
    return turns


def _refusal() -> PromptError:
    return PromptError(
        "a message spells special tokens, and this model's chat template and tokenizer cannot keep "
        "it from becoming "
        "these",
        hint="take them out of the message; --special-tokens allow lets messages write special "
        "tokens",
    )


def warn_of_parsed(name: str, core: Any) -> None:
    """Say, at opening, which special tokens a tokenizer gives for their texts although it is told
    to split them.

    Some hold these texts among their words.

    Args:
        name: of the reward.
        core: of the library tokenizers; None where there is none, which knows no splitting.
    """
    if core is None:
        _LOG.warning(
            "reward %r: its tokenizer is no fast one: texts that spell special tokens become these",
            name,
        )
    elif parsed := _parsed(core):
        _LOG.warning(
            "reward %r: its tokenizer takes these texts for special tokens: %s",
            name,
            ", ".join(parsed[:9]),
        )


def _parsed(core: Any) -> list[str]:
    """Texts of special tokens that a tokenizer does not split; from here on it is told to."""
    core.encode_special_tokens = True

    def ids_of(text: str) -> set[int]:
        encoding = core.encode(text, add_special_tokens=False)
        return {
            one
            for one, is_text in zip(encoding.ids, encoding.attention_mask, strict=True)
            if is_text
        }

    unknown = ids_of(_NO_CHARACTER)
    special = {
        token.content: number
        for number, token in core.get_added_tokens_decoder().items()
        if token.special
    }
    return [text for text, number in special.items() if number in ids_of(text) - unknown]
