"""What raters send back: CSV files with scores filled in, and the files that the page saves.

    ratings, keys = read_ratings("out", ["anna.csv", "ratings-ben.jsonl"])

A CSV is of one rater, whose name is the file's; an empty score is an item that was left out. Its
columns may be in any order, between commas, semicolons or tabs, as spreadsheets write them. Only
sheet, item and score are read. The page saves JSON lines, each with the rater's name.

All files are read before anything is refused, and all that is wrong is said, with file and line.
Either every rating counts, or none does.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from specrej.errors import UsageError
from specrej.evaluation.ratings.sheet import KeyItem, SheetKey, read_keys
from specrej.files.reading import read_text

_NEEDED = ("sheet", "item", "score")
_MOST_SHOWN = 20


class Rating(NamedTuple):
    """One rater's score of one answer."""

    rater: str
    answer: str
    """As `KeyItem` names it, whatever sheet it was in."""
    score: int


class _Line(NamedTuple):
    """A line of a file as it stands there."""

    where: str
    """File and number, for messages."""
    rater: str
    cells: Mapping[str, str]
    """What is needed, by name."""


def read_ratings(
    directory: str | Path, paths: Sequence[str | Path]
) -> tuple[list[Rating], list[SheetKey]]:
    """The ratings of all files, and the keys of the sheets that they are of.

    Args:
        directory: of the bench that the sheets were made from.
        paths: the raters' files, in any order.

    Raises:
        UsageError: the folder has no sheet, there is no rating, or a file or line cannot be used.
            Names each fault by file and line.
    """
    keys = read_keys(directory)
    reader = _Reader(Path(directory), keys)
    for path in paths:
        reader.read(Path(path))
    used = [key for name, key in keys.items() if name in reader.sheets]
    scales = {f"{key['scale'][0]}-{key['scale'][1]}" for key in used}
    if len(scales) > 1:
        reader.faults.append(
            f"the files are of sheets with different scales: {', '.join(sorted(scales))}"
        )
    if not reader.ratings and not reader.faults:
        reader.faults.append("the files hold no scores")
    if reader.faults:
        shown = reader.faults[:_MOST_SHOWN]
        more = len(reader.faults) - len(shown)
        raise UsageError(
            "\n".join([*shown, *([f"and {more} more"] if more else [])]),
            hint="nothing was imported, and no file was changed: mend these lines, and give all "
            "files again. A CSV has its rater's name; of files of one rater give the last",
        )
    return reader.ratings, used


class _Reader:
    """The ratings so far, and all that was wrong."""

    def __init__(self, directory: Path, keys: Mapping[str, SheetKey]) -> None:
        self.ratings: list[Rating] = []
        self.sheets: set[str] = set()
        self.faults: list[str] = []
        self._directory = directory
        self._keys = keys
        self._items = {
            name: {one["item"]: one for one in key["items"]} for name, key in keys.items()
        }
        self._rated: dict[tuple[str, str], str] = {}

    def read(self, path: Path) -> None:
        """One file. A sheet that is not of the folder is told once, not for each of its lines."""
        strange = set()
        try:
            for line in _lines(path):
                if isinstance(line, str):
                    self.faults.append(line)
                elif line.cells["sheet"] in self._keys:
                    self._take(line)
                elif line.cells["sheet"] not in strange:
                    strange.add(line.cells["sheet"])
                    self.faults.append(
                        f"{line.where}: sheet {line.cells['sheet']!r} was not made from "
                        f"{self._directory}"
                    )
        except OSError as error:
            self.faults.append(f"{path} cannot be read: {error.strerror}")
        except UsageError as error:
            self.faults.append(str(error))

    def _take(self, line: _Line) -> None:
        sheet, number, score = (line.cells[name] for name in _NEEDED)
        self.sheets.add(sheet)
        if not score:
            return
        low, high = self._keys[sheet]["scale"]
        one, value = self._item(sheet, number), _whole(score)
        if one is None:
            known = len(self._items[sheet])
            self.faults.append(
                f"{line.where}: there is no item {number!r}, the sheet's are 1 to {known}"
            )
        elif value is None or not low <= value <= high:
            self.faults.append(
                f"{line.where}: the score of item {number} must be a whole number from {low} to "
                f"{high}, got {score!r}"
            )
        elif before := self._rated.get((line.rater, one["answer"])):
            self.faults.append(
                f"{line.where}: rater {line.rater!r} has rated item {number} already, in {before}"
            )
        else:
            self._rated[line.rater, one["answer"]] = line.where
            self.ratings.append(Rating(line.rater, one["answer"], value))

    def _item(self, sheet: str, words: str) -> KeyItem | None:
        number = _whole(words)
        return None if number is None else self._items[sheet].get(number)


def _lines(path: Path) -> Iterator[_Line | str]:
    """What stands in a file, line by line; of a line that cannot be read, what is said of it."""
    text = read_text(path)
    is_json = text.lstrip().startswith("{")
    yield from (_json_lines if is_json else _csv_lines)(path, text)


def _json_lines(path: Path, text: str) -> Iterator[_Line | str]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            cells = {name: str(row[name]).strip() for name in _NEEDED}
            rater = str(row["rater"]).strip() or path.stem
            if row["rater"] is None:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            yield f"{where}: no rating, which has sheet, rater, item and score"
            continue
        yield _Line(where, rater, cells)


def _csv_lines(path: Path, text: str) -> Iterator[_Line | str]:
    """The rows; a row's line is its first, since texts in cells have lines as well."""
    # An answer may be longer than the module takes by itself.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    table, delimiter = _parted(text)
    rows = csv.reader(table, delimiter=delimiter)
    skipped = text.count("\n", 0, table.tell())
    where = f"{path} line {skipped + 1}"
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if missing := [name for name in _NEEDED if name not in header]:
            raise UsageError(
                f"{where}: no columns {', '.join(missing)}; expected a sheet that specrej ratings "
                "export wrote, or a file that its page saved"
            )
        places = {name: header.index(name) for name in _NEEDED}
        start = skipped + rows.line_num + 1
        for row in rows:
            where, start = f"{path} line {start}", skipped + rows.line_num + 1
            if not any(map(str.strip, row)):
                continue
            if len(row) <= max(places.values()):
                yield f"{where}: {len(row)} cells, expected {len(header)}"
            else:
                cells = {name: row[place].strip() for name, place in places.items()}
                yield _Line(where, path.stem, cells)
    except csv.Error as error:
        raise UsageError(f"{where}: no CSV: {error}") from error


def _parted(text: str) -> tuple[io.StringIO, str]:
    """The table from its header on, and what parts its columns. Excel may say that in a line of
    its own before, "sep=;"; else the header shows it.
    """
    table = io.StringIO(text, newline="")
    if said := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):
        table.seek(said.end())
        return table, said[1]
    return table, max(",;\t", key=text.lstrip().partition("\n")[0].count)


def _whole(words: str) -> int | None:
    """A whole number as spreadsheets and JSON write it, 7 or 7.0; None where it is none."""
    found = re.fullmatch(r"([0-9]{1,9})(\.0+)?", words)
    return int(found[1]) if found else None


def answers_of(keys: Iterable[SheetKey]) -> dict[str, KeyItem]:
    """The items of several sheets by answer, each with all methods that gave it."""
    found: dict[str, KeyItem] = {}
    for key in keys:
        for one in key["items"]:
            known = found.setdefault(one["answer"], {**one, "methods": []})
            known["methods"] += [name for name in one["methods"] if name not in known["methods"]]
    return found
