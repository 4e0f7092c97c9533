"""Replies of several servers, and answers made of them."""

import json
from typing import Any

import pytest

from specrej.engines.openai.answers import PartialAnswer, Vocabulary
from specrej.engines.openai.replies import (
    Capacity,
    Chunk,
    UnreadableReplyError,
    read_capacity,
    read_completion,
    read_models,
)
from tiny import EOS_ID, VOCABULARY, make_tokenizer

TOKENIZER = make_tokenizer()
WORDS = Vocabulary(TOKENIZER)


def completion(choice: dict[str, Any], **beside: Any) -> Chunk:
    return read_completion(
        json.dumps({"choices": [{"text": "ab", "finish_reason": "length", **choice}], **beside})
    )


def test_vllm() -> None:
    chunk = completion(
        {"token_ids": [7, 8], "logprobs": {"token_logprobs": [-0.5, None]}, "stop_reason": None},
        usage={
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    )
    assert chunk == Chunk("ab", [7, 8], [-0.5, None], "length", None, 2, 9, 8)


def test_sglang() -> None:
    chunk = completion(
        {"token_ids": [7, 1], "matched_stop": 1, "finish_reason": "stop", "logprobs": None},
        usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None},
    )
    assert chunk == Chunk("ab", [7, 1], [], "stop", 1, 2, 9, None)


def test_llama_cpp() -> None:
    entries = [{"id": 7, "token": "a", "logprob": -1.0}, {"id": 8, "token": "b", "logprob": -2}]
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    chunk = completion({"logprobs": {"content": entries}}, usage=usage, timings={"cache_n": 5})
    assert chunk == Chunk("ab", [7, 8], [-1.0, -2.0], "length", None, 2, 9, 5)
    # A character of several tokens has one entry: the ids are not all there.
    assert (
        completion({"logprobs": {"content": entries}}, usage={"completion_tokens": 3}).ids is None
    )


def test_openai() -> None:
    chunk = completion({"logprobs": {"token_logprobs": [-1.0, -2.0], "tokens": ["a", "b"]}})
    assert chunk == Chunk("ab", None, [-1.0, -2.0], "length", None, None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ("3", "no JSON object"),
        ("{}", "no completion"),
        ('{"choices": [{"message": {}}]}', "no completion"),
        ('{"choices": [{"text": "a", "finish_reason": null}]}', "for the reason null"),
        (
            '{"choices": [{"text": "a", "finish_reason": "stop", "token_ids": [-1]}]}',
            "-1 is no token id",
        ),
        (
            '{"choices": [{"text": "a", "finish_reason": "stop", "token_ids": [true]}]}',
            "true is no token id",
        ),
    ],
)
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(UnreadableReplyError, match=message):
        read_completion(text)


def test_models() -> None:
    assert read_models('{"data": [{"id": "a"}, {"id": 3}, "b"]}') == [{"id": "a"}]
    with pytest.raises(UnreadableReplyError, match="no list of models"):
        read_models('{"models": []}')


def test_capacities() -> None:
    given = 'block_size="16",engine="{}",num_gpu_blocks="100",note="a}}b"'
    line = "vllm:cache_config_info{{" + given + "}} 1.0\n"
    usage = 'vllm:kv_cache_usage_perc{{engine="{}"}} {}\n'
    assert read_capacity(line.format(0) + usage.format(0, 0.25)) == Capacity(1600, 16, 0.25)
    two = line.format(0) + line.format(1) + usage.format(0, 0.5) + usage.format(1, "1e-1")
    assert read_capacity(two) == Capacity(3200, 16, 0.3)
    sglang = (
        'sglang:max_total_num_tokens{tp_rank="0"} 471258.0\nsglang:token_usage{tp_rank="0"} 0.5\n'
    )
    assert read_capacity(sglang) == Capacity(471258, 1, 0.5)
    assert read_capacity('vllm:cache_config_info{num_gpu_blocks="None"} 1.0\n') is None
    assert read_capacity("") is None


def take(
    chunk: Chunk, *, by_text: bool = False, num_asked: int = 4, vocabulary: Vocabulary = WORDS
) -> PartialAnswer:
    answer = PartialAnswer(0)
    answer.take(chunk, num_asked=num_asked, vocabulary=vocabulary, by_text=by_text)
    return answer


def chunk(**fields: Any) -> Chunk:
    given: dict[str, Any] = {
        "text": "ab",
        "ids": None,
        "logprobs": [],
        "end": "length",
        "matched": None,
    }
    return Chunk(**{**given, "num_tokens": None, "num_read": None, "num_cached": None, **fields})


def test_the_token_that_ends_an_answer_is_its_last_whether_the_server_gives_it_or_not() -> None:
    for ids in ([70, 71], [70, 71, EOS_ID]):
        answer = take(chunk(ids=ids, end="stop", logprobs=[-1.0] * len(ids)))
        assert (answer.ids, answer.finish) == ([70, 71, EOS_ID], "eos")
        assert answer.logprobs == [-1.0, -1.0, -1.0 if len(ids) == 3 else None]
    # One that the model has beside the tokenizer's, and one that only the server knows.
    assert take(chunk(ids=[70, 4], end="stop"), vocabulary=Vocabulary(TOKENIZER, {4})).ids == [
        70,
        4,
    ]
    assert take(chunk(ids=[70, 3], end="stop", matched=3)).ids == [70, 3]
    assert take(chunk(ids=[], text="", end="stop")).ids == [EOS_ID]


def test_text_becomes_tokens_without_half_characters() -> None:
    answer = take(chunk(text="a\N{REPLACEMENT CHARACTER}"), by_text=True)
    assert (answer.ids, answer.text) == (TOKENIZER("a")["input_ids"], "a")
    assert (
        take(chunk(text="\N{REPLACEMENT CHARACTER}"), by_text=True).lost
        == "the server gave no token"
    )


def test_what_exceeds_a_length_is_cut() -> None:
    answer = take(chunk(ids=[70, 71, EOS_ID], end="stop"))
    assert (answer.cut(3), answer.cut(2)) == (0, 1)
    assert (answer.ids, answer.finish, len(answer.logprobs)) == ([70, 71], None, 2)


def test_tokens_that_nobody_knows_lose_an_answer() -> None:
    assert "does not know" in take(chunk(ids=[VOCABULARY])).lost
    assert (
        take(chunk(ids=[VOCABULARY]), vocabulary=Vocabulary(TOKENIZER, size=VOCABULARY + 1)).lost
        == ""
    )


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "-1e400", "NaN", "true", '"-1"']
)
def test_a_log_probability_that_no_float_holds_is_none(number: str) -> None:
    logprobs = '{"token_logprobs": [-0.5, ' + number + "]}"
    choice = (
        '{"text": "ab", "finish_reason": "stop", "token_ids": [7, 8], "logprobs": ' + logprobs + "}"
    )
    assert read_completion('{"choices": [' + choice + "]}").logprobs == [-0.5, None]


def test_half_a_character_of_a_server_is_a_replacement() -> None:
    for given, expected in (
        ("a\ud83d", "a\ufffd"),
        ("\udc4db", "\ufffdb"),
        ("\ud83d\udc4d", "👍"),
        ("plain é", "plain é"),
    ):
        reply = json.dumps({"choices": [{"text": given, "finish_reason": "length"}]})
        assert read_completion(reply).text == expected
