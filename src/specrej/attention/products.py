"""Products with float16 weights on the matrix units of a CPU (AMX): `products.c`.

    products = Products.of(library)         # None where this CPU has none, or no process may use it
    multiply = products.pack(weight, bias)
    rows = multiply(rows)                   # float32

These units multiply bfloat16 and sum in float32, sixteen times as fast as a CPU multiplies float32.
Weights and inputs are sums of two bfloat16 numbers each, so three products give what one in float32
gives, but for 2^-17 of each of its terms. The rounding of weights to float16 is 30 times that.
"""

import ctypes
import logging
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

_SIDE, _DEEP = 16, 32
"""Rows of a tile, and how many inputs: as in the source."""
_LOG = logging.getLogger("specrej")
_P, _I = ctypes.c_void_p, ctypes.c_int64


class Products:
    """What the library multiplies with.

    Raises:
        AttributeError: a function is missing.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._multiply = library.multiply
        self._multiply.argtypes = (*(_P,) * 5, *(_I,) * 3, ctypes.c_int)
        self._multiply.restype = None

    @classmethod
    def of(cls, library: ctypes.CDLL) -> Self | None:
        """None where the CPU has no such units, or Linux does not let this process use them."""
        answer: int = library.can_multiply()
        if answer < 0:
            _LOG.info("the CPU's matrix units are not used: Linux does not let this process")
        return cls(library) if answer > 0 else None

    def pack(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A linear layer with its weight `[out, in]` rounded to float16. From rows `[..., in]` to
        `[..., out]`, in float32 and contiguous.
        """
        outputs, inputs = weight.shape
        wide, deep = -(-outputs // _SIDE), -(-inputs // _DEEP)
        missing = wide * _SIDE - outputs
        padded = functional.pad(weight.half(), (0, deep * _DEEP - inputs, 0, missing))
        tiles = padded.view(wide, _SIDE, deep, _SIDE, 2).permute(0, 2, 3, 4, 1)
        tiles, multiply = tiles.contiguous(), self._multiply
        offset = None if bias is None else functional.pad(bias, (0, missing)).contiguous()

        def call(rows: Tensor) -> Tensor:
            given = rows.reshape(-1, inputs).contiguous()
            num = len(given)
            high = -(-num // _SIDE)
            out = given.new_empty(num if num < _SIDE else high * _SIDE, wide * _SIDE)
            space = given.new_empty(high * _SIDE * deep * _DEEP * 2, dtype=torch.bfloat16)
            added = None if offset is None else offset.data_ptr()
            multiply(
                *(given.data_ptr(), tiles.data_ptr(), added, out.data_ptr(), space.data_ptr()),
                *(num, inputs, wide * _SIDE, torch.get_num_threads()),
            )
            return out[:num, :outputs].contiguous().view(*rows.shape[:-1], outputs)

        return call
