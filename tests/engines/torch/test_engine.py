"""Candidates that do not know of each other, prompts read once, endings, and figures on real
models."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from specrej.attention import groups
from specrej.engines.base import Token
from specrej.engines.streams import uniforms
from specrej.engines.torch import engine as engine_module
from specrej.engines.torch import passes
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import load_engine, wrap
from specrej.engines.torch.sampling import History, sample
from specrej.errors import SamplingError
from specrej.hub import defaults
from specrej.types import SamplingParams
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

BUDGET = 2**24
EOS_IDS = list(range(0, VOCABULARY, 40))
SAMPLING = SamplingParams(max_new_tokens=40, top_k=0, seed=3)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PREFILL_CHUNK", 16)
    monkeypatch.setattr(groups, "GRANULE", 8)


@pytest.fixture(params=["llama", "gemma2"])
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    """In float64, where no draw comes as close to a boundary as rounding: tokens are compared
    one by one."""
    return make_engine(make_model(request.param, dtype=torch.float64), EOS_IDS)


def run_alone(
    engine: TorchEngine, prompt_ids: list[int], num_candidates: int, sampling: SamplingParams
) -> Answers:
    prompt = engine.open(prompt_ids, sampling, BUDGET)
    engine.add(prompt, range(num_candidates))
    answers = decode(engine)
    engine.close(prompt)
    return answers


def by_index(answers: Answers) -> dict[int, list[int]]:
    (prompt,) = {prompt for prompt, _ in answers}
    return answers.of(prompt)


def test_the_same_run_twice_is_the_same(engine: TorchEngine) -> None:
    first, second = (run_alone(engine, make_ids(30), 8, SAMPLING) for _ in range(2))
    assert [[token[2:] for token in tokens] for tokens in first.values()] == [
        [token[2:] for token in tokens] for tokens in second.values()
    ]
    assert len({tuple(ids) for ids in by_index(first).values()}) == 8


def test_another_seed_is_another_run(engine: TorchEngine) -> None:
    """One of the 261 tokens is far from certain: eight equal candidates would be odds of less
    than 1e-8."""
    first = by_index(run_alone(engine, make_ids(30), 8, SAMPLING))
    second = by_index(
        run_alone(engine, make_ids(30), 8, SamplingParams(max_new_tokens=40, top_k=0, seed=4))
    )
    assert not [index for index in first if first[index] == second[index] and len(first[index]) > 5]


@pytest.mark.parametrize("after", [1, 2, 7, 8, 9])
def test_dropping_some_never_changes_the_others(engine: TorchEngine, after: int) -> None:
    """P2: who is dropped leaves a prefix, who stays ends as if nobody had been dropped."""
    alone = by_index(run_alone(engine, make_ids(30), 10, SAMPLING))
    prompt = engine.open(make_ids(30), SAMPLING, BUDGET)
    engine.add(prompt, range(10))
    answers = decode(engine, after)
    live = [
        index
        for index, ids in answers.of(prompt).items()
        if len(ids) == after and ids != alone[index]
    ]
    dropped = live[::2]
    engine.drop(prompt, dropped)
    decode(engine, 3, answers)
    engine.drop(
        prompt,
        [index for index in live[1::4] if len(answers.ids(prompt, index)) < len(alone[index])],
    )
    decode(engine, None, answers)
    kept = answers.of(prompt)
    assert len(dropped) >= 2
    for index, ids in alone.items():
        if index in live[::2] or index in live[1::4]:
            assert kept[index] == ids[: len(kept[index])]
        else:
            assert kept[index] == ids
    assert any(len(kept[index]) < len(alone[index]) for index in alone)


@torch.inference_mode()
def test_hidden_states_are_those_the_newest_tokens_were_drawn_from() -> None:
    """Against transformers' own last hidden states; candidates that end in a step still have
    theirs after it."""
    fresh = reference(make_model("llama", dtype=torch.float64))
    engine = make_engine(make_model("llama", dtype=torch.float64), EOS_IDS)
    prompt_ids, answers, num_ended = make_ids(30), Answers(), 0
    prompt = engine.open(prompt_ids, SAMPLING, BUDGET)
    assert engine.hidden_states(prompt) == {}
    engine.add(prompt, range(6))
    while tokens := engine.step():
        answers.add(tokens)
        num_ended += sum(token.finish_reason is not None for token in tokens)
        states = engine.hidden_states(prompt)
        assert sorted(states) == sorted(token.candidate for token in tokens)
        for index, state in states.items():
            ids = [*prompt_ids, *answers.ids(prompt, index)[:-1]]
            output = fresh(
                input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True
            )
            assert np.allclose(state, output.hidden_states[-1][0, -1].numpy(), atol=1e-5)
    assert num_ended == 6


def test_waves_are_the_candidates_of_one_big_batch(engine: TorchEngine) -> None:
    together = by_index(run_alone(engine, make_ids(30), 9, SAMPLING))
    prompt = engine.open(make_ids(30), SAMPLING, BUDGET)
    answers = Answers()
    for wave in ([4, 0], [8], [1, 2, 3, 5, 6, 7]):
        engine.add(prompt, wave)
        decode(engine, None, answers)
    assert answers.of(prompt) == together


def test_many_prompts_in_flight_equal_each_alone(engine: TorchEngine) -> None:
    """Prompts of other lengths, sampled in other ways, that begin at other times and end at
    others."""
    prompts = [make_ids(length, seed=length) for length in (1, 17, 40, 33)]
    samplings = [
        SAMPLING,
        SamplingParams(max_new_tokens=25, temperature=0.7, top_k=20, seed=9),
        SamplingParams(max_new_tokens=40, top_p=0.9, repetition_penalty=1.3, seed=1),
        SamplingParams(max_new_tokens=30, top_k=0, min_p=0.02, ignore_eos=True),
    ]
    alone = [
        by_index(run_alone(engine, ids, 5, sampling))
        for ids, sampling in zip(prompts, samplings, strict=True)
    ]
    handles, answers = [], Answers()
    for ids, sampling in zip(prompts, samplings, strict=True):
        handles.append(engine.open(ids, sampling, BUDGET))
        engine.add(handles[-1], range(5))
        decode(engine, 4, answers)
    decode(engine, 5, answers)
    engine.close(handles[2])
    decode(engine, None, answers)
    for number in (0, 1, 3):
        assert answers.of(handles[number]) == alone[number]
    closed = answers.of(handles[2])
    assert all(ids == alone[2][index][: len(ids)] for index, ids in closed.items())


def test_a_candidate_is_the_same_whatever_it_stands_beside(engine: TorchEngine) -> None:
    """The random stream belongs to the index, not to the row."""
    together = by_index(run_alone(engine, make_ids(30), 6, SAMPLING))
    prompt = engine.open(make_ids(30), SAMPLING, BUDGET)
    engine.add(prompt, [5])
    assert decode(engine).of(prompt) == {5: together[5]}
    engine.add(prompt, [2, 10**9])
    answers = decode(engine).of(prompt)
    assert answers[2] == together[2]
    assert answers[10**9] not in together.values()


def test_a_prompt_is_read_once(engine: TorchEngine) -> None:
    """P7: the model sees every prompt token once, and every token of an answer but the last
    once."""
    fed: list[int] = []
    num_passes = itertools.count()

    def note(_: Any, __: Any, given: dict[str, Tensor]) -> None:
        fed.extend(given["input_ids"].flatten().tolist())
        next(num_passes)

    engine.model.register_forward_pre_hook(note, with_kwargs=True)
    prompt_ids = make_ids(40)
    prompt = engine.open(prompt_ids, SAMPLING, BUDGET)
    assert fed == prompt_ids
    assert next(num_passes) == 3
    engine.add(prompt, range(7))
    answers = decode(engine, 5)
    dropped = next(index for index, ids in answers.of(prompt).items() if len(ids) == 5)
    engine.drop(prompt, [dropped])
    decode(engine, None, answers)
    engine.add(prompt, [7, 8])
    decode(engine, None, answers)
    assert sorted(fed[40:]) == sorted(
        itertools.chain.from_iterable(ids[:-1] for ids in answers.of(prompt).values())
    )


def test_one_pass_serves_all_prompts(engine: TorchEngine) -> None:
    prompts = [engine.open(make_ids(length), SAMPLING, BUDGET) for length in (5, 9, 30)]
    for prompt in prompts:
        engine.add(prompt, range(2))
    shapes: list[tuple[int, ...]] = []
    engine.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    # The first token of every candidate comes from the logits of the prompt.
    assert len(engine.step()) == 6
    assert shapes == []
    num_live = sum(token.finish_reason is None for token in engine.step())
    assert len(shapes) == 1
    engine.step()
    assert shapes[1:] == [(num_live, 1)]


def test_a_step_of_some_prompts_leaves_the_others_where_they_are(engine: TorchEngine) -> None:
    prompts = [make_ids(length, seed=length) for length in (30, 17)]
    alone = [by_index(run_alone(engine, ids, 4, SAMPLING)) for ids in prompts]
    first, second = (engine.open(ids, SAMPLING, BUDGET) for ids in prompts)
    for prompt in (first, second):
        engine.add(prompt, range(4))
    answers = decode(engine, 2)
    before = engine.memory(second)
    for _ in range(5):
        tokens = engine.step({first: BUDGET})
        assert {token.prompt for token in tokens} == {first}
        answers.add(tokens)
    assert engine.memory(second) == before
    assert engine.step({}) == []
    answers.add(engine.step({second: BUDGET}))
    decode(engine, None, answers)
    assert [answers.of(first), answers.of(second)] == alone


def test_endings() -> None:
    engine = make_engine(make_model("llama"), EOS_IDS)
    answers = run_alone(engine, make_ids(20), 30, SamplingParams(max_new_tokens=12, top_k=0))
    reasons = set()
    for tokens in answers.values():
        *before, last = tokens
        assert all(
            token.finish_reason is None and token.token_id not in EOS_IDS for token in before
        )
        assert last.finish_reason == ("eos" if last.token_id in EOS_IDS else "length")
        assert len(tokens) == 12 or last.finish_reason == "eos"
        reasons.add(last.finish_reason)
    assert reasons == {"eos", "length"}


def test_ignored_eos_does_not_end() -> None:
    engine = make_engine(make_model("llama"), EOS_IDS)
    answers = run_alone(
        engine, make_ids(20), 10, SamplingParams(max_new_tokens=30, top_k=0, ignore_eos=True)
    )
    assert {len(tokens) for tokens in answers.values()} == {30}
    assert any(token.token_id in EOS_IDS for tokens in answers.values() for token in tokens[:-1])
    assert {tokens[-1].finish_reason for tokens in answers.values()} == {"length"}


def test_an_answer_of_one_token() -> None:
    engine = make_engine(make_model("llama"))
    prompt_ids = make_ids(20)
    budget = engine.kv_bytes(len(prompt_ids), 4, 1)
    prompt = engine.open(prompt_ids, SamplingParams(max_new_tokens=1), budget)
    engine.add(prompt, range(4))
    assert engine.memory(prompt).next_step <= budget
    assert [token.finish_reason for token in engine.step()] == ["length"] * 4
    assert engine.step() == []
    assert engine.memory(prompt).peak == budget


def test_dropping_nobody_changes_nothing() -> None:
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(20), SAMPLING, BUDGET)
    engine.add(prompt, range(3))
    decode(engine, 2)
    before = engine.memory(prompt)
    engine.drop(prompt, [])
    engine.drop(prompt, [77])
    assert engine.memory(prompt) == before
    assert len(engine.step()) == 3


def test_candidates_can_be_dropped_before_their_first_token() -> None:
    """As a search gives them up when memory runs out in the very first step."""
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(20), SAMPLING, BUDGET)
    engine.add(prompt, range(4))
    engine.drop(prompt, [0, 2])
    assert [token.candidate for token in engine.step()] == [3, 1]


def test_a_closed_prompt_is_gone_and_its_number_is_not_used_again() -> None:
    engine = make_engine(make_model("llama"))
    first = engine.open(make_ids(20), SAMPLING, BUDGET)
    engine.add(first, [0])
    engine.close(first)
    assert engine.step() == []
    second = engine.open(make_ids(20), SAMPLING, BUDGET)
    assert second != first
    with pytest.raises(KeyError):
        engine.memory(first)


def test_a_repetition_penalty_counts_prompt_and_answer() -> None:
    """With an extreme penalty and the most likely token taken, nothing comes twice, whoever
    leaves in between."""
    engine = make_engine(make_model("llama"))
    prompt_ids = make_ids(40)
    sampling = SamplingParams(max_new_tokens=60, top_k=5, repetition_penalty=1e9)
    prompt = engine.open(prompt_ids, sampling, BUDGET)
    engine.add(prompt, range(6))
    answers = decode(engine, 20)
    engine.drop(prompt, [0, 3])
    decode(engine, None, answers)
    for ids in answers.of(prompt).values():
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(prompt_ids)


PENALTIES: dict[str, Any] = {
    "frequency_penalty": 0.9,
    "presence_penalty": 0.6,
    "logit_bias": ((3, 2.5), (17, -100), (40, 1.5)),
    "top_logprobs": 3,
}


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"repetition_penalty": 1.2}])
def test_penalties_count_the_answer_alone_whoever_leaves(more: dict[str, Any]) -> None:
    """Every token again from transformers' own forward pass, with penalties counted by hand."""
    model = make_model("llama", dtype=torch.float64)
    exact, engine, prompt_ids = reference(model), make_engine(model), make_ids(24)
    sampling = SamplingParams(max_new_tokens=30, top_k=20, ignore_eos=True, **PENALTIES, **more)
    prompt = engine.open(prompt_ids, sampling, BUDGET)
    engine.add(prompt, range(5))
    answers: dict[int, list[Token]] = {}
    for step in range(30):
        if step == 11:
            engine.drop(prompt, [0, 3])
        for token in engine.step():
            answers.setdefault(token.candidate, []).append(token)
    assert sorted(map(len, answers.values())) == [11, 11, 30, 30, 30]
    plain = SamplingParams(top_k=20, temperature=sampling.temperature)
    for index, tokens in answers.items():
        ids = [token.token_id for token in tokens]
        logits = full_logits(exact, [*prompt_ids, *ids])[len(prompt_ids) - 1 : -1].clone()
        for place, (token, row) in enumerate(zip(tokens, logits, strict=True)):
            scores = row.clone()
            for token_id, bias in sampling.logit_bias:
                scores[token_id] += bias
            for token_id in {*prompt_ids, *ids[:place]}:
                penalty = sampling.repetition_penalty
                scores[token_id] *= penalty if scores[token_id] < 0 else 1 / penalty
            for token_id in set(ids[:place]):
                scores[token_id] -= 0.6 + 0.9 * ids[:place].count(token_id)
            numbers = torch.from_numpy(uniforms(sampling.seed, [index], place))
            assert sample(scores[None], plain, numbers)[0].tolist() == [token.token_id]
            logprobs = row.log_softmax(-1)
            values, likely = logprobs.topk(3)
            top = token.top_logprobs or ()
            assert [one for one, _ in top] == likely.tolist()
            assert [number for _, number in top] == pytest.approx(values.tolist(), abs=1e-5)
            assert token.logprob == pytest.approx(logprobs[token.token_id].item(), abs=1e-5)


def test_a_bias_for_a_token_beyond_the_vocabulary_is_refused() -> None:
    engine = make_engine(make_model("llama"))
    with pytest.raises(SamplingError, match=f"below {VOCABULARY}, got {VOCABULARY}"):
        engine.check_sampling(SamplingParams(logit_bias=((1, 1), (VOCABULARY, 1))))


def test_what_is_off_costs_nothing() -> None:
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(4), SamplingParams(), BUDGET)
    engine.add(prompt, range(3))
    assert all(token.top_logprobs is None for token in engine.step())
    assert engine._runs[prompt].history == History()


def test_default_budget_of_a_cpu_holds_eight_answers() -> None:
    engine = make_engine(make_model("llama"))
    assert engine.default_budget(100, 50) == engine.kv_bytes(100, 8, 50)


def test_fp16_weights_stay_close() -> None:
    model = make_model("llama")
    exact = reference(model)
    engine = wrap(model, make_tokenizer(), weights="fp16")
    prompt_ids = make_ids(40)
    prompt = engine.open(prompt_ids, SamplingParams(max_new_tokens=40, ignore_eos=True), BUDGET)
    engine.add(prompt, range(4))
    for (_, _), tokens in decode(engine).items():
        assert (
            errors_of(
                exact, prompt_ids, [t.token_id for t in tokens], [t.logprob for t in tokens]
            ).max()
            < 0.05
        )


def errors_of(
    model: Any, prompt_ids: list[int], ids: list[int], logprobs: Sequence[float | None]
) -> Tensor:
    """Differences of log-probabilities from those of transformers' full pass."""
    expected = full_logits(model, prompt_ids + ids)[len(prompt_ids) - 1 : -1].log_softmax(-1)
    return (
        expected.gather(1, torch.tensor(ids, device=expected.device)[:, None])[:, 0].cpu()
        - torch.tensor(logprobs)
    ).abs()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """Transformers' own model, for reference."""
    auto: Any = transformers.AutoModelForCausalLM
    directory = defaults.locate("smollm2")
    return auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


PROMPTS = [
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a letter. " * 20,
]


@pytest.mark.slow
def test_smollm2_in_float32_is_the_model_of_transformers(
    smollm2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    engine = load_engine("smollm2", weights="fp32", device="cpu")
    sampling = SamplingParams(max_new_tokens=groups.GRANULE + 16, top_k=0, seed=1)
    prompts = {engine.open(engine.encode(text), sampling, 2**28): text for text in PROMPTS}
    for prompt in prompts:
        engine.add(prompt, range(4))
    answers = decode(engine)
    errors = torch.cat(
        [
            errors_of(
                smollm2,
                engine.encode(prompts[prompt]),
                answers.ids(prompt, index),
                [t.logprob for t in tokens],
            )
            for (prompt, index), tokens in answers.items()
        ]
    )
    print(
        f"SmolLM2 fp32: {len(errors)} tokens, largest error {errors.max():.1e} nats, mean "
        f"{errors.mean():.1e}"
    )
    assert len(errors) > 300
    assert errors.max() < 1e-4


@pytest.mark.slow
def test_smollm2_in_float16_is_nearly_the_model_of_transformers(smollm2: Any) -> None:
    """Over its own answers: the most likely token at every position, and the divergence."""
    engine = load_engine("smollm2", weights="fp16", device="cpu")
    divergences, num_equal = [], 0
    for text in PROMPTS:
        prompt_ids = engine.encode(text)
        for ids, logits in answers_with_logits(engine, prompt_ids, 4, 32):
            expected = full_logits(smollm2, prompt_ids + ids)[len(prompt_ids) - 1 : -1].log_softmax(
                -1
            )
            actual = logits.log_softmax(-1)
            divergences.append((expected.exp() * (expected - actual)).sum(-1))
            num_equal += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    divergence = torch.cat(divergences)
    share = num_equal / len(divergence)
    print(
        f"SmolLM2 fp16: {len(divergence)} positions, top-1 equal {share:.2%}, "
        f"KL mean {divergence.mean():.1e}, largest {divergence.max():.1e} nats"
    )
    assert len(divergence) == len(PROMPTS) * 4 * 32
    assert share >= 0.99
    assert divergence.mean() < 1e-4


def answers_with_logits(
    engine: TorchEngine, prompt_ids: list[int], num_answers: int, num_tokens: int
) -> list[tuple[list[int], Tensor]]:
    """Token ids of some answers, each with the logits `[tokens, vocabulary]` that they were
    drawn from."""
    steps: list[Tensor] = []

    def draw(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        steps.append(
            logits.float().expand(num_answers, -1).clone()
        )  # the first one is that of the prompt, for all
        return sample(logits, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "sample", draw)
        sampling = SamplingParams(
            max_new_tokens=num_tokens, ignore_eos=True, temperature=0.5, seed=1
        )
        prompt = engine.open(prompt_ids, sampling, 2**28)
        engine.add(prompt, range(num_answers))
        answers = decode(engine)
    engine.close(prompt)
    return [
        (answers.ids(prompt, index), torch.stack([step[index] for step in steps]))
        for index in range(num_answers)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_gpu_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(name, dtype=torch.bfloat16).to("cuda")
    exact = reference(model)
    engine = make_engine(model, EOS_IDS)
    assert engine.describe()["weights"] == "bfloat16"
    prompt_ids = make_ids(40)
    budget = engine.kv_bytes(len(prompt_ids), 6, 40)
    assert budget < engine.default_budget(40, 40)
    prompt = engine.open(prompt_ids, SAMPLING, budget)
    engine.add(prompt, range(6))
    answers = decode(engine, 10)
    engine.drop(prompt, [0])
    decode(engine, None, answers)
    assert engine.memory(prompt).peak <= budget
    for (_, index), tokens in answers.items():
        errors = errors_of(
            exact, prompt_ids, answers.ids(prompt, index), [token.logprob for token in tokens]
        )
        assert errors.max() < 0.5
        assert errors.mean() < 0.1
