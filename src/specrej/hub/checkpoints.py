"""The weights of a directory without the model around them: mapped into memory, not read.

tensors = read_tensors("/models/mine")          # by name; None where there are no safetensors
"""

import json
from pathlib import Path

import torch
from torch import Tensor

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(directory: str | Path) -> dict[str, Tensor] | None:
    """All tensors of the files that transformers reads, in float32, by their names there.

    Those that are float32 in the file are a view of it. Pages that nobody touches are never read.
    """
    from safetensors import safe_open

    files = _files(Path(directory))
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name).to(torch.float32) for name in opened.keys()}  # noqa: SIM118
    return tensors if files else None


def _files(directory: Path) -> list[Path]:
    """One file, or the parts that an index names."""
    if (whole := directory / _WHOLE).is_file():
        return [whole]
    if not (index := directory / _INDEX).is_file():
        return []
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [directory / name for name in sorted(set(parts))]
