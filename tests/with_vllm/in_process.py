"""What several files of tests have open in one process: opening takes half a minute."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers

from specrej.engines.base import Engine
from specrej.engines.opening import open_engine
from tiny import CHAT_TEMPLATE, make_config, make_tokenizer

GENERATOR_ARGUMENTS = {"max_model_len": 2048, "kv_cache_memory_bytes": 2**28}
"""A cache of 180 blocks, some three times what the conformance suite needs."""
LABELS = {0: "kind", 1: "clear", 2: "short"}


@cache
def generator() -> Engine:
    """SmolLM2."""
    return open_engine("smollm2", engine="vllm", engine_args=GENERATOR_ARGUMENTS)


@cache
def reward_model() -> str:
    """The directory of a tiny Llama with three scores, another tokenizer than SmolLM2's, and no
    padding token."""
    directory = Path(mkdtemp(prefix="reward-model-"))
    save_reward_model(directory, LABELS)
    return str(directory)


def save_reward_model(
    directory: Path, labels: dict[int, str], template: str | None = CHAT_TEMPLATE
) -> None:
    """Random weights; heads of 32 numbers are the smallest that vLLM has on a CPU."""
    config = make_config("llama", hidden_size=64, num_attention_heads=2, id2label=labels)
    auto: Any = transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(directory)
    make_tokenizer(template).save_pretrained(directory)


@torch.inference_mode()
def logits(conversations: list[list[dict[str, str]]], *, ending: bool = True) -> list[list[float]]:
    """What transformers gives for each conversation alone."""
    auto: Any = transformers.AutoModelForSequenceClassification
    model, tokenizer = auto.from_pretrained(reward_model()).eval(), make_tokenizer(CHAT_TEMPLATE)
    rows = []
    for turns in conversations:
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        rows.append(model(input_ids=torch.tensor([ids if ending else ids[:-1]])).logits[0].tolist())
    return rows
