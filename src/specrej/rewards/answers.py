r"""The answer within an answer's text, and when two of them are the same.

    extract = extractor_of("auto")
    extract("6 times 7 is 42.")              # "42"
    same_answer("1,000", "1000.0")           # True
    extractor_of(r"regex:answer is (\w+)")   # ... or "boxed", "number", "text", "module:function"

Equal are texts that `normalise` makes one, numbers of one value, and, where math-verify is
installed, mathematics of one value.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache

from specrej.errors import SpecrejError, UsageError, contained, named
from specrej.registry import EXTRACTS, find
from specrej.rewards.math_verify import MathVerifier, is_installed

Extract = Callable[[str], str | None]
"""From an answer's text to what it answers; None where it answers nothing."""

_WRAPPING = " \"'`*_$()[]{}<>\u201c\u201d\u2018\u2019\u00ab\u00bb"
_ENDING = _WRAPPING + ".,;:!?"
_BOX = r"\boxed{"
_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
"""A sign behind a letter or digit is a hyphen."""
_PERCENT = re.compile(r"\\?%$")
_MATHEMATICS = re.compile(r"[\d\\]")
_REGEX = "regex:"


def extractor_of(spec: str | Extract) -> Extract:
    """What finds the answer in a text.

    Args:
        spec: "auto", "boxed", "number", "text", "regex:PATTERN", "module:function", a name that a
            package adds, or a function. A pattern of Python's `re` gives its last match, or what
            the first group of it took.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: the pattern does not compile, or what the name stands for is no function.
    """
    if isinstance(spec, str) and spec.startswith(_REGEX):
        return _by_pattern(spec.removeprefix(_REGEX))
    found = find("extract", spec) if isinstance(spec, str) else spec
    if not callable(found):
        raise UsageError(
            f"extract must be a function from a text to an answer; {spec!r} is {found!r}",
            hint="docs/algorithms.md has an example",
        )
    is_ours = isinstance(spec, str) and spec in EXTRACTS
    return found if is_ours else _checked(found, spec)


def _checked(extract: Extract, spec: str | Extract) -> Extract:
    """A user's function, whose faults name it."""

    def checked(text: str) -> str | None:
        try:
            with contained(f"extract {spec!r}"):
                answer = extract(text)
        except SpecrejError:
            raise
        except Exception as error:
            raise UsageError(f"extract {spec!r} failed: {named(error)}") from error
        if answer is not None and not isinstance(answer, str):
            raise UsageError(f"extract {spec!r} must return a text or None, got {answer!r}")
        return answer

    return checked


def automatic(text: str) -> str | None:
    """What is marked as the answer (see `boxed`), else the last number."""
    marked = boxed(text)
    return number(text) if marked is None else marked


def boxed(text: str) -> str | None:
    r"""What stands in the last whole `\boxed{}`, else after the last `####` on its line."""
    marked = marked_answer(text)
    return None if marked == text else marked


def number(text: str) -> str | None:
    """The last number, as it is written."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def whole(text: str) -> str | None:
    """All of it."""
    return text if text.strip() else None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are equal: as texts, as numbers, or by math-verify where it is
    installed.

    It is asked only of two that hold digits or commands of LaTeX, for three seconds at most.
    """
    forms = form_of(one), form_of(other)
    if forms[0] == forms[1] or all(isinstance(form, Decimal) for form in forms):
        return forms[0] == forms[1]
    is_mathematics = all(_MATHEMATICS.search(text) for text in (one, other))
    return is_mathematics and is_installed() and bool(_verifier().is_equal(one, _BOX + other + "}"))


def form_of(answer: str) -> str | Decimal:
    """What answers are compared by: the number that one is, else its text normalised.

    Marks of thousands do not count, nor does a percent sign at the end.
    """
    text = normalise(answer)
    plain = _PERCENT.sub("", text).lstrip("$")
    return Decimal(plain.replace(",", "")) if _NUMBER.fullmatch(plain) else text


@cache
def _verifier() -> MathVerifier:
    """One for all, which lives as long as the program."""
    return MathVerifier("what compares answers", timeout_s=3.0)


def _by_pattern(pattern: str) -> Extract:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise UsageError(
            f"the pattern {pattern!r} of extract does not compile: {error}",
            hint="write it as for Python's re; in a shell, inside single quotes",
        ) from error

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1][1 if compiled.groups else 0] if found else None

    return extract


def normalise(text: str) -> str:
    """The text without what does not count: case, white space, and marks and punctuation around
    it.
    """
    plain = " ".join(text.casefold().split())
    return plain.lstrip(_WRAPPING).rstrip(_ENDING) or plain


def marked_answer(text: str) -> str:
    r"""What stands in the last whole `\boxed{}`, else after the last `####` on its line, else
    all of the text.
    """
    start = text.rfind(_BOX)
    if start >= 0 and (content := _up_to_brace(text[start + len(_BOX) :])) is not None:
        return content
    _, mark, after = text.rpartition("####")
    return after.strip().partition("\n")[0] if mark and after.strip() else text


def final_answer(text: str) -> str:
    """What is marked as the answer, else the last line that is not blank."""
    marked = marked_answer(text)
    return marked if marked != text else next(iter(text.strip().splitlines()[-1:]), "")


def _up_to_brace(text: str) -> str | None:
    """The text before the brace that closes what was opened before it; None where none does."""
    depth = 1
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:position]
    return None
