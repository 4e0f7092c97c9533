"""Filling in the middle: each family's tokens, in its order."""

from typing import Any

import pytest

from specrej.errors import PromptError
from specrej.hub.tokenizers import TextCodec
from specrej.types import Continuation
from tiny import make_tokenizer

BEFORE, BEHIND = "def é(", "):\n  pass"


def tokenizer_with(*tokens: str, adds_bos: bool = False) -> Any:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


@pytest.mark.parametrize(
    "tokens",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prefix_suffix_middle(tokens: tuple[str, str, str], adds_bos: bool) -> None:
    tokenizer = tokenizer_with(*tokens, adds_bos=adds_bos)
    prefix, suffix, middle = tokens
    ids = TextCodec(tokenizer).encode(Continuation(BEFORE, suffix=BEHIND))
    whole = f"{'<bos>' * adds_bos}{prefix}{BEFORE}{suffix}{BEHIND}{middle}"
    assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_codestrals_suffix_comes_first() -> None:
    tokenizer = tokenizer_with("[PREFIX]", "[SUFFIX]", "[MIDDLE]")
    ids = TextCodec(tokenizer).encode(Continuation(BEFORE, suffix=BEHIND))
    assert ids == tokenizer(f"[SUFFIX]{BEHIND}[PREFIX]{BEFORE}")["input_ids"]


@pytest.mark.parametrize("tokens", [(), ("<|fim_prefix|>", "<|fim_suffix|>")])
def test_a_tokenizer_without_the_tokens_says_so(tokens: tuple[str, ...]) -> None:
    codec = TextCodec(tokenizer_with(*tokens))
    with pytest.raises(PromptError, match=r"^suffix cannot be honoured"):
        codec.encode(Continuation(BEFORE, suffix=BEHIND))
    assert codec.encode(Continuation(BEFORE, suffix="")) == codec.encode(Continuation(BEFORE))
