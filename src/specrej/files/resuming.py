"""What a run or a job is, as the file beside its rows says, compared with what is asked now.

    there["settings"] = completed(there["settings"])       # an older version may have written them
    differences(there, here)            # ["settings.seed was 1, now it is 2"]

A setting that was added since the file was written counts as its default. Nothing else that is
missing counts as anything.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from specrej.settings import Settings


def completed(settings: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Settings of a file, with the default of each one that it lacks.

    Args:
        settings: by name, in JSON's types; names that `Settings` does not know stay.
        without: those that such a file never holds.
    """
    usual = {name: value for name, value in Settings().to_dict().items() if name not in without}
    return usual | dict(settings)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, the innermost fields that differ, but for `created`.

    Args:
        there: what the file says.
        here: what is asked, in the types that JSON gives back.
    """
    return [
        f"{name} was {_written(before)}, now it is {_written(now)}"
        for name, before, now in _differing(there, here)
        if name != "created"
    ]


_MISSING = object()


def _differing(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            inner = f"{name}.{key}" if name else key
            yield from _differing(there.get(key, _MISSING), here.get(key, _MISSING), inner)
    elif there != here:
        yield name, there, here


def _written(value: Any) -> str:
    return "missing" if value is _MISSING else json.dumps(value)
