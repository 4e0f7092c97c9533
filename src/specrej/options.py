"""What is known of an option beside its name, type and default: what it means and its bounds, on
its field.

    @dataclass(frozen=True, kw_only=True)
    class Mine:
        alpha: float = option(0.5, "Share rejected each time.", ge=0, lt=1, expected="in [0, 1)")

        def __post_init__(self):
            check(self)

The command line, the server's schema and the README's table are made of these or compared with
them.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from specrej.errors import UsageError

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "True or False"),
    str: ((str,), "a string"),
    tuple[str, ...]: ((tuple,), "a tuple of strings"),
}


class About(NamedTuple):
    """What is known of an option."""

    words: str
    """What it means, in a sentence or two: the help of the command line."""
    bounds: Mapping[str, float]
    """By the names of JSON schema's and pydantic's constraints: ge, gt, le, lt."""
    expected: str
    """The bounds in words, behind "must be"."""
    hint: str | None
    metavar: str | None
    """The form of a value on a command line, where its type does not say it."""
    choices: tuple[str, ...]
    """All strings that it may be, where these are few."""
    unset: str
    """What None means."""


def option(
    default: Any,
    words: str,
    *,
    expected: str = "",
    hint: str | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    unset: str = "",
    **bounds: float,
) -> Any:
    """A field of a dataclass that is an option; see `About`."""
    about = About(words, bounds, expected, hint, metavar, choices, unset)
    return dataclasses.field(default=default, metadata={"about": about})


def same_as(owner: Any, name: str, **default: Any) -> Any:
    """A field that is the same option as that of another dataclass; `default` where it has one of
    its own, of another type.
    """
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.field(metadata=field.metadata, **{"default": field.default, **default})


def options_of(owner: Any) -> dict[str, tuple[dataclasses.Field[Any], About]]:
    """The options of a dataclass by name, in order."""
    return {
        field.name: (field, field.metadata["about"])
        for field in dataclasses.fields(owner)
        if field.metadata
    }


_PLAIN = (int, float, bool, str, NoneType)


def kinds_of(field: dataclasses.Field[Any]) -> list[Any]:
    """The types that its values have in JSON and on a command line: without functions, paths and
    other objects.
    """
    is_union = get_origin(field.type) in (Union, UnionType)
    kinds = get_args(field.type) if is_union else (field.type,)
    return [kind for kind in kinds if kind in _PLAIN or get_origin(kind) in (Sequence, Mapping)]


def check(record: Any) -> None:
    """See that options are of their types, within their bounds and among their choices. A whole
    number is a float too; True is no number.

    An option of several types is for its owner to check, but for its bounds where it holds a
    number.

    Raises:
        UsageError: one is not; says which, and what it is.
    """
    for name, (field, about) in options_of(record).items():
        value = getattr(record, name)
        if field.type in _KINDS:
            kinds, words = _KINDS[field.type]
            if not isinstance(value, kinds) or (isinstance(value, bool) and field.type is not bool):
                raise UsageError(f"{name} must be {words}, got {shown(value)}", hint=about.hint)
        if field.type is str and about.choices and value not in about.choices:
            *others, last = map(repr, about.choices)
            expected = f"{', '.join(others)} or {last}"
            raise UsageError(f"{name} must be {expected}, got {shown(value)}", hint=about.hint)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and not _is_within(value, about.bounds)
        ):
            raise UsageError(
                f"{name} must be {about.expected}, got {shown(value)}", hint=about.hint
            )


_COMPARISONS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


def _is_within(value: float, bounds: Mapping[str, float]) -> bool:
    # Compared as it is: a whole number beyond all floats is out of bounds, not an OverflowError
    # later. NaN is in none.
    return all(_COMPARISONS[kind](value, bound) for kind, bound in bounds.items())


def shown(value: object) -> str:
    """A value for a message; Python writes no whole number of more than 4,300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"
