"""Recorded prompts that were made up: partial rewards approach the final ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from specrej.attention.layout import KvLayout
from specrej.evaluation.trace import Trace
from specrej.flops import AttentionFlops, ModelFlops

CHECKPOINTS, LIMIT = (8, 16, 32, 64), 128
SETTINGS: dict[str, Any] = {
    "model": "made-up",
    "reward": "noise",
    "max_new_tokens": LIMIT,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "logit_bias": None,
    "stop": [],
}
LAYOUT = KvLayout(bytes_per_token=100, largest_tensor_bytes=10, granule=64)
FLOPS = ModelFlops(linear=2e8, head=6e7, attention=(AttentionFlops(None, 7e4),), chunk=512)


def make_trace(number: int, num_candidates: int = 16, noise: float = 1.0) -> Trace:
    """One prompt; `noise` is how far partial rewards are off at the first checkpoint."""
    random = np.random.default_rng(number)
    lengths = np.minimum(random.geometric(1 / 110, num_candidates), LIMIT)
    finals = random.normal(size=num_candidates)
    errors = random.normal(size=(num_candidates, len(CHECKPOINTS)))
    partial = finals[:, None] + noise * errors * np.linspace(1, 0.1, len(CHECKPOINTS))
    return Trace(
        prompt_id=str(number),
        messages=[{"role": "user", "content": "?"}],
        num_prompt_tokens=40,
        checkpoints=CHECKPOINTS,
        memory_bytes=10**9,
        layout=LAYOUT,
        flops=FLOPS,
        reward_flops_per_token=4e7,
        settings=SETTINGS,
        usage={"reward_tokens": 10_000},
        lengths=lengths,
        rewards=np.where(lengths[:, None] <= np.array(CHECKPOINTS), finals[:, None], partial),
        final_rewards=finals,
        finish_reasons=("eos",) * num_candidates,
        texts=("",) * num_candidates,
        token_ids=[],
        logprobs=[],
        path=Path(),
    )


def with_settings(trace: Trace, **changed: Any) -> Trace:
    """The same, recorded with other settings."""
    return replace(trace, settings={**trace.settings, **changed})
