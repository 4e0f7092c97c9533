"""A sheet as a rater gets it: a CSV for spreadsheets, or one HTML page that works without network.

In the CSV a cell that a spreadsheet could take for a formula has an apostrophe before it, and so
has a cell that begins with an apostrophe. Without its first apostrophe such a cell is what it was.
The page holds the texts as JSON and shows them as text, never as markup.
"""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NamedTuple

COLUMNS = ("sheet", "item", "question", "answer", "score")
_FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What begins a formula; the last four are the full-width forms, which Excel takes as well."""
_APOSTROPHE = "'"


class Item(NamedTuple):
    """What a rater sees."""

    item: int
    """Its number in the sheet, from 1."""
    messages: list[dict[str, str]]
    """The conversation that the answer follows, earlier answers included."""
    answer: str


def to_csv(sheet: str, scale: tuple[int, int], items: Sequence[Item]) -> str:
    """The sheet as CSV, an item a row, the column `score` empty.

    It begins with a byte-order mark: without one Excel does not read it as UTF-8.

    Args:
        sheet: its name, in each row.
        scale: is not in a CSV.
        items: in the sheet's order.
    """
    text = io.StringIO()
    # All is quoted: the writer does not see that a lone \r ends a row elsewhere.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for one in items:
        writer.writerow([sheet, one.item, harmless(_question(one)), harmless(one.answer), ""])
    return "\ufeff" + text.getvalue()


def harmless(text: str) -> str:
    """A cell that no spreadsheet reads as a formula; see the module on how to undo it."""
    is_risky = text.lstrip().startswith(_FORMULAS) or text.startswith((_APOSTROPHE, "\t", "\r"))
    return _APOSTROPHE + text if is_risky else text


def to_html(sheet: str, scale: tuple[int, int], items: Sequence[Item]) -> str:
    """The sheet as one page, which loads nothing, asks for a score an item, keeps them in the
    browser and saves a file.

    Args:
        sheet: its name; what the browser keeps is by this name.
        scale: the lowest and the highest score.
        items: in the sheet's order.
    """
    page, style, code = (_part(f"page.{kind}") for kind in ("html", "css", "js"))
    shown = [{"item": one.item, "messages": one.messages, "answer": one.answer} for one in items]
    data = json.dumps({"sheet": sheet, "scale": scale, "items": shown}, ensure_ascii=False)
    # JSON needs no "<" outside of its strings, and in them \u003c says the same: so nothing in a
    # text ends the element that holds it.
    parts = {
        "@style-hash@": _hash(style),
        "@code-hash@": _hash(code),
        "@style@": style,
        "@code@": code,
        "@data@": data.replace("<", "\\u003c"),
    }
    for place, content in parts.items():
        page = page.replace(place, content, 1)
    return page


FORMS: dict[str, Callable[[str, tuple[int, int], Sequence[Item]], str]] = {
    ".csv": to_csv,
    ".html": to_html,
}
"""How a sheet is written, by the end of the file's name."""


def _question(item: Item) -> str:
    """A question as it is; a conversation with its roles."""
    if len(item.messages) == 1:
        return item.messages[0]["content"]
    return "\n\n".join(f"[{one['role']}]\n{one['content']}" for one in item.messages)


def _part(name: str) -> str:
    return files("specrej.evaluation.ratings").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What the page's policy lets run: this text alone."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
