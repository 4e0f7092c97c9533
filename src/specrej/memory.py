"""Amounts of memory as people write them: "64MiB", "1.5GiB"."""

import re

from specrej.errors import UsageError
from specrej.options import shown

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BEYOND = 2**63
"""Bytes that no machine addresses."""


def parse_bytes(amount: str | int, name: str = "memory") -> int:
    """Bytes of "64MiB", "1.5 GiB", "4096" or 4096.

    Args:
        amount: of memory.
        name: of the option that it was given as, for the error.

    Raises:
        UsageError: not an amount above 0 with a unit of B, KiB, MiB or GiB, or 2^63 bytes and more.
    """
    size = amount if type(amount) is int else _size(str(amount).strip())
    if size < 1:
        raise UsageError(
            f"{name} must be like '64MiB' (units B, KiB, MiB, GiB), got {shown(amount)}"
        )
    if size >= _BEYOND:
        raise UsageError(
            f"{name} must be below {_BEYOND // _UNITS['GIB']:,} GiB (2^63 bytes), got "
            f"{shown(amount)}"
        )
    return int(size)


def _size(words: str) -> float:
    """Bytes; 0 where the words are no amount."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", words)
    unit = _UNITS.get(match[2].upper(), 0) if match else 0
    return float(match[1]) * unit if match and unit else 0


def format_bytes(amount: int) -> str:
    """An amount of bytes with the largest unit that leaves a number of at least 1, two decimals,
    rounded up.
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{-(-amount * 100 // size) / 100:.2f} {unit}"
    return f"{amount} B"
