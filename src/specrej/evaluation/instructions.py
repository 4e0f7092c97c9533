r"""Whether an answer obeys instructions that can be checked, by the names that IFEval gives them.

obeys("punctuation:no_comma", {}, "No comma here.")                        # True
obeys("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "Two words.")
obeys("language:response_language", {"language": "kn"}, "...")             # None: not known here

The instructions are those of Zhou et al. (2023, arXiv 2311.07911), strict: the answer as it stands.
Two are read more simply than there. Sentences end at a full stop, ! or ? before white space, and
words are what `\w` holds together. The language of an answer is not looked at.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Details = Mapping[str, Any]
"""What an instruction says beside its name, such as a number of words."""


def obeys(instruction: str, given: Details, text: str) -> bool | None:
    """Whether a text obeys an instruction; None where that cannot be told: it is not known, or
    something is missing from what it says.
    """
    check = _CHECKS.get(instruction)
    if check is None:
        return None
    try:
        return check(text, {name: value for name, value in given.items() if value is not None})
    except KeyError:
        return None


def _compared(number: int, relation: str, wanted: int) -> bool:
    return number < wanted if relation == "less than" else number >= wanted


def _numbered(
    count: Callable[[str, Details], int], wanted: str, relation: str
) -> Callable[[str, Details], bool]:
    """A check that a count stands in a relation to a number, both of these names."""
    return lambda text, given: _compared(count(text, given), given[relation], given[wanted])


def _num_sentences(text: str, _: Details) -> int:
    return len([one for one in re.split(r"(?<=[.!?])[\"')\]*]*\s+", text) if re.search(r"\w", one)])


def _num_words(text: str, _: Details) -> int:
    return len(re.findall(r"\w+", text))


def _num_keyword(text: str, given: Details) -> int:
    return len(re.findall(given["keyword"], text, re.IGNORECASE))


def _num_letter(text: str, given: Details) -> int:
    return text.lower().count(given["letter"].lower())


def _num_capitals(text: str, _: Details) -> int:
    return sum(word.isupper() for word in re.findall(r"\w[\w'-]*", text))


def _paragraphs(text: str, given: Details) -> bool:
    """Divided by `***`; only the first and the last may be empty, and do not count then."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == int(given["num_paragraphs"])


def _first_word(text: str, given: Details) -> bool:
    parts = [part.strip() for part in text.split("\n\n")]
    place = given["nth_paragraph"]
    if sum(map(bool, parts)) != given["num_paragraphs"] or place > len(parts):
        return False
    found = re.match(r"[\"']*([^\s.,?!'\"]*)", parts[place - 1])
    return found is not None and found[1].lower() == given["first_word"].lower()


def _postscript(text: str, given: Details) -> bool:
    marks = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    marker = given["postscript_marker"]
    return re.search(marks.get(marker) or re.escape(marker.lower()), text.lower()) is not None


def _num_bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", text, re.MULTILINE))


def _num_highlights(text: str) -> int:
    marked = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(one.strip()) for one in marked)


def _sections(text: str, given: Details) -> bool:
    heads = re.findall(rf"{re.escape(given['section_spliter'])}\s?\d+", text)
    return len(heads) >= int(given["num_sections"])


def _is_json(text: str, _: Details) -> bool:
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, _: Details) -> bool:
    parts = [part.strip() for part in text.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


def _ends(text: str, given: Details) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _is_quoted(text: str, _: Details) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == '"'


def _has_all(text: str, given: Details) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in given["keywords"])


def _has_none(text: str, given: Details) -> bool:
    return not any(
        re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in given["forbidden_words"]
    )


_CHECKS: dict[str, Callable[[str, Details], bool]] = {
    "keywords:existence": _has_all,
    "keywords:forbidden_words": _has_none,
    "keywords:frequency": _numbered(_num_keyword, "frequency", "relation"),
    "keywords:letter_frequency": _numbered(_num_letter, "let_frequency", "let_relation"),
    "length_constraints:number_sentences": _numbered(_num_sentences, "num_sentences", "relation"),
    "length_constraints:number_words": _numbered(_num_words, "num_words", "relation"),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": (
        lambda text, given: len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": (
        lambda text, given: _num_bullets(text) == given["num_bullets"]
    ),
    "detectable_format:constrained_response": (
        lambda text, _: any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))
    ),
    "detectable_format:number_highlighted_sections": (
        lambda text, given: _num_highlights(text) >= given["num_highlights"]
    ),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": (
        lambda text, _: any(one.strip() for one in re.findall(r"<<([^\n]+?)>>", text))
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": (
        lambda text, given: (
            text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())
        )
    ),
    "startend:end_checker": _ends,
    "startend:quotation": _is_quoted,
    "change_case:capital_word_frequency": _numbered(
        _num_capitals, "capital_frequency", "capital_relation"
    ),
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "punctuation:no_comma": lambda text, _: "," not in text,
}
