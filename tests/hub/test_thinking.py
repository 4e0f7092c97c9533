"""What a reasoning model thinks is told from its answer, by the marks of its tokenizer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.hub.thinking import MARKS, Parts, Thinking, marks_of
from specrej.hub.tokenizers import TextCodec
from specrej.types import Continuation, Conversation, Prompt
from tiny import CHAT_TEMPLATE, make_tokenizer

OPEN, CLOSE = MARKS[0]
SPLIT: list[tuple[bool, str, Parts]] = [
    (False, "<think>\nso\n</think>\n\n42", Parts("so", "42")),
    (False, " <think>so", Parts("so", "")),
    (False, "42 </think>", Parts("", "42 </think>")),
    (False, "<think></think>42", Parts("", "42")),
    (True, "so\n</think>\n\n42 ", Parts("so", "42 ")),
    (True, "so", Parts("so", "")),
    (True, "<think>so</think>a</think>b", Parts("so", "a</think>b")),
    (False, "", Parts("", "")),
]


@pytest.mark.parametrize(("is_begun", "text", "parts"), SPLIT)
def test_the_parts_of_a_text(is_begun: bool, text: str, parts: Parts) -> None:
    thinking = Thinking(OPEN, CLOSE, is_begun)
    assert thinking.split(text) == parts
    span = thinking.span(text)
    assert text[span.start : span.stop].strip() == parts.thought
    marks = text.removeprefix(OPEN) if is_begun else text.lstrip().removeprefix(OPEN)
    if parts.thought:
        assert marks.startswith(text[span.start : span.stop])


def test_white_space_before_a_thought_that_the_prompt_begins_is_part_of_it() -> None:
    assert Thinking(OPEN, CLOSE, is_begun=True).span("\nso</think>42") == range(3)
    assert Thinking(OPEN, CLOSE).span("\n<think>\nso</think>42") == range(8, 11)


@given(st.booleans(), st.lists(st.sampled_from([OPEN, CLOSE, "a", " ", "\n", "<th", "ink>"])))
@settings(deadline=None)
def test_what_was_certain_stays(is_begun: bool, pieces: list[str]) -> None:
    thinking, text, before = Thinking(OPEN, CLOSE, is_begun), "", ""
    for piece in pieces:
        text += piece
        now = thinking.answer(text)
        assert now.startswith(before)
        before = now
    assert thinking.split(text).answer.startswith(before)


def tokenizer_with(tail: str, *, special: bool = True, added: bool = True) -> Any:
    tokenizer = make_tokenizer(CHAT_TEMPLATE + tail)
    if added:
        tokenizer.add_tokens([OPEN, CLOSE], special_tokens=special)
    return tokenizer


def begun(codec: TextCodec, prompt: Prompt) -> bool | None:
    thinking = codec.detokenizer(prompt).thinking
    return None if thinking is None else thinking.is_begun


def test_marks_are_those_of_the_vocabulary_or_the_template() -> None:
    assert marks_of(make_tokenizer(CHAT_TEMPLATE)) is None
    assert marks_of(tokenizer_with("")) == (OPEN, CLOSE)
    in_template = tokenizer_with("{# <think> </think> #}", added=False)
    assert marks_of(in_template) == (OPEN, CLOSE)


def test_a_template_may_begin_the_thought_and_arguments_may_end_it() -> None:
    tail = (
        "{% if add_generation_prompt %}<think>{% if enable_thinking is false %}</think>"
        "{% endif %}{% endif %}"
    )
    user = {"role": "user", "content": "?"}
    codec = TextCodec(tokenizer_with(tail))
    assert begun(codec, "Why?") is True
    assert begun(codec, Conversation(messages=[user])) is True
    quiet = Conversation(messages=[user], template_arguments={"enable_thinking": False})
    assert begun(codec, quiet) is False
    assert begun(codec, [user, {"role": "assistant", "content": "<think>so"}]) is True
    assert begun(codec, [user, {"role": "assistant", "content": "So"}]) is False
    assert begun(codec, Continuation("<think>")) is None
    assert begun(TextCodec(tokenizer_with("")), "Why?") is False
    assert begun(TextCodec(make_tokenizer(CHAT_TEMPLATE)), "Why?") is None


@pytest.mark.parametrize("special", [True, False])
def test_marks_are_text_also_where_they_are_special_tokens(special: bool) -> None:
    tokenizer = tokenizer_with("", special=special)
    reader = TextCodec(tokenizer).detokenizer("Why?")
    ids = tokenizer("<think>é</think>a<eos>", add_special_tokens=False)["input_ids"]
    assert "".join(reader.add(one).text for one in ids) == "<think>é</think>a"
