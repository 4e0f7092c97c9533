"""What a result says of itself in words, so that no note takes the place of another.

notes = first_notes(settings, is_greedy=True, is_split=False)
notes.append("no candidate reached the threshold 9.0")
settings |= noted(notes)    # {"note": "temperature 0 is greedy: ...; no candidate ..."}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specrej.types import GREEDY_NOTE, UNSPLIT_NOTE


def first_notes(settings: Mapping[str, Any], *, is_greedy: bool, is_split: bool) -> list[str]:
    """What is known before a search begins.

    Args:
        settings: of the run; they may come with a note.
        is_greedy: whether its sampling makes one candidate of any number.
        is_split: whether the reward sees answers without thoughts.
    """
    notes = [settings["note"]] if "note" in settings else []
    if is_greedy:
        notes.append(GREEDY_NOTE)
    if settings.get("reward_sees") == "answer" and not is_split:
        notes.append(UNSPLIT_NOTE)
    return notes


def noted(notes: Sequence[str]) -> dict[str, str]:
    """All of them as the setting `note`; nothing where there is none."""
    return {"note": "; ".join(notes)} if notes else {}
