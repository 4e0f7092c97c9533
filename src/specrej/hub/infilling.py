"""Filling in the middle: the tokens that models trained for it have, and the order they go in.

    ids = fill_in(tokenizer, "def add(a, b):", "print(add(1, 2))")

Each family's own order, as its authors publish it. A tokenizer has a family if it has all of its
tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from specrej.errors import PromptError


class _Family(NamedTuple):
    prefix: str
    """Before the text that comes before."""
    suffix: str
    """Before the text that comes behind."""
    middle: str = ""
    """Before the answer. Empty where the suffix comes first: then the answer follows the text."""


_FAMILIES = (
    # Qwen's coders, CodeGemma, Granite 4
    _Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    # StarCoder and StarCoder2, Granite code; SantaCoder writes them with hyphens
    _Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    _Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # DeepSeek's coders
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # CodeLlama
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>"),
    # Codestral: the suffix first
    _Family("[PREFIX]", "[SUFFIX]"),
)
_ANCHOR = "\N{WHITE SMILING FACE}"
"""Put before a text that begins no text, so that no space is put before it, and taken off again."""


def fill_in(tokenizer: Any, before: str, behind: str) -> list[int]:
    """Token ids behind which comes what stands between two texts, without a BOS.

    Raises:
        PromptError: the tokenizer has no tokens for it.
    """
    known = tokenizer.get_vocab()
    family = next(
        (one for one in _FAMILIES if all(not name or name in known for name in one)), None
    )
    if family is None:
        raise PromptError(
            "suffix cannot be honoured: this model's tokenizer has no tokens to fill in the middle "
            "with",
            hint="leave it out, or serve a model that can, such as Qwen's coders",
        )
    first = [known[family.prefix], *_ids(tokenizer, before)]
    second = [known[family.suffix], *_ids_behind(tokenizer, behind)]
    return [*first, *second, known[family.middle]] if family.middle else [*second, *first]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ids_behind(tokenizer: Any, text: str) -> Sequence[int]:
    """Ids of a text that does not begin one."""
    anchor, whole = _ids(tokenizer, _ANCHOR), _ids(tokenizer, _ANCHOR + text)
    is_apart = whole[: len(anchor)] == anchor
    return whole[len(anchor) :] if is_apart else _ids(tokenizer, text)
