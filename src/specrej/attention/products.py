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
from typing import Self

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
        wide, deep = -(-outputs // _SIDE) * _SIDE, -(-inputs // _DEEP) * _DEEP
        padded = functional.pad(weight.to(dtype), (0, deep - inputs, 0, wide - outputs))
        panels = padded.view(-1, _SIDE, deep).transpose(1, 2).contiguous()
        offset = None if bias is None else functional.pad(bias, (0, wide - outputs)).contiguous()
        return PackedWeights(self._library, panels, offset, inputs, outputs)


class PackedWeights:
    """A linear layer: from rows `[..., in]` to `[..., out]`, in float32 and contiguous.

    Args:
        library: what multiplies.
        panels: `[outputs / 16, inputs, 16]`, padded by zeros.
        bias: `[outputs]`, padded.
        inputs: how many are not padding.
        outputs: how many are not padding.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        panels: Tensor,
        bias: Tensor | None,
        inputs: int,
        outputs: int,
    ) -> None:
        self._in_registers, self._on_units = library.multiply_in_registers, library.multiply
        self._panels, self._bias = panels, bias
        self._addresses = panels.data_ptr(), None if bias is None else bias.data_ptr()
        self._is_half = panels.dtype == torch.float16
        self._inputs, self._outputs, self._wide = inputs, outputs, len(panels) * _SIDE

    def by_registers(self, rows: Tensor) -> Tensor:
        """Sums in float32, as exact as those."""
        given = rows.contiguous()
        out = given.new_empty(*rows.shape[:-1], self._wide)
        self._in_registers(
            *(given.data_ptr(), *self._addresses, out.data_ptr()),
            *(given.numel() // self._inputs, self._inputs, self._wide),
            *(self._is_half, torch.get_num_threads()),
        )
        # A view of one row would be contiguous, and hold the padding.
        return (
            out
            if self._wide == self._outputs
            else out[..., : self._outputs].clone(memory_format=torch.contiguous_format)
        )

    def by_units(self, rows: Tensor) -> Tensor:
        """Sums but for 2^-17 of what is summed; weights of float16."""
        given = rows.reshape(-1, self._inputs).contiguous()
        num, deep = len(given), self._panels.shape[1]
        high = -(-num // _SIDE) * _SIDE
        out = given.new_empty(num if num < _SIDE else high, self._wide)
        space = given.new_empty(high * deep * 2, dtype=torch.bfloat16)
        self._on_units(
            *(given.data_ptr(), *self._addresses, out.data_ptr(), space.data_ptr()),
            *(num, self._inputs, self._wide, torch.get_num_threads()),
        )
        whole = out[:num, : self._outputs].contiguous()
        return whole.view(*rows.shape[:-1], self._outputs)
