r"""A source of JSON lines that is something else, named before its first line fails.

    check_lines(first_line, "prompts.csv")  # UsageError: prompts.csv is CSV, expected JSON lines

Looked at is the first line that is not blank: what cannot begin any JSONL file, and is well known
as the beginning of another one. A single line that is broken passes; whoever reads it says so.
"""

import re

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


def check_lines(line: bytes, name: str) -> None:
    """See that a source can be JSON lines.

    Args:
        line: its first line that is not blank, without a byte-order mark and without blanks around
            it.
        name: of the source, for the message.

    Raises:
        UsageError: it is of another form; says which, and how it becomes JSON lines.
    """
    for magic, (kind, hint) in _MAGIC.items():
        if line.startswith(magic):
            raise _other(name, kind, hint)
    if b"\0" in line[:4]:
        raise _other(name, "UTF-16 or UTF-32 without a mark", "save it as UTF-8")
    if _ARRAY.match(line):
        raise _other(
            name,
            "one JSON array",
            "write each of its objects on a line of its own: jq -c '.[]' FILE",
        )
    if not line.startswith((b"{", b"[")) and not _JSON_TEXT.fullmatch(line):
        for separator, kind in _SEPARATORS.items():
            cells = {cell.strip(b' "') for cell in line.split(separator)}
            if cells & _COLUMNS:
                raise _other(
                    name,
                    kind,
                    "convert it: pandas.read_csv(FILE).to_json(OUT, orient='records', lines=True)",
                )


def _other(name: str, kind: str, hint: str) -> UsageError:
    return UsageError(f"{name} is {kind}, expected JSON lines: one object a line", hint=hint)
