"""Prompt sets that have a name, and how they come through `datasets`.

rows = download("gsm8k", NAMED_SETS["gsm8k"])
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from specrej.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedSet:
    """A set on the Hugging Face hub.

    Attributes:
        hub_id: its repository.
        split: for example "test".
        to_row: a row of it as a row of a JSONL file.
        config: where there are several.
        file: the one JSON file to read, where the repository as a whole cannot be loaded.
    """

    hub_id: str
    split: str
    to_row: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    config: str | None = None
    file: str | None = None


def read_dialogue(text: str) -> list[dict[str, str]]:
    r"""The conversation of an HH-RLHF text ("\n\nHuman: ...\n\nAssistant: ..."), without its
    last answer.
    """
    messages: list[dict[str, str]] = []
    for part in text.split("\n\n"):
        speaker, colon, content = part.partition(":")
        role = {"Human": "user", "Assistant": "assistant"}.get(speaker)
        if colon and role:
            messages.append({"role": role, "content": content.strip()})
        elif messages:
            messages[-1]["content"] += f"\n\n{part}"
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


NAMED_SETS = {
    "alpaca_eval": NamedSet(
        hub_id="tatsu-lab/alpaca_eval",
        file="alpaca_eval.json",
        split="train",
        to_row=lambda row: {"prompt": row["instruction"], "category": row["dataset"]},
    ),
    "alpaca_eval_2": NamedSet(
        hub_id="tatsu-lab/alpaca_eval",
        file="alpaca_eval_gpt4_baseline.json",
        split="train",
        to_row=lambda row: {
            "prompt": row["instruction"],
            "category": row["dataset"],
            "reference": row["output"],
        },
    ),
    "gsm8k": NamedSet(
        hub_id="openai/gsm8k",
        config="main",
        split="test",
        to_row=lambda row: {"prompt": row["question"], "answer": row.get("answer")},
    ),
    "hh_rlhf": NamedSet(
        hub_id="Anthropic/hh-rlhf",
        split="test",
        to_row=lambda row: {"messages": read_dialogue(row["chosen"])},
    ),
    "ifeval": NamedSet(
        hub_id="google/IFEval",
        split="train",
        to_row=lambda row: {
            "id": row["key"],
            "prompt": row["prompt"],
            "instruction_id_list": row.get("instruction_id_list"),
            "kwargs": row.get("kwargs"),
        },
    ),
    "math_500": NamedSet(
        hub_id="HuggingFaceH4/MATH-500",
        split="test",
        to_row=lambda row: {
            "id": row["unique_id"],
            "prompt": row["problem"],
            "category": row["subject"],
            "answer": row.get("answer"),
        },
    ),
    "mt_bench": NamedSet(
        hub_id="lighteval/mt-bench",
        split="train",
        to_row=lambda row: {
            "id": row["question_id"],
            "turns": row["turns"],
            "category": row["category"],
            "reference": row.get("reference"),
        },
    ),
    "ultrafeedback": NamedSet(
        hub_id="HuggingFaceH4/ultrafeedback_binarized",
        split="test_prefs",
        to_row=lambda row: {"id": row["prompt_id"], "prompt": row["prompt"]},
    ),
}
"""Read through `datasets`; a name here goes before a file of that name (write ./NAME for the
file)."""


def download(name: str, named: NamedSet) -> Iterable[Mapping[str, Any]]:
    """The rows of a set, from the hub or (HF_HUB_OFFLINE=1) from the cache of `datasets`.

    Raises:
        UsageError: `datasets` is not installed, or the set cannot be had.
    """
    try:
        datasets, hub = import_module("datasets"), import_module("huggingface_hub")
    except ImportError as error:
        raise UsageError(
            f"the prompt set {name!r} is read through datasets, which is not installed",
            hint="pip install 'specrej[evaluation]', or give a JSONL file",
        ) from error
    from specrej.hub.quiet import quiet_transformers

    path, config, file = named.hub_id, named.config, None
    if named.file:
        path, file = "json", f"hf://datasets/{named.hub_id}/{named.file}"
    try:
        with quiet_transformers():
            if not hub.is_offline_mode():
                hub.HfApi().dataset_info(
                    named.hub_id, timeout=10
                )  # fails at once, where datasets would retry
            rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
                path, config, data_files=file, split=named.split
            )
    except Exception as error:  # three libraries, whose errors have no class in common
        raise UsageError(
            f"cannot load the prompt set {name!r} ({named.hub_id}): {error}",
            hint="without a network give a JSONL file, or set HF_HUB_OFFLINE=1 where datasets has "
            "the set in its cache",
        ) from error
    return rows
