"""Thoughts that are ended where they have been as long as they may be.

What must come is said by a function of the tokens before it; all else by transformers' own forward
pass and the number of seed, candidate and position.
"""

from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from specrej.constraint import ThoughtLimit
from specrej.engines.streams import uniforms
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.engines.torch.sampling import sample
from specrej.errors import SamplingError, UsageError
from specrej.server.reasoning import num_thought_tokens
from specrej.types import Result, SamplingParams
from tiny import CHAT_TEMPLATE, VOCABULARY, full_logits, make_model, make_tokenizer, reference

OPEN, CLOSE = "<think>", "</think>"
BEGINS = CHAT_TEMPLATE.replace("<assistant>", "<assistant>" + OPEN)
LENGTH = 20
PROMPT_IDS = [0, 70, 80, 90]


@cache
def opened(*, begins: bool = True, one_token: bool = True) -> tuple[TorchEngine, Any]:
    """An engine whose model often closes its thoughts, and the same model as transformers has
    it.
    """
    tokenizer = make_tokenizer((BEGINS if begins else CHAT_TEMPLATE) + f"{{# {OPEN} {CLOSE} #}}")
    if one_token:
        tokenizer.add_tokens([OPEN, CLOSE], special_tokens=True)
    model = make_model("llama", dtype=torch.float64, vocab_size=VOCABULARY + 2)
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY:] *= 3
    model.generation_config.eos_token_id = [1]
    exact = reference(model)
    return wrap(model, tokenizer), exact


def forced(engine: TorchEngine, limit: ThoughtLimit, before: list[int]) -> int | None:
    """The token that must follow these, if one must."""
    closing = engine._codec.mark_ids(CLOSE)
    text = engine.decode(before).lstrip()
    if not (limit.is_begun or text.startswith(OPEN)):
        return None
    starts = range(0 if limit.is_begun else 1, len(before) + 1)
    start = next(
        place
        for place in starts
        if limit.is_begun or engine.decode(before[:place]).lstrip().startswith(OPEN)
    )
    if len(before) < start + limit.most_tokens:
        return None
    if CLOSE in engine.decode(before[: start + limit.most_tokens]):
        return None
    place = len(before) - start - limit.most_tokens
    return closing[place] if place < len(closing) else None


@pytest.mark.parametrize("one_token", [True, False])
@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_each_token_is_the_marks_or_the_models(one_token: bool, seed: int) -> None:
    """Candidates begin, fork, wait and go at random."""
    random = Random(seed)
    engine, exact = opened(one_token=one_token)
    limit = ThoughtLimit(random.randint(0, 9), OPEN, CLOSE, random.random() < 0.6)
    bias = () if limit.is_begun or not one_token else ((VOCABULARY, 20.0), (VOCABULARY + 1, 18.0))
    sampling = SamplingParams(
        max_new_tokens=LENGTH, top_k=random.choice([0, 5]), seed=seed, logit_bias=bias,
        temperature=random.choice([0.0, 1.0]), constraint=limit,
    )  # fmt: skip
    prompt = engine.open(PROMPT_IDS, sampling, engine.kv_bytes(len(PROMPT_IDS), 12, LENGTH))
    tokens: dict[int, list[Any]] = {index: [] for index in range(3)}
    inherited = dict.fromkeys(tokens, 0)
    live = list(tokens)
    engine.add(prompt, live)
    while live:
        if random.random() < 0.2 and len(live) < 8:
            parents = [random.choice(live) for _ in range(2)]
            new = [len(tokens), len(tokens) + 1]
            engine.fork(prompt, parents, new)
            for index, parent in zip(new, parents, strict=True):
                tokens[index], inherited[index] = list(tokens[parent]), len(tokens[parent])
            live += new
        if random.random() < 0.1 and len(live) > 2:
            engine.drop(prompt, [live.pop(1)])
        engine.hold(prompt, [index for index in live[1:] if random.random() < 0.2])
        for token in engine.step():
            tokens[token.candidate].append(token)
            if token.finish_reason:
                live.remove(token.candidate)
    engine.close(prompt)
    for index, given_tokens in tokens.items():
        ids = [token.token_id for token in given_tokens]
        logits = full_logits(exact, [*PROMPT_IDS, *ids])[len(PROMPT_IDS) - 1 : -1]
        for place in range(inherited[index], len(ids)):
            must = forced(engine, limit, ids[:place])
            scores = logits[place].clone()
            for token_id, added in bias:
                scores[token_id] += added
            number = torch.from_numpy(uniforms(seed, [index], place))
            drawn = sample(scores[None], SamplingParams(**_plain(sampling)), number)[0].item()
            assert ids[place] == (drawn if must is None else must)
            logprob = logits[place].log_softmax(-1)[ids[place]].item()
            assert given_tokens[place].logprob == pytest.approx(logprob, abs=1e-4)


def _plain(sampling: SamplingParams) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("top_k", "temperature", "seed")}


def answers(engine: TorchEngine, **options: Any) -> Result:
    def length(_: str, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    given = {"n": 12, "max_new_tokens": 30, "alpha": 0.0, "seed": 5, **options}
    return specrej.generate("hi", model=engine, reward=length, **given)


@pytest.mark.parametrize("one_token", [True, False])
def test_who_ends_a_thought_in_time_writes_what_it_writes_without_a_limit(one_token: bool) -> None:
    engine, _ = opened(one_token=one_token)
    free, bound = answers(engine), answers(engine, max_thinking_tokens=6)
    closing, num_alike = engine._codec.mark_ids(CLOSE), 0
    for mine, whole in zip(bound.candidates, free.candidates, strict=True):
        in_time = CLOSE in engine.decode(whole.token_ids[:6]) or len(whole.token_ids) <= 6
        num_alike += in_time
        if in_time:
            assert (mine.token_ids, mine.logprobs) == (whole.token_ids, whole.logprobs)
        else:
            assert mine.token_ids[:6] == whole.token_ids[:6]
            assert mine.token_ids[6:][: len(closing)] == closing
    assert num_alike < 12
    assert num_alike > 0 or not one_token
    far = answers(engine, max_thinking_tokens=30)
    assert [one.logprobs for one in far.candidates] == [one.logprobs for one in free.candidates]


def test_a_model_that_opens_its_thought_itself_is_counted_from_there() -> None:
    engine, _ = opened(begins=False)
    found = answers(
        engine, max_thinking_tokens=4, logit_bias={VOCABULARY: 20.0, VOCABULARY + 1: 18.0}
    )
    begun = [one for one in found.candidates if one.text.startswith(OPEN)]
    assert begun
    for one in begun:
        assert CLOSE in engine.decode(one.token_ids[:6]) or len(one.token_ids) < 6
    others = [one for one in found.candidates if not one.text.startswith(OPEN)]
    assert all(CLOSE not in one.text for one in others if VOCABULARY + 1 not in one.token_ids)


@pytest.mark.parametrize("one_token", [True, False])
@pytest.mark.parametrize("limit", [0, 1, 6])
def test_tokens_of_a_thought_are_counted_as_its_limit_counts_them(
    one_token: bool, limit: int
) -> None:
    engine, _ = opened(one_token=one_token)
    closing, num_ended = engine._codec.mark_ids(CLOSE), 0
    for answer in answers(engine, max_thinking_tokens=limit).candidates:
        reader = engine._codec.detokenizer("hi")
        assert reader.thinking is not None
        thought = reader.thinking.split(answer.text).thought
        number = num_thought_tokens(answer, reader.thinking, reader)
        is_ended = answer.token_ids[limit:][: len(closing)] == closing
        num_ended += is_ended
        assert number <= limit
        assert number == limit or not is_ended or not thought
    assert num_ended > 0


def test_rejections_and_forks_end_their_thoughts_as_well() -> None:
    engine, _ = opened()
    whole = answers(engine, max_thinking_tokens=7)
    cut = answers(engine, max_thinking_tokens=7, alpha=0.5, decide="every:4")
    assert any(not one.finish_reason for one in cut.candidates)
    for mine, other in zip(cut.candidates, whole.candidates, strict=True):
        assert mine.token_ids == other.token_ids[: len(mine.token_ids)]
    trees = answers(engine, max_thinking_tokens=9, algorithm="tree_bon", n=8)
    forks = [one for one in trees.candidates if one.parent is not None]
    assert any(one.num_inherited < 9 < len(one.token_ids) for one in forks)
    for one in trees.candidates:
        assert len(one.token_ids) < 10 or CLOSE in engine.decode(one.token_ids[:10])


def test_a_stop_string_in_the_mark_ends_the_answer_there() -> None:
    engine, _ = opened()
    for one in answers(engine, max_thinking_tokens=3, stop=[CLOSE]).candidates:
        assert len(one.token_ids) <= 4
        assert CLOSE not in one.text


def test_a_model_without_marks_and_a_text_that_is_continued_are_refused() -> None:
    plain = wrap(make_model("llama"), make_tokenizer(CHAT_TEMPLATE), weights="fp32")
    with pytest.raises(SamplingError, match=r"^max_thinking_tokens cannot be honoured, got 5: "):
        answers(plain, max_thinking_tokens=5)
    engine, _ = opened()
    with pytest.raises(SamplingError, match=r"^max_thinking_tokens cannot be honoured"):
        specrej.generate(
            specrej.types.Continuation("hi"), model=engine, reward="logprob", max_thinking_tokens=5
        )


@pytest.mark.parametrize("obeyed", [{"json_schema": {}}, {"regex": "a"}, {"grammar": 'start: "a"'}])
def test_beside_a_constraint_it_is_refused(obeyed: dict[str, Any]) -> None:
    name = next(iter(obeyed))
    with pytest.raises(UsageError, match=f"^max_thinking_tokens must be left out where .*{name}"):
        specrej.Settings(max_thinking_tokens=5, **obeyed)
