"""Text from outside: files and stdin, in UTF-8, without a byte-order mark.

    read_text(Path("policies.json"))                     # a file
    decode(sys.stdin.buffer.read(), "stdin")             # bytes that were read already
    without_mark(line, "prompts.jsonl")  # the first line of what is read line by line

Windows' editors and shells put a mark before what they write, in UTF-8 or UTF-16: the first is
dropped, the second is named. Half surrogates, which JSON can spell and no file or tokenizer takes,
are found here too.
"""

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path

from specrej.errors import PromptError, UsageError

_OTHERS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def without_mark(content: bytes, name: str) -> bytes:
    """What a source begins with, without a byte-order mark.

    Args:
        content: its first bytes, at least four where there are as many.
        name: of the source, for the message.

    Raises:
        UsageError: the mark is that of another encoding.
    """
    for mark, encoding in _OTHERS:
        if content.startswith(mark):
            raise UsageError(f"{name} is {encoding}, expected UTF-8", hint="save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def decode(content: bytes, name: str) -> str:
    """The text of all that a source holds.

    Raises:
        UsageError: it is not UTF-8; names the source and the place.
    """
    text = without_mark(content, name)
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        start = error.start + len(content) - len(text)
        raise UsageError(
            f"{name} is not UTF-8: {error.reason} at byte {start}", hint="save it as UTF-8"
        ) from error


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read.
        UsageError: it is not UTF-8.
    """
    return decode(Path(path).read_bytes(), str(path))


def check_characters(content: object, name: str, error: type[UsageError] = PromptError) -> None:
    r"""See that texts are made of characters: half a surrogate pair ("\ud83d") is none.

    Args:
        content: a text, or JSON's lists and objects of texts, names included.
        name: of it, such as "messages"; empty for an object whose fields are named by themselves.
        error: what is raised.

    Raises:
        UsageError: of this kind; names the text, such as messages[0].content.
    """
    for one, where in places(content, name):
        if isinstance(one, str):
            _check(one, where, error)


def places(content: object, name: str) -> Iterator[tuple[object, str]]:
    """What JSON's lists and objects are made of, names included, each with its place, such as
    messages[0].content.
    """
    left = [(content, name)]
    while left:
        one, where = left.pop()
        if isinstance(one, Mapping):
            for key in one:
                yield str(key), f"a name in {where or 'the object'}"
            left += [
                (value, f"{where}.{key!s:.40}".removeprefix(".")) for key, value in one.items()
            ]
        elif isinstance(one, list | tuple):
            left += [(value, f"{where}[{number}]") for number, value in enumerate(one)]
        else:
            yield one, where


def _check(text: str, name: str, error: type[UsageError]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as found:
        half = f"\\u{ord(text[found.start]):04x}"
        raise error(
            f"{name} holds half a surrogate pair, {half}, which is no character",
            hint="give both halves, or leave it out",
        ) from None
