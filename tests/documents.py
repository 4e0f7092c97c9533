"""What README and the pages of docs/ tell a reader to type: commands and Python.

for command in commands(DOCUMENTS["docs/batch.md"]):
    print(command.words)
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
MARK = re.compile(r"<!-- parsed only: (.+) -->\n*$")
"""Stands before a block that a test cannot run, with the reason."""


class Command(NamedTuple):
    """One program with its arguments, as a shell would start it."""

    words: list[str]
    why_not: str | None
    """Why it cannot be run, where its block says so."""

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]


class Block(NamedTuple):
    """Python that stands in a page."""

    code: str
    why_not: str | None


def blocks(text: str) -> Iterator[Block]:
    """The Python of a page, in order."""
    for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        yield Block(found[1], _why_not(text[: found.start()]))


def commands(text: str) -> Iterator[Command]:
    """All commands of the indented blocks of a page, in order."""
    plain = re.sub(r"```.*?```", lambda one: "\n" * one[0].count("\n"), text, flags=re.DOTALL)
    for found in re.finditer(r"(?:^ {4}.*\n)(?:^ {4}.*\n|^\n(?= {4}))*", plain, re.MULTILINE):
        why_not = _why_not(plain[: found.start()])
        for line in _lines(found[0]):
            yield from (Command(words, why_not) for words in _programs(line))


def _why_not(before: str) -> str | None:
    mark = MARK.search(before)
    return mark[1] if mark else None


def _lines(block: str) -> Iterator[str]:
    """Lines of a shell: those that a backslash or an open quote continues are one."""
    waiting = ""
    for line in block.replace("\\\n    ", "").splitlines():
        waiting += "\n" * bool(waiting) + line[4:]
        if _is_whole(waiting):
            yield waiting
            waiting = ""


def _is_whole(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def _programs(line: str) -> Iterator[list[str]]:
    """The programs of a line, without pipes, comments and variables that are set before."""
    lexer = shlex.shlex(line.replace("\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("|&;<>"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(token)
