"""The text of an answer up to a stop string, found at the token that completes it."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import FakeEngine, FakeReward
from specrej.hub.tokenizers import TextCodec
from specrej.search.stopping import AnswerText
from specrej.types import Piece
from tiny import CHAT_TEMPLATE, EOS_ID, SPECIALS, make_engine, make_model
from vocabularies import KINDS

USER_ID = SPECIALS.index("<user>")


class Given:
    """Pieces by their number; those in angle brackets are special tokens."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces, self.num_read = pieces, 0

    def add(self, token_id: int) -> Piece:
        self.num_read += 1
        piece = self.pieces[token_id]
        return Piece("", piece) if piece.startswith("<") else Piece(piece)


def end_of(pieces: Sequence[str], stop: Sequence[str]) -> tuple[int, bool, str]:
    """By brute force: how many tokens are read until a stop string is there, if one is, and the
    text before it."""
    for length in range(len(pieces) + 1):
        shown = "".join(piece for piece in pieces[:length] if not piece.startswith("<"))
        spelled, starts = "".join(pieces[:length]), [shown.find(one) for one in stop]
        for place in (spelled.find(one) for one in stop):
            if place >= 0:
                rest, before = spelled[:place], ""
                for piece in pieces:
                    before += rest[: len(piece)] if not piece.startswith("<") else ""
                    rest = rest[len(piece) :]
                starts.append(len(before))
        if found := [start for start in starts if start >= 0]:
            return length, True, shown[: min(found)]
    return len(pieces), False, "".join(piece for piece in pieces if not piece.startswith("<"))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["", "a", "b", "ab", "ba", "abab", "<x>", "<ab>"]), max_size=12),
    st.lists(
        st.sampled_from(["a", "bb", "aba", "<x>", "b<x>", "<ab>a", "bab", "x>", "ab>b"]), max_size=3
    ),
    st.integers(1, 4),
)
def test_the_first_stop_string_ends_the_text(
    pieces: list[str], stop: list[str], at_a_time: int
) -> None:
    length, has_stopped, expected = end_of(pieces, stop)
    reader = Given(pieces)
    text = AnswerText(reader, stop)
    for end in [*range(0, len(pieces), at_a_time), len(pieces)]:
        text.read(range(end))
        assert text.has_stopped == (has_stopped and end >= length)
    assert text.text == expected
    assert reader.num_read == length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [USER_ID, EOS_ID])
def test_a_stop_string_may_spell_a_special_token(kind: str, special: int) -> None:
    codec = TextCodec(KINDS[kind](CHAT_TEMPLATE))
    ids = codec.tokenizer("the capital", add_special_tokens=False)["input_ids"]
    text = AnswerText(codec.detokenizer(""), [SPECIALS[special]])
    text.read([*ids, special, *ids])
    assert (text.text, text.has_stopped) == (codec.decode(ids), True)


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "gemma"])
@pytest.mark.parametrize("stop", ["b", "é", "👍", "👍b", "é👍"])
def test_a_stop_string_is_found_at_the_token_that_completes_it(kind: str, stop: str) -> None:
    codec = TextCodec(KINDS[kind](CHAT_TEMPLATE))
    ids = [
        one
        for part in "a é👍b z"
        for one in codec.tokenizer(part, add_special_tokens=False)["input_ids"]
    ]
    text = AnswerText(codec.detokenizer(""), [stop])
    first = next(end for end in range(1, len(ids)) if stop in codec.decode(ids[:end]))
    for end in range(1, len(ids) + 1):
        text.read(ids[:end])
        assert text.has_stopped == (end >= first)
    assert text.text == codec.decode(ids).partition(stop)[0]


def test_a_search_ends_at_a_special_token_that_is_no_end() -> None:
    model = make_model("llama")
    options: dict[str, Any] = {
        "model": make_engine(model),
        "reward": FakeReward(),
        "top_k": 0,
        "temperature": 2.0,
    }
    options |= {"n": 8, "max_new_tokens": 100, "algorithm": "best_of_n", "memory": 10**7}
    free = specrej.generate("Why?", **options).candidates
    stopped = specrej.generate("Why?", **options, stop=["<user>"]).candidates
    assert {candidate.finish_reason for candidate in stopped} >= {"stop"}
    for candidate, whole in zip(stopped, free, strict=True):
        ids = whole.token_ids
        assert candidate.token_ids == (ids[: ids.index(USER_ID) + 1] if USER_ID in ids else ids)
        assert whole.text.startswith(candidate.text)


def test_each_token_is_read_once_however_often_a_text_is_asked_for() -> None:
    engine = FakeEngine()
    result = specrej.generate(
        "Why?", model=engine, reward=FakeReward(), n=6, decide="every:1", stop=["bb", "é"]
    )
    assert engine.num_read == sum(len(c.token_ids) for c in result.candidates)
