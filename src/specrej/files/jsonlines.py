r"""A source of JSON lines that is something else, named before its first line fails.

    check_lines(first_line, "prompts.csv")  # UsageError: prompts.csv is CSV, expected JSON lines

Looked at is the first line that is not blank: what is well known as the beginning of another form.
Where an object follows soon, it is one line that is broken, such as a comment; whoever reads it
says so.
"""

import json
import re
from collections.abc import Iterable
from itertools import islice

from specrej.errors import UsageError

_MAGIC = {
    b"\x1f\x8b": ("gzip", "unpack it: gunzip -c FILE, and give - to read from the pipe"),
    b"PAR1": (
        "Parquet",
        "convert it: pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)",
    ),
    b"ARROW1": (
        "Arrow",
        "convert it: pandas.read_feather(FILE).to_json(OUT, orient='records', lines=True)",
    ),
    b"PK\x03\x04": (
        "a zip archive or a spreadsheet",
        "unpack it, or save the sheet as CSV and convert that",
    ),
    b"BZh": ("bzip2", "unpack it: bunzip2 -c FILE, and give - to read from the pipe"),
    b"\xfd7zXZ": ("xz", "unpack it: xz -dc FILE, and give - to read from the pipe"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it: zstd -dc FILE, and give - to read from the pipe"),
}
_ARRAY = re.compile(rb"\[\s*(\{|$)")
_JSON_TEXT = re.compile(rb'"[^"]*"')
_SEPARATORS = {b",": "CSV", b"\t": "TSV", b";": "CSV"}
_COLUMNS = {
    b"prompt",
    b"messages",
    b"turns",
    b"id",
    b"prompt_id",
    b"question_id",
    b"key",
    b"question",
    b"answer",
}

_ZEROS = {(0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 0)}
"""Which of the first four bytes are zero in UTF-16 and UTF-32: JSON begins with two characters
of ASCII."""
_NUM_FOLLOWING = 2

Remedy = tuple[str, str]
"""What a source is, and how it becomes JSON lines."""


def check_lines(lines: Iterable[bytes], name: str) -> None:
    """See that a source can be JSON lines.

    Args:
        lines: those that are not blank, without a byte-order mark and without blanks around them.
            The first one is taken, and the next two where it looks like another form's.
        name: of the source, for the message.

    Raises:
        UsageError: it is of another form; says which, and how it becomes JSON lines.
    """
    lines = iter(lines)
    form = _other_form(next(lines, b""))
    if form is not None and not any(map(_is_object, islice(lines, _NUM_FOLLOWING))):
        kind, hint = form
        raise UsageError(f"{name} is {kind}, expected JSON lines: one object a line", hint=hint)


def _other_form(line: bytes) -> Remedy | None:
    """What well-known form begins like this."""
    for magic, form in _MAGIC.items():
        if line.startswith(magic):
            return form
    if tuple(int(byte == 0) for byte in line[:4]) in _ZEROS:
        return "UTF-16 or UTF-32 without a mark", "save it as UTF-8"
    if _ARRAY.match(line):
        return "one JSON array", "write each of its objects on a line of its own: jq -c '.[]' FILE"
    if not line.startswith((b"{", b"[")) and not _JSON_TEXT.fullmatch(line):
        for separator, kind in _SEPARATORS.items():
            cells = {cell.strip(b' "') for cell in line.split(separator)}
            if cells & _COLUMNS:
                return (
                    kind,
                    "convert it: pandas.read_csv(FILE).to_json(OUT, orient='records', lines=True)",
                )
    return None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False
