"""What a result says of itself in words, so that no note takes the place of another.

notes = first_notes(settings, is_greedy=True)
notes.append("no candidate reached the threshold 9.0")
settings |= noted(notes)    # {"note": "temperature 0 is greedy: ...; no candidate ..."}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specrej.types import GREEDY_NOTE


def first_notes(settings: Mapping[str, Any], *, is_greedy: bool) -> list[str]:
    """What is known before a search begins: what its settings come with, and what its sampling
    makes of them.
    """
    given = [settings["note"]] if "note" in settings else []
    return [*given, *([GREEDY_NOTE] if is_greedy else [])]


def noted(notes: Sequence[str]) -> dict[str, str]:
    """All of them as the setting `note`; nothing where there is none."""
    return {"note": "; ".join(notes)} if notes else {}
