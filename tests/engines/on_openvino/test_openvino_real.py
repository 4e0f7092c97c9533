"""SmolLM2 through OpenVINO, against transformers."""

import pytest

from fakes import watched
from specrej.types import SamplingParams

pytest.importorskip("openvino_genai")

from opened import logprobs, real_engine, real_model, run

pytestmark = pytest.mark.slow


def test_log_probabilities_are_the_models_before_temperature_and_filters() -> None:
    engine = real_engine()
    prompt = engine.encode("Give three tips for staying healthy.")
    sampling = SamplingParams(max_new_tokens=32, temperature=0.7, top_k=50, ignore_eos=True, seed=1)
    for token_ids, found in run(engine, prompt, sampling, range(3)).values():
        assert found == pytest.approx(logprobs(real_model(), prompt, token_ids), abs=1e-3)


def test_a_candidates_tokens_are_the_same_in_any_company() -> None:
    engine = real_engine()
    prompt = engine.encode("Name a tree.")
    sampling = SamplingParams(max_new_tokens=24, ignore_eos=True, seed=2)
    together = run(engine, prompt, sampling, range(8))
    assert len({tuple(token_ids) for token_ids, _ in together.values()}) == 8
    assert (
        run(engine, prompt, sampling, range(8), {6: [0, 1, 2, 3], 9: [4, 5], 14: [6]})[7][0]
        == together[7][0]
    )
    assert run(engine, prompt, sampling, [3])[3][0] == together[3][0]


def test_speculative_rejection_keeps_its_budget() -> None:
    engine = real_engine()
    budget = engine.kv_bytes(len(engine.encode("Is water wet?")), 6, 48)
    page_bytes = engine.layout.page * engine.layout.bytes_per_token
    measured = []
    result = watched(
        "Is water wet?",
        model=engine,
        reward=lambda prompt, texts: [float(len(text)) for text in texts],
        memory=budget,
        min_tokens=8,
        max_new_tokens=48,
        seed=1,
        observe=lambda search: measured.append(engine.backend.pages_in_use() * page_bytes),
    )
    assert budget / 2 < max(measured) <= budget
    assert len(result.candidates) > 6
    assert any(decision.cause == "budget" for decision in result.decisions)
    assert result.text.isascii()
