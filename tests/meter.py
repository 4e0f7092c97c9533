"""KV memory as measured: follows every storage that torch allocates until it is freed.

with Meter() as meter:
    ...                            # what the engine does
meter.peak_bytes, meter.block_bytes(), meter.all_bytes()
"""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from specrej.attention import fused, layout, products
from specrej.engines.torch import engine as engine_module

TORCH = Path(torch.__file__).parent
ROOMS = {Path(engine_module.__file__).parent, Path(layout.__file__).parent}
"""Of the engine, and of the KV that it holds."""
OF_THE_MODEL = {Path(inspect.getfile(module)) for module in (fused, products)}
"""Reserve memory for what layers give, as the model's own code does."""
RESERVING = (
    "aten.empty",
    "aten.new_empty",
    "aten.zeros",
    "aten.new_zeros",
    "aten.full",
    "aten.new_full",
)
"""Operators that reserve memory without computing: called by the engine itself, they make blocks
for KV."""


_weak_reference: Any = StorageWeakRef


class Meter(TorchDispatchMode):
    """Follows storages from the operator that made them until they are freed, whoever holds
    them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[int, tuple[Any, int, bool]] = {}
        self.peak_bytes = 0
        """Most bytes at any moment in storages that were reserved for blocks, or copied from
        such."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given_storages = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(out):
            if storage._cdata not in given_storages:
                name = str(func)
                is_copy = name.startswith(
                    ("aten.clone", "aten.index.", "aten.index_select")
                ) and any(key in self._held and self._held[key][2] for key in given_storages)
                is_small = storage.nbytes() < 64  # less than one token of one layer
                is_block = is_copy or (
                    not is_small and name.startswith(RESERVING) and _is_called_by_the_engine()
                )
                self._held[storage._cdata] = (_weak_reference(storage), storage.nbytes(), is_block)
                if is_block:
                    self.peak_bytes = max(self.peak_bytes, self.block_bytes())
        return out

    def block_bytes(self) -> int:
        """Bytes now in storages reserved for blocks."""
        return sum(size for _, size, is_block in self._live() if is_block)

    def all_bytes(self) -> int:
        """Bytes now in all storages made since the meter was switched on."""
        return sum(size for _, size, _ in self._live())

    def _live(self) -> Iterator[tuple[Any, int, bool]]:
        self._held = {key: entry for key, entry in self._held.items() if not entry[0].expired()}
        return iter(self._held.values())


def _is_called_by_the_engine() -> bool:
    """Rather than by the model: the nearest caller outside of torch and this file."""
    frame = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and TORCH not in path.parents:
            return path not in OF_THE_MODEL and not ROOMS.isdisjoint(path.parents)
        frame = frame.f_back
    return False


def storages(tree: Any) -> list[Any]:
    """Of tensors as they stand in arguments and results, in lists at most: quicker than a walk
    of any tree."""
    if isinstance(tree, Tensor):
        return [tree.untyped_storage()] if tree.layout == torch.strided else []
    items = (
        tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    )
    return [storage for item in items for storage in storages(item)]
