"""What opening a model of a directory found out, kept in the user's cache: the next opening need
not find it out again.

    key = key_of("/models/mine", "fp16", "cpu")         # None for what is no directory
    known = recall(key)                                 # None where nothing is known
    remember(key, known)

A key stands for the model's files, for the versions of torch, transformers and specrej, for the
CPU, for the kernel and for what is compiled. What differs in one of them is found out anew.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from specrej.attention.groups import Scoring
from specrej.attention.layout import KvLayout
from specrej.engines.torch.kernels import fused
from specrej.engines.torch.llama import LlamaConfig
from specrej.flops import ModelFlops
from specrej.hub.defaults import cache_dir
from specrej.hub.fingerprints import fingerprint, write_whole
from specrej.version import __version__

MOST_KEPT = 64
"""Records in the cache, of about two kilobytes each; the oldest ones go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What is known of a model on this machine.

    Attributes:
        difference: of our logits from transformers' own, as a share of the largest.
        layout: what a token holds in KV.
        flops: what a token costs.
        eos_ids: tokens that end an answer.
        context_tokens: most tokens of a text.
        scoring: of each layer, where those of `specrej.attention.decoder` run the model.
        tokenizer: "module:class" of transformers that opens its tokenizer; "" asks transformers.
        llama: its shape, where `specrej.engines.torch.llama` runs it from the directory's files.
    """

    difference: float
    layout: KvLayout
    flops: ModelFlops
    eos_ids: frozenset[int]
    context_tokens: int
    scoring: tuple[Scoring, ...] = ()
    tokenizer: str = ""
    llama: LlamaConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "difference": self.difference,
            "layout": list(self.layout),
            "flops": self.flops.to_dict(),
            "eos_ids": sorted(self.eos_ids),
            "context_tokens": self.context_tokens,
            "scoring": list(map(list, self.scoring)),
            "tokenizer": self.tokenizer,
            "llama": None if self.llama is None else self.llama.to_dict(),
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> "Opened":
        """What `to_dict` gave."""
        return cls(
            difference=given["difference"],
            layout=KvLayout(*given["layout"]),
            flops=ModelFlops.from_dict(given["flops"]),
            eos_ids=frozenset(given["eos_ids"]),
            context_tokens=given["context_tokens"],
            scoring=tuple(Scoring(*one) for one in given["scoring"]),
            tokenizer=given["tokenizer"],
            llama=None if given["llama"] is None else LlamaConfig(**given["llama"]),
        )


def key_of(source: str, weights: str, device: str) -> str | None:
    """What a record is called; None for what is no directory: a name on the hub stands for files
    that may change.

    Args:
        source: see `specrej.hub.sources.locate_model`.
        weights: what is asked for; it decides the kernel.
        device: what the model runs on.
    """
    directory = Path(source)
    if not directory.is_dir():
        return None
    place = directory.resolve()
    # Our own files count beside the version: who changes them must see the check again.
    package = Path(__file__).parents[2]
    compiled = fused(torch.device(device), torch.float32)
    ours = sorted([*package.glob("attention/*.[pc]*"), *package.glob("engines/torch/*.py")])
    return fingerprint(
        [*sorted(place.iterdir()), *ours],
        *(str(place), weights, device, compiled and compiled.name, __version__, torch.__version__),
        *(metadata.version("transformers"), torch.backends.cpu.get_cpu_capability()),
    )


def recall(key: str) -> Opened | None:
    """The record of a key; None where there is none, or one that cannot be read."""
    try:
        record = json.loads(_path(key).read_text(encoding="utf-8"))
        return Opened.from_dict(record) if record.pop("digest") == _digest(record) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remember(key: str, opened: Opened) -> None:
    """Keep a record. Where the cache cannot be written to, the next opening takes longer."""
    with contextlib.suppress(OSError):
        record = opened.to_dict()
        write_whole(_path(key), json.dumps({**record, "digest": _digest(record)}) + "\n")
        kept = sorted(_path(key).parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MOST_KEPT]:
            path.unlink(missing_ok=True)


def _digest(record: Mapping[str, Any]) -> str:
    """What tells a record that was damaged."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:16]


def _path(key: str) -> Path:
    return cache_dir() / "openings" / f"{key}.json"
