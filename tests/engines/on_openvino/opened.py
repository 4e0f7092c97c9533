"""What the tests of the OpenVINO engine share: engines that are opened once, and the models they
should compute.

engine = tiny_engine()                        # opened in half a second
expected = logprobs(tiny_model(), prompt, token_ids)
"""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from real import smollm2_on_openvino
from specrej.engines.opening import open_engine
from specrej.engines.paged import PagedEngine
from specrej.hub import defaults
from specrej.hub.gguf import write_gguf
from specrej.types import SamplingParams
from tiny import CHAT_TEMPLATE, full_logits, make_model, make_tokenizer

PAGE = 32
NUM_PAGES = 200
ENDS = list(range(3))
"""Tokens that end an answer of the tiny model: enough of them for some to come early."""


@cache
def tiny_engine(num_pages: int = NUM_PAGES) -> PagedEngine:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = make_model("llama")
        model.generation_config.eos_token_id = ENDS
        model.save_pretrained(directory)
        make_tokenizer(CHAT_TEMPLATE).save_pretrained(directory)
        write_gguf(directory, directory / "model.gguf")
        return opened(directory / "model.gguf", num_kv_blocks=num_pages)


@cache
def tiny_model() -> Any:
    return rounded(make_model("llama"))


@cache
def real_engine() -> PagedEngine:
    engine = smollm2_on_openvino()
    assert isinstance(engine, PagedEngine)
    return engine


@cache
def real_model() -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    return rounded(auto.from_pretrained(defaults.locate("smollm2"), dtype=torch.float32).eval())


def opened(model: str | Path, **arguments: Any) -> PagedEngine:
    engine = open_engine(model, engine="openvino", engine_args=arguments)
    assert isinstance(engine, PagedEngine)
    return engine


@torch.no_grad()
def rounded(model: Any) -> Any:
    """A model with the weights that are in its GGUF file."""
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(weight.half().float())
    return model


def logprobs(model: Any, prompt: Sequence[int], token_ids: Sequence[int]) -> list[float]:
    """Of these tokens after a prompt, as transformers computes them in one pass."""
    ids = [*prompt, *token_ids]
    rows = torch.log_softmax(full_logits(model, ids), dim=-1)[len(prompt) - 1 : -1]
    picked: list[float] = rows.gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    return picked


Answers = dict[int, tuple[list[int], list[float | None]]]
"""Token ids and log-probabilities by candidate."""


def run(
    engine: PagedEngine,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    indices: Sequence[int],
    drops: Mapping[int, Sequence[int]] | None = None,
) -> Answers:
    """Decode candidates to their end, some of which are dropped after so many steps."""
    prompt = engine.open(
        prompt_ids,
        sampling,
        engine.kv_bytes(len(prompt_ids), len(indices), sampling.max_new_tokens),
    )
    engine.add(prompt, indices)
    answers: Answers = {index: ([], []) for index in indices}
    for step in range(sampling.max_new_tokens):
        engine.drop(prompt, (drops or {}).get(step, ()))
        for token in engine.step():
            answers[token.candidate][0].append(token.token_id)
            answers[token.candidate][1].append(token.logprob)
    engine.close(prompt)
    return answers
