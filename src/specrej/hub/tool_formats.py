"""How models write the calls of functions: a form of text for each family of chat templates.

    form = form_of(tokenizer)                        # FORMS["hermes"], or None: no form known
    form.parse('<tool_call>{"name": "f", "arguments": {}}</tool_call>', {"f"})

A template is of a family if it holds the family's mark, and what it writes for a call is read back
as the same call. What is no call of a function that was offered, and as a whole well formed, is
text.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from specrej.types import Detokenizer

_DECODER = json.JSONDecoder()
_QUESTION = {"role": "user", "content": "?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
_ANSWER = {
    "role": "assistant",
    "content": "",
    # Mistral's templates want ids of nine characters.
    "tool_calls": [
        {
            "id": "a1b2c3d4e",
            "type": "function",
            "function": {"name": "probe", "arguments": {"a": "b"}},
        }
    ],
}


class Call(NamedTuple):
    """The call of a function."""

    name: str
    arguments: str
    """The text of a JSON object."""


class Calls(NamedTuple):
    """An answer in which functions are called."""

    text: str
    """What stands around the calls; "" where nothing does."""
    calls: list[Call]


@dataclass(frozen=True)
class ToolForm:
    """How the models of a family write calls.

    Attributes:
        name: of the family.
        in_template: what its chat templates hold.
        marks: what may be special tokens of the model, and belongs to a call.
        openings: what a call begins with in the text that is shown, which has no special tokens.
        is_whole: whether calls are the whole of an answer, with no text before them.
        read: the calls of an answer, marks included; None where it holds none. Raises ValueError
            for what is malformed.
        is_hidden: whether a call cannot be told without special tokens, which no text shows.
    """

    name: str
    in_template: str
    marks: tuple[str, ...]
    openings: tuple[str, ...]
    is_whole: bool
    read: Callable[[str], tuple[str, list[Any]] | None]
    is_hidden: bool = False

    def parse(self, spelled: str, offered: Collection[str]) -> Calls | None:
        """The calls in an answer, `marks` included; None where the answer is text.

        Args:
            spelled: the answer.
            offered: names of the functions that may be called.
        """
        try:
            found = self.read(spelled)
            calls = [_as_call(one) for one in found[1]] if found else []
        except (ValueError, RecursionError):
            return None
        if found is None or not calls or not all(call.name in offered for call in calls):
            return None
        return Calls(found[0], calls)

    def certain(self, text: str) -> str:
        """How much of a text no call can begin in, whatever comes behind it."""
        if self.is_whole:
            begun = text.lstrip()
            return "" if _may_open(begun, self.openings) else text
        starts = [start for one in self.openings if (start := text.find(one)) >= 0]
        if starts:
            return text[: min(starts)].rstrip()
        longest = max(map(len, self.openings)) - 1
        for start in range(max(len(text) - longest, 0), len(text)):
            if _may_open(text[start:], self.openings):
                return text[:start].rstrip()
        return text.rstrip()

    def spelled(self, text: str, token_ids: Sequence[int], detokenizer: Detokenizer) -> str:
        """An answer's text with those of its special tokens that belong to calls."""
        parts, read = [], 0
        for token_id in token_ids:
            piece = detokenizer.add(token_id)
            parts.append(text[read : read + len(piece.text)])
            read += len(piece.text)
            if piece.special in self.marks:
                parts.append(piece.special)
        return "".join(parts)


def _may_open(text: str, openings: Sequence[str]) -> bool:
    return any(text.startswith(one) or one.startswith(text) for one in openings)


def _as_call(one: Any) -> Call:
    """A call from its JSON: of a name and arguments, and at most an id and a type beside them."""
    if not isinstance(one, dict) or not one.keys() <= {"name", "arguments", "id", "type"}:
        raise ValueError("no call")
    name, arguments = one.get("name"), one.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call without a name or arguments")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair is no character
    return Call(name, text)


def _read_hermes(spelled: str) -> tuple[str, list[Any]] | None:
    """Each call in a pair of tags. Arguments may spell the closing tag: JSON says where a call
    ends.
    """
    before, opening, rest = spelled.partition("<tool_call>")
    if not opening:
        return None
    texts, calls = [before.rstrip()], []
    while opening:
        body = rest.lstrip()
        call, end = _DECODER.raw_decode(body)
        calls.append(call)
        closing = body[end:].lstrip()
        if not closing.startswith("</tool_call>"):
            raise ValueError("a call that is not closed")
        between, opening, rest = closing.removeprefix("</tool_call>").partition("<tool_call>")
        texts.append(between.strip())
    return "\n".join(filter(None, texts)), calls


def _read_llama(spelled: str) -> tuple[str, list[Any]] | None:
    """One object or several, with semicolons between them; nothing else."""
    rest = spelled.strip().removeprefix("<|python_tag|>").strip()
    calls = []
    while rest:
        one, end = _DECODER.raw_decode(rest)
        if isinstance(one, dict) and "parameters" in one and "arguments" not in one:
            one["arguments"] = one.pop("parameters")
        calls.append(one)
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return "", calls


def _read_mistral(spelled: str) -> tuple[str, list[Any]] | None:
    """A list behind its mark, with nothing around them."""
    before, mark, rest = spelled.partition("[TOOL_CALLS]")
    if not mark or before.strip():
        return None
    calls = json.loads(rest)
    return ("", calls) if isinstance(calls, list) else None


FORMS = {
    form.name: form
    for form in (
        ToolForm(
            "hermes",
            "<tool_call>",
            ("<tool_call>", "</tool_call>"),
            ("<tool_call>",),
            False,
            _read_hermes,
        ),
        ToolForm(
            "mistral",
            "[TOOL_CALLS]",
            ("[TOOL_CALLS]",),
            ("[",),
            True,
            _read_mistral,
        ),
        ToolForm(
            "llama3",
            "parameters",
            ("<|python_tag|>",),
            ("{", "<|python_tag|>"),
            True,
            _read_llama,
        ),
    )
}
"""By name; a template is of the first that reads it."""


def form_of(tokenizer: Any) -> ToolForm | None:
    """The form in which a model writes calls, by its chat template; None where it is not known.

    Args:
        tokenizer: of transformers, with a chat template.
    """
    template = tokenizer.get_chat_template(tools=[_TOOL])
    forms = [form for form in FORMS.values() if form.in_template in template]
    written = _written_call(tokenizer) if forms else ""
    special = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    probe = Calls("", [Call("probe", '{"a": "b"}')])
    for form in forms:
        spelled = _without(special.difference(form.marks), written)
        if form.parse(spelled, {"probe"}) == probe:
            if form.parse(_without(special, written), {"probe"}) == probe:
                return form
            # What stands behind a hidden tag is shown.
            openings = form.openings if form.is_whole else ("{",)
            return replace(form, is_hidden=True, openings=openings)
    return None


def _without(tokens: Collection[str], text: str) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text


def _written_call(tokenizer: Any) -> str:
    """What the chat template writes for an answer that is a call; "" if it takes none."""

    def write(*messages: Any, **how: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tools=[_TOOL], tokenize=False, **how))

    try:
        before = write(_QUESTION, add_generation_prompt=True)
        whole = write(_QUESTION, _ANSWER)
    except Exception:  # whatever the template raises
        return ""
    if whole.startswith(before):
        return whole[len(before) :]
    # What it puts before an answer may begin as a call does: "<think>".
    pairs = enumerate(zip(before, whole, strict=False))
    shared = next((place for place, (mine, other) in pairs if mine != other), len(whole))
    return whole[whole.rfind("\n", 0, shared) + 1 :]
