"""Products of linear layers, compiled: in the vector registers of a CPU (`registers.c`), and on its
matrix units (AMX) where it has some (`products.c`).

    products = Products.of(library)         # None where this CPU has no such registers
    packed = products.pack(weight, bias, torch.float16)
    rows = packed.by_registers(rows)        # float32
    rows = packed.by_units(rows)            # float16 weights, where products.has_units

Registers: sums are those of float32. A float16 weight becomes float32 when it is read, so half of
the bytes are read. Matrix units multiply bfloat16 and sum in float32, sixteen times as fast as a
CPU multiplies float32. Weights and inputs are sums of two bfloat16 numbers each, so three products
give what one in float32 gives, but for 2^-17 of each of its terms. The rounding of weights to
float16 is 30 times that. Both read the same weights.
"""

import ctypes
import logging
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

_SIDE, _DEEP = 16, 32
"""Outputs of a panel or tile, and inputs of a tile: as in the sources."""
_LOG = logging.getLogger("specrej")
_P, _I = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES = {
    "multiply_in_registers": (*(_P,) * 4, *(_I,) * 3, *(ctypes.c_int,) * 2),
    "multiply": (*(_P,) * 5, *(_I,) * 3, ctypes.c_int),
}


class Products:
    """What the library multiplies with.

    Attributes:
        has_units: whether this process may use matrix units.

    Raises:
        AttributeError: a function is missing.
    """

    def __init__(self, library: ctypes.CDLL, *, has_units: bool) -> None:
        self.has_units, self._library = has_units, library
        for name, types in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, None

    @classmethod
    def of(cls, library: ctypes.CDLL) -> Self | None:
        """None where the CPU has not even the registers."""
        units: int = library.can_multiply()
        if units < 0:
            _LOG.info("the CPU's matrix units are not used: Linux does not let this process")
        return cls(library, has_units=units > 0) if library.has_registers() else None

    def pack(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> "PackedWeights":
        """A linear layer with its weight `[out, in]` in float32, or rounded to float16."""
        outputs, inputs = weight.shape
        wide, deep = -(-outputs // _SIDE), -(-inputs // _DEEP)
        missing = wide * _SIDE - outputs
        padded = functional.pad(weight.to(dtype), (0, deep * _DEEP - inputs, 0, missing))
        panels = padded.view(wide, _SIDE, deep * _DEEP).transpose(1, 2).contiguous()
        offset = None if bias is None else functional.pad(bias, (0, missing)).contiguous()
        return PackedWeights(self._library, panels, offset, inputs, outputs)


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A linear layer: from rows `[..., in]` to `[..., out]`, in float32 and contiguous."""

    _library: Any
    _panels: Tensor
    """`[outputs / 16, inputs, 16]`, padded by zeros."""
    _bias: Tensor | None
    _inputs: int
    _outputs: int

    def by_registers(self, rows: Tensor) -> Tensor:
        """Sums in float32, as exact as those."""
        given = rows.reshape(-1, self._inputs).contiguous()
        num, wide = len(given), len(self._panels) * _SIDE
        out = given.new_empty(num, wide)
        is_half = self._panels.dtype == torch.float16
        self._library.multiply_in_registers(
            *(given.data_ptr(), *self._addresses(), out.data_ptr()),
            *(num, self._inputs, wide, is_half, torch.get_num_threads()),
        )
        return self._shaped(out, rows)

    def by_units(self, rows: Tensor) -> Tensor:
        """Sums but for 2^-17 of what is summed; weights of float16."""
        given = rows.reshape(-1, self._inputs).contiguous()
        num, (count, deep, _) = len(given), self._panels.shape
        high = -(-num // _SIDE) * _SIDE
        out = given.new_empty(num if num < _SIDE else high, count * _SIDE)
        space = given.new_empty(high * deep * 2, dtype=torch.bfloat16)
        self._library.multiply(
            *(given.data_ptr(), *self._addresses(), out.data_ptr(), space.data_ptr()),
            *(num, self._inputs, count * _SIDE, torch.get_num_threads()),
        )
        return self._shaped(out[:num], rows)

    def _addresses(self) -> tuple[int, int | None]:
        return self._panels.data_ptr(), None if self._bias is None else self._bias.data_ptr()

    def _shaped(self, out: Tensor, rows: Tensor) -> Tensor:
        whole = out[:, : self._outputs].contiguous()
        return whole.view(*rows.shape[:-1], self._outputs)
