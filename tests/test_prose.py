"""Documents and docstrings in plain sentences: short lines, short sentences, the field's own
words."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
WRITTEN = {"cli.md", "examples.md", "http.md"}
"""Pages of the reference that the build of the site writes, and checks links to."""
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MOST_COLUMNS, MOST_WORDS, MIDDLE_WORDS = 100, 40, 14
INVENTED = re.compile(
    r"\b(claim(s|ed|ing)?|sittings?|in vain|gone on with|goes? on with|decoded anew)\b",
    re.IGNORECASE,
)
"""Words that a reader of the field would have to guess at; identifiers in backticks are left
alone."""


def prose_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line outside code blocks, tables, headings, images and link
    definitions."""
    is_fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            is_fenced = not is_fenced
        elif not is_fenced and not re.match(r"    |\||#|!\[|\[[^]]+\]: ", line):
            yield number, line


def paragraphs(lines: list[str]) -> list[str]:
    """Lines put together; a blank line, and an item of a list, begins a new paragraph."""
    found = [""]
    for line in lines:
        if not line.strip():
            found.append("")
        elif re.match(r"\s*(-|\d+\.) ", line):
            found.append(re.sub(r"^\s*(-|\d+\.) ", "", line))
        else:
            found[-1] += " " + line.strip()
    return [one.strip() for one in found if one.strip()]


def sentences(paragraph: str) -> list[str]:
    """A paragraph's sentences. Code counts as one word, a link as its text; a colon before a
    clause ends none."""
    plain = re.sub(r"`[^`]*`", "CODE", re.sub(r"\]\([^)]*\)", "]", paragraph))
    parts = re.split(r"(?<=[.!?])[\"”)*\]]*\s+(?=[\"“(*]*(?:[A-Z0-9`\[]|specrej\b))", plain)
    return [part for part in parts if words(part)]


def words(sentence: str) -> list[str]:
    return re.findall(r"[^\s/—–|]*\w[^\s/—–|]*", sentence)


def sentences_of(path: Path) -> list[str]:
    lines: list[str] = []
    last = 0
    for number, line in prose_lines(path):
        lines += [""] * (number > last + 1) + [line]  # what was left out ends a paragraph
        last = number
    return [one for paragraph in paragraphs(lines) for one in sentences(paragraph)]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and prose of each docstring, also of those behind a field; indented blocks are left
    out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestDocument:
    def test_lines_fit(self, path: Path) -> None:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        wide = [
            number
            for number, line in lines
            if len(line) > MOST_COLUMNS and not line.startswith("|")
        ]
        assert wide == []

    def test_sentences_are_short(self, path: Path) -> None:
        found = sentences_of(path)
        assert [one for one in found if len(words(one)) > MOST_WORDS] == []
        assert median(len(words(one)) for one in found) <= MIDDLE_WORDS

    def test_links_lead_somewhere(self, path: Path) -> None:
        links = re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8"))
        links = [link for link in links if Path(link).name not in WRITTEN]
        assert [link for link in links if not (path.parent / link).exists()] == []

    def test_words_are_the_fields(self, path: Path) -> None:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert [line for line in text.splitlines() if INVENTED.search(line)] == []


def is_code(paragraph: str) -> bool:
    """Examples, command lines and drawings are no sentences."""
    try:
        return isinstance(ast.parse(textwrap.dedent(paragraph)), ast.Module)
    except SyntaxError:
        return bool(re.search(r"[├└]|^ *specrej ", paragraph, re.MULTILINE))


def test_docstrings_have_short_sentences() -> None:
    long = []
    for path in SOURCES:
        for line, text in docstrings(path):
            prose = re.sub(
                r"^\s*(Args|Raises|Returns|Attributes|Yields):$", "", text, flags=re.MULTILINE
            )
            prose = re.sub(
                r"^(\s*)(?=\w+(, \w+)*: )", "\n\\1", prose, flags=re.MULTILINE
            )  # a parameter's entry
            own = [one for one in re.split(r"\n\s*\n", prose) if not is_code(one)]
            found = [
                one
                for paragraph in own
                for whole in paragraphs(paragraph.splitlines())
                for one in sentences(whole)
            ]
            long += [
                f"{path.relative_to(ROOT)}:{line}: {one}"
                for one in found
                if len(words(one)) > MOST_WORDS
            ]
    assert long == []


def test_docstrings_and_messages_use_the_fields_words() -> None:
    """All texts of the package: docstrings, messages, help. An engine's `demand` has its name, of
    which some speak."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                found = INVENTED.search(re.sub(r"`[^`\n]*`", "", node.value))
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {found[0]}"] if found else []
    assert wrong == []


def test_comments_have_short_sentences() -> None:
    long = []
    for path in SOURCES:
        for comment in re.findall(
            r"(?:^ *# .*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            whole = " ".join(line.strip(" #") for line in comment.splitlines())
            long += [
                f"{path.name}: {one}" for one in sentences(whole) if len(words(one)) > MOST_WORDS
            ]
    assert long == []
