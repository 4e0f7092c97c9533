"""Filters against transformers' processors, draws against their probabilities, and the edges of the
inverse CDF.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from extremes import EXTREME
from specrej.engines.streams import uniforms
from specrej.engines.torch.sampling import (
    LOST,
    History,
    adjusted,
    begin_history,
    candidates_of,
    largest,
    likeliest,
    penalize,
    sample,
)
from specrej.types import SamplingParams
from tiny import make_model

BELOW_ONE = float(np.nextafter(1.0, 0.0))
WIDTHS = [7, 100, 261, 512, 1000]


@functools.cache
def generator() -> Any:
    return make_model("gpt2")


def processed(logits: Tensor, ids: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities after what `generate` itself does for these parameters, in its order."""
    return cast("Tensor", processors_of(params)(ids, logits.clone())).softmax(-1)


def processors_of(params: SamplingParams) -> Any:
    make: Any = transformers.GenerationConfig
    config = make(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        repetition_penalty=params.repetition_penalty,
        # What generate fills in for itself.
        num_beams=1,
        renormalize_logits=False,
        remove_invalid_values=False,
    )
    return generator()._get_logits_processor(config, input_ids_seq_length=1)


def seen_of(ids: Tensor, width: int, params: SamplingParams) -> Tensor | None:
    if params.repetition_penalty == 1.0:
        return None
    return torch.zeros(len(ids), width, dtype=torch.bool).scatter_(1, ids, True)


def probabilities_of(logits: Tensor, params: SamplingParams, seen: Tensor | None) -> Tensor:
    """Probabilities of all tokens after the filters."""
    scores = logits if seen is None else penalize(logits, seen, params.repetition_penalty)
    values, ids = candidates_of(scores, params)
    probabilities = values.softmax(-1)
    return probabilities if ids is None else torch.zeros_like(logits).scatter(1, ids, probabilities)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.3, 0.7, 1.0, 1.7])),
        top_k=draw(st.sampled_from([0, 1, 3, 20, 50, 5000])),
        top_p=draw(st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.3])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(params=sampling_params(), seed=st.integers(0, 10**6), width=st.sampled_from(WIDTHS))
def test_the_filters_are_those_of_transformers(
    params: SamplingParams, seed: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, width, generator=generator) * 3
    ids = torch.randint(width, (4, 12), generator=generator)
    expected = processed(logits, ids, params)
    actual = probabilities_of(logits, params, seen_of(ids, width, params))
    # A token on the very edge of top-p could fall to either side (ours sums from the top,
    # transformers from below); the examples are the same in every run, and none of them has one.
    assert torch.equal(actual > 0, expected > 0)
    assert (actual - expected).abs().max() < 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_the_unit_interval_is_shared_out_by_these_probabilities(seed: int) -> None:
    """Uniforms on a grid: of an interval of length p, a grid of n points meets pn of them, give
    or take one."""
    num_points, width = 2000, 261
    generator = torch.Generator().manual_seed(seed)
    params = SamplingParams(
        temperature=[0.5, 1.0, 1.5][seed % 3],
        top_k=[0, 8, 40, 200][seed % 4],
        top_p=[1.0, 0.9][seed % 2],
        min_p=[0.0, 0.05][seed // 6],
        repetition_penalty=[1.0, 1.3][seed // 2 % 2],
    )
    logits = torch.randn(1, width, generator=generator) * 3
    ids = torch.randint(width, (1, 12), generator=generator)
    expected = processed(logits, ids, params)[0]
    grid = (torch.arange(num_points, dtype=torch.float64) + 0.5) / num_points
    tokens, _ = sample(logits, params, grid, History(seen=seen_of(ids, width, params)))
    counts = torch.bincount(tokens, minlength=width)
    assert (counts - expected * num_points).abs().max() < 1.01
    assert counts[expected == 0].sum() == 0


def test_generate_applies_the_filters_in_the_order_that_is_tested() -> None:
    params = SamplingParams(temperature=0.5, top_k=5, top_p=0.5, min_p=0.1, repetition_penalty=1.5)
    names = [type(processor).__name__ for processor in processors_of(params)]
    assert names == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=0),
        SamplingParams(top_k=0, temperature=0.6),
        SamplingParams(top_k=20),
        SamplingParams(top_k=0, top_p=0.8),
        SamplingParams(top_k=40, top_p=0.9, min_p=0.02, temperature=1.2, repetition_penalty=1.2),
    ],
)
def test_draws_follow_the_probabilities(params: SamplingParams) -> None:
    """Chi-square of 30,000 draws, one for each candidate's stream. Each case fails a right
    sampler with odds of 1e-6 over seeds; the seed is fixed, so it fails always or never."""
    num_draws, width = 30_000, 300
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, width, generator=generator) * 2
    ids = torch.randint(width, (1, 12), generator=generator)
    expected = processed(logits, ids, params)[0].double().numpy()

    numbers = torch.from_numpy(uniforms(seed=11, candidates=range(num_draws), position=4))
    tokens, _ = sample(logits, params, numbers, History(seen=seen_of(ids, width, params)))
    counts = torch.bincount(tokens, minlength=width).numpy()
    assert counts[expected == 0].sum() == 0
    # Cells of fewer than five expected draws are put together.
    large = expected * num_draws >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum()) * num_draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-6


@pytest.mark.parametrize("candidates", [range(20_000), range(10**12, 10**12 + 20_000)])
def test_the_uniforms_are_uniform_over_candidates(candidates: range) -> None:
    """Chi-square over 100 bins; fails a right generator with odds of 1e-6 over seeds."""
    counts, _ = np.histogram(
        uniforms(seed=7, candidates=candidates, position=0), bins=100, range=(0, 1)
    )
    assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, BELOW_ONE, 1 - 2.0**-25, 1 - 2.0**-24])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=0),
        SamplingParams(top_k=50),
        SamplingParams(top_k=200, top_p=0.5),
        SamplingParams(top_k=0, top_p=0.5),
        SamplingParams(top_k=0, min_p=0.2),
        SamplingParams(top_k=0, temperature=0.01),
    ],
)
def test_a_token_without_probability_is_never_drawn(uniform: float, params: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (40, 500):
        logits = torch.randn(8, width, generator=generator)
        logits[:, :9] = -torch.inf
        logits[:, -9:] = -torch.inf
        logits[4:, 9:-9] -= 3e4  # as half precision may hold
        tokens, logprobs = sample(logits, params, torch.full((8,), uniform, dtype=torch.float64))
        assert ((tokens >= 9) & (tokens < width - 9)).all()
        assert logprobs.isfinite().all()
        probabilities = (logits / params.temperature).softmax(-1).gather(1, tokens[:, None])
        assert (probabilities > 0).all()


def test_half_precision_logits_with_a_far_tail() -> None:
    """Tokens whose probability is zero in float32 stand at both ends of the vocabulary."""
    logits = torch.full((1, 300), -200.0)
    logits[0, 100:103] = torch.tensor([1.0, 2.0, 3.0])
    numbers = torch.tensor([0.0, BELOW_ONE], dtype=torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tokens, logprobs = sample(logits.to(dtype), SamplingParams(top_k=0), numbers)
        assert tokens.tolist() == [100, 102]
        expected = torch.tensor([1.0, 2.0, 3.0]).log_softmax(-1)[[0, 2]]
        assert torch.allclose(logprobs.float(), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 31, 32, 33, 70])
def test_logprobs_are_those_of_all_tokens_at_temperature_one(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 5000, generator=generator) * 4 + 20
    numbers = torch.rand(rows, generator=generator, dtype=torch.float64)
    seen = torch.rand(rows, 5000, generator=generator) < 0.1
    params = SamplingParams(temperature=0.5, top_k=9, top_p=0.9, repetition_penalty=1.4)
    tokens, logprobs = sample(logits, params, numbers, History(seen=seen))
    expected = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    assert (logprobs.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "params", [SamplingParams(top_k=0), SamplingParams(top_k=5), SamplingParams(top_p=0.7)]
)
def test_one_row_of_logits_for_all_candidates_is_that_row_repeated(params: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 400, generator=generator)
    numbers = torch.rand(50, generator=generator, dtype=torch.float64)
    shared = sample(logits, params, numbers)
    repeated = sample(logits.repeat(50, 1), params, numbers)
    assert torch.equal(shared[0], repeated[0])
    assert torch.equal(shared[1], repeated[1])
    assert len(set(shared[0].tolist())) > 3


@pytest.mark.parametrize(
    "params", [SamplingParams(top_k=0), SamplingParams(top_k=50), SamplingParams(top_p=0.7)]
)
def test_a_row_does_not_depend_on_its_neighbours(params: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(41, 12_800, generator=generator)
    numbers = torch.rand(41, generator=generator, dtype=torch.float64)
    tokens, logprobs = sample(logits, params, numbers)
    for row in (0, 31, 32, 40):
        token, logprob = sample(logits[row : row + 1], params, numbers[row : row + 1])
        assert token.item() == tokens[row].item()
        assert logprob.item() == logprobs[row].item()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    width=st.sampled_from([1, 5, 127, 128, 129, 1000, 1280, 12_800, 12_801]),
    k=st.sampled_from([1, 2, 5, 50]),
    levels=st.sampled_from([1, 2, 7, 50, None]),
    seed=st.integers(0, 10**6),
)
def test_largest_is_topk(width: int, k: int, levels: int | None, seed: int) -> None:
    """`levels` distinct values only: ties within segments and across them."""
    k = min(k, width)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, width, generator=generator)
    if levels is not None:
        scores = torch.randint(levels, (3, width), generator=generator).float()
    if seed % 3 == 0:
        scores[:, width // 3 :] = -torch.inf
    values, ids = largest(scores, k)
    assert torch.equal(values, torch.topk(scores, k, -1).values)
    assert torch.equal(scores.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


def drawn(logits: Sequence[float], params: SamplingParams, *, seen: Sequence[int] = ()) -> set[int]:
    """All tokens that some uniform leads to."""
    row = torch.tensor([logits])
    mask = torch.zeros_like(row, dtype=torch.bool)
    mask[0, list(seen)] = True
    grid = torch.linspace(0, BELOW_ONE, 1001, dtype=torch.float64)
    return set(sample(row, params, grid, History(seen=mask if seen else None))[0].tolist())


def test_filters_by_hand() -> None:
    logits = np.log([0.5, 0.25, 0.15, 0.1]).tolist()
    assert drawn(logits, SamplingParams(top_k=0)) == {0, 1, 2, 3}
    assert drawn(logits, SamplingParams(top_k=2)) == {0, 1}
    assert drawn(logits, SamplingParams(top_k=0, top_p=0.45)) == {0}
    assert drawn(logits, SamplingParams(top_k=0, top_p=0.7)) == {0, 1}
    assert drawn(logits, SamplingParams(top_k=0, top_p=0.85)) == {0, 1, 2}
    assert drawn(logits, SamplingParams(top_k=0, min_p=0.4)) == {0, 1}
    # Top-p counts what top-k has left: 0.5 and 0.25 are two thirds and one third.
    assert drawn(logits, SamplingParams(top_k=2, top_p=0.6)) == {0}
    # A penalized token falls behind; negative logits are multiplied.
    assert drawn(logits, SamplingParams(top_k=1, repetition_penalty=5.0), seen=[0]) == {1}
    assert drawn([2.0, 1.5], SamplingParams(top_k=1, repetition_penalty=2.0), seen=[0]) == {1}


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 0}, {"top_k": 0, "top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2**31 - 1}]
)
@pytest.mark.parametrize("temperature", [0, -0.0, 1e-38, 1e-40, 5e-324, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float, options: dict[str, Any]) -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(3)) * 4
    numbers = torch.linspace(0, BELOW_ONE, 6, dtype=torch.float64)
    tokens, logprobs = sample(logits, SamplingParams(temperature=temperature, **options), numbers)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1))


def test_greedy_tokens_are_those_of_transformers_under_a_penalty_as_well() -> None:
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(4)) * 4
    ids = logits.argsort(-1, descending=True)[:, :8]
    params = SamplingParams(temperature=0, repetition_penalty=1.8)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.8)(ids, logits.clone()).argmax(-1)
    assert torch.equal(
        sample(
            logits,
            params,
            torch.zeros(5, dtype=torch.float64),
            History(seen=seen_of(ids, 200, params)),
        )[0],
        expected,
    )
    assert not torch.equal(logits.argmax(-1), expected)


@pytest.mark.parametrize(
    "params", [SamplingParams(top_p=p, top_k=k) for p in (1e-46, 5e-324, 1e-9) for k in (0, 5)]
)
def test_a_tiny_top_p_keeps_the_likeliest_token(params: SamplingParams) -> None:
    assert drawn([0.0, 3.0, 2.999, -1.0], params) == {1}


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e308])
@pytest.mark.parametrize(
    ("options", "kept"), [({}, {0, 1, 3}), ({"top_k": 2}, {0, 1}), ({"top_k": 0}, {0, 1, 3})]
)
def test_a_huge_temperature_draws_evenly_from_what_the_filters_keep(
    temperature: float, options: dict[str, Any], kept: set[int]
) -> None:
    logits = torch.tensor([[9.0, 50.0, -torch.inf, -9.0]])
    grid = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    counts = torch.bincount(
        sample(logits, SamplingParams(temperature=temperature, **options), grid)[0], minlength=4
    )
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == dict.fromkeys(
        kept, 600 // len(kept)
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    params=EXTREME,
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 30.0, 1e4, 1e20]),
)
def test_whatever_the_parameters_a_row_is_sampled_from_its_finite_logits(
    params: SamplingParams, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 261, generator=generator) * scale
    logits[:, ::7] = -torch.inf  # tokens that the model itself masks
    seen = torch.rand(4, 261, generator=generator) < 0.1 if params.repetition_penalty != 1 else None
    numbers = torch.tensor([0.0, BELOW_ONE, 0.5, 0.9], dtype=torch.float64)
    tokens, logprobs = sample(logits, params, numbers, History(seen=seen))
    assert logprobs.isfinite().all()
    assert logits.gather(1, tokens[:, None]).isfinite().all(), (
        "a token that the model rules out, or none"
    )


def unsound(row: Tensor, kind: str) -> Tensor:
    row = row.clone()
    if kind == "all masked":
        return row.fill_(-torch.inf)
    value = {"nan": torch.nan, "inf": torch.inf, "nan and inf": torch.nan}[kind]
    row[row.argmin()] = value
    row[0] = torch.inf if kind == "nan and inf" else row[0]
    return row


@pytest.mark.parametrize("kind", ["nan", "inf", "nan and inf", "all masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(params=EXTREME, width=st.sampled_from([261, 12_800]), seed=st.integers(0, 99))
def test_a_row_that_is_not_finite_is_lost_and_the_others_do_not_notice(
    kind: str, dtype: torch.dtype, params: SamplingParams, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(5, width, generator=generator) * 4).to(dtype)
    broken = logits.clone()
    for row in (0, 3):
        broken[row] = unsound(logits[row], kind)
    seen = torch.zeros(5, width, dtype=torch.bool) if params.repetition_penalty != 1 else None
    numbers = torch.tensor([BELOW_ONE, 0.0, 0.3, BELOW_ONE, 0.7], dtype=torch.float64)
    expected, actual = (
        sample(logits, params, numbers, History(seen=seen)),
        sample(broken, params, numbers, History(seen=seen)),
    )
    assert [token == LOST for token in actual[0].tolist()] == [True, False, False, True, False]
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(one[[1, 2, 4]], other[[1, 2, 4]])
    shared = sample(broken[:1], params, numbers, History(seen=None if seen is None else seen[:1]))
    assert shared[0].tolist() == [LOST] * 5


def test_a_penalty_that_overflows_loses_its_row_alone() -> None:
    logits = torch.tensor([[3e38, 0.0, 1.0], [3e3, 0.0, 1.0]])
    params = SamplingParams(repetition_penalty=1e-9, top_k=0)
    seen = torch.tensor([[True, False, False]] * 2)
    for temperature in (0, 0.5, 1.0):
        one = dataclasses.replace(params, temperature=temperature)
        assert sample(logits, one, torch.full((2,), 0.5, dtype=torch.float64), History(seen=seen))[
            0
        ].tolist() == [LOST, 0]


@st.composite
def penalties(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(st.lists(st.integers(0, 6), unique=True))
    return {
        "frequency_penalty": draw(st.sampled_from([0.0, -2.0, 0.3, 2.0])),
        "presence_penalty": draw(st.sampled_from([0.0, -1.5, 0.4, 2.0])),
        "logit_bias": tuple(
            (one, draw(st.sampled_from([-100, -1.5, 2, 100]))) for one in sorted(ids)
        ),
    }


def penalized(logits: Tensor, prompt: Tensor, answers: Tensor, params: SamplingParams) -> Tensor:
    """Bias and repetition penalty by transformers' own processors, the others token by token."""
    scores, ids = logits.clone(), torch.cat([prompt.expand(len(answers), -1), answers], 1)
    if params.logit_bias:
        biases: Any = {(token_id,): float(bias) for token_id, bias in params.logit_bias}
        scores = transformers.SequenceBiasLogitsProcessor(biases)(ids, scores)
    if params.repetition_penalty != 1.0:
        make: Any = transformers.RepetitionPenaltyLogitsProcessor
        scores = make(params.repetition_penalty)(ids, scores)
    for row, answer in enumerate(answers.tolist()):
        for token_id in set(answer):
            scores[row, token_id] -= params.frequency_penalty * answer.count(token_id)
            scores[row, token_id] -= params.presence_penalty
    return scores


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    params=sampling_params(),
    more=penalties(),
    seed=st.integers(0, 10**6),
    width=st.sampled_from(WIDTHS),
    num_drawn=st.integers(0, 12),
)
def test_bias_and_penalties_come_before_the_filters(
    params: SamplingParams, more: dict[str, Any], seed: int, width: int, num_drawn: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = dataclasses.replace(params, **more)
    logits = torch.randn(4, width, generator=generator) * 3
    prompt = torch.randint(width, (1, 5), generator=generator)
    answers = torch.randint(min(width, 9), (4, num_drawn), generator=generator)
    scores = penalized(logits, prompt, answers, params)
    history = begin_history(params, prompt[0].tolist(), 4, width, logits.device)
    for place in range(num_drawn):
        history.add(answers[:, place : place + 1], range(4))
    assert (adjusted(logits, params, history) - scores).abs().max() < 1e-4
    order = [3, 1]
    left = adjusted(logits[order], params, history.of_rows(order))
    assert (left - scores[order]).abs().max() < 1e-4
    greedy = dataclasses.replace(params, temperature=0)
    numbers = torch.full((4,), 0.5, dtype=torch.float64)
    tokens, logprobs = sample(logits, greedy, numbers, history)
    gap = scores.amax(-1) - scores.gather(1, tokens[:, None])[:, 0]
    assert gap.abs().max() < 1e-4
    # What is reported is the model's.
    model = logits.log_softmax(-1)
    assert (model.gather(1, tokens[:, None])[:, 0] - logprobs).abs().max() < 1e-5


def test_bias_and_penalties_that_are_off_hold_nothing() -> None:
    history = begin_history(SamplingParams(), [1, 2], 3, 9, torch.device("cpu"))
    assert history == History(None, None, None)
    logits = torch.randn(3, 9)
    assert adjusted(logits, SamplingParams(), history) is logits


@pytest.mark.parametrize("width", [3, 261, 12_800])
def test_the_likeliest_tokens_are_those_of_a_softmax(width: int) -> None:
    logits = torch.randn(4, width, generator=torch.Generator().manual_seed(1)) * 3
    values, ids = torch.topk(logits.double().log_softmax(-1), min(5, width), -1)
    found = likeliest(logits, 5)
    assert [[one for one, _ in row] for row in found] == ids.tolist()
    numbers = torch.tensor([[number for _, number in row] for row in found])
    assert (numbers - values).abs().max() < 1e-5
