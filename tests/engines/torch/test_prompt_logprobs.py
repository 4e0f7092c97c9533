"""How likely a prompt's tokens are, against transformers' own forward pass."""

import pytest
import torch

from specrej.engines.reading import prompt_logprobs, spell, with_text
from specrej.engines.torch import reading
from specrej.errors import EngineError, PromptError, SamplingError
from specrej.hub.tokenizers import TextCodec
from specrej.types import Continuation, SamplingParams
from tiny import (
    VOCABULARY,
    Answers,
    decode,
    full_logits,
    make_engine,
    make_ids,
    make_model,
    make_tokenizer,
    reference,
)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("chunk", [7, 512])
def test_a_prompts_tokens_are_as_likely_as_transformers_says(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PREFILL_CHUNK", chunk)
    model = make_model(name, dtype=torch.float64)
    expected = full_logits(reference(model), ids := make_ids(40)).log_softmax(-1)
    likelihoods = make_engine(model).prompt_logprobs(ids, 3)
    assert len(likelihoods) == len(ids) - 1
    for row, following, one in zip(expected, ids[1:], likelihoods, strict=False):
        assert one.logprob == pytest.approx(row[following].item(), abs=1e-5)
        values, others = row.topk(3)
        assert [token_id for token_id, _ in one.top] == others.tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_the_likeliest_token_has_the_same_number_in_both_places() -> None:
    """Clients compare the two to see whether a text is what greedy decoding gives."""
    engine = make_engine(make_model("llama"))
    ids = make_ids(5)
    for _ in range(20):
        prompt = engine.open(ids, SamplingParams(max_new_tokens=1, temperature=0), 2**24)
        engine.add(prompt, [0])
        [token] = engine.step()
        engine.close(prompt)
        ids.append(token.token_id)
    for one in engine.prompt_logprobs(ids, 2)[4:]:
        assert one.logprob == one.top[0][1]


def test_few_logits_are_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sizes = make_engine(make_model("llama")), list[int]()
    of = reading._of

    def counting(logits: torch.Tensor, following: torch.Tensor, num_top: int) -> object:
        sizes.append(logits.numel())
        return of(logits, following, num_top)

    monkeypatch.setattr(reading, "_MOST_LOGITS", 10 * VOCABULARY)
    monkeypatch.setattr(reading, "_of", counting)
    assert len(engine.prompt_logprobs(make_ids(45), 0)) == 44
    assert sizes == [10 * VOCABULARY] * 4 + [4 * VOCABULARY]


def test_prompts_in_flight_are_left_as_they_are() -> None:
    def run(*, reads: bool) -> Answers:
        engine = make_engine(make_model("llama", dtype=torch.float64))
        prompt = engine.open(
            make_ids(30), SamplingParams(max_new_tokens=12, ignore_eos=True), 2**24
        )
        engine.add(prompt, range(3))
        answers = decode(engine, 5)
        if reads:
            before = engine.memory(prompt)
            engine.prompt_logprobs(make_ids(50, seed=4), 1)
            assert engine.memory(prompt) == before
        return decode(engine, None, answers)

    assert run(reads=True) == run(reads=False)


def test_one_token_has_nothing_before_it() -> None:
    assert make_engine(make_model("llama")).prompt_logprobs([7], 5) == []


def test_what_is_wrong_is_told() -> None:
    model = make_model("llama")
    engine = make_engine(model)
    with pytest.raises(PromptError, match=f"has the token {VOCABULARY}"):
        engine.prompt_logprobs([1, VOCABULARY], 1)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan
    with pytest.raises(EngineError, match="not finite"):
        engine.prompt_logprobs([9, 8, 7], 1)

    class Without:
        name = "mine"

    nobody: object = Without()
    with pytest.raises(SamplingError, match="'mine' gives no log-probabilities of a prompt"):
        prompt_logprobs(nobody, [1, 2], 1)  # type: ignore[arg-type]


def test_token_ids_are_read_as_they_are() -> None:
    codec = TextCodec(make_tokenizer(adds_bos=True))
    ids = codec.encode(Continuation("Once é<eos>"))
    assert ids[0] == 0  # the BOS of the tokenizer
    for given in (ids, ids[1:], ids[:-1] * 2):
        assert codec.encode(Continuation(token_ids=given)) == given
    for wrong in (VOCABULARY, -1, 2**40):
        with pytest.raises(PromptError, match=f"token id {wrong}, this model's are from 0 to"):
            codec.encode(Continuation(token_ids=[5, wrong]))


def test_the_text_of_token_ids_is_what_they_spell() -> None:
    engine = make_engine(make_model("llama"))
    ids = engine.encode(Continuation("<user>Once é<eos>"))
    prompt = with_text(engine, Continuation(token_ids=ids))
    assert prompt == "<user>Once é<eos>" == "".join(spell(engine, ids))
    assert engine.encode(prompt) == ids
    assert with_text(engine, Continuation("Mine", ids)) == "Mine"
