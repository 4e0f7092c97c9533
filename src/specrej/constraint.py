"""What answers must obey, if anything: a JSON schema, a regular expression or a grammar; or how
long a reasoning model may think.

    constraint_of(json_schema={"type": "object"}, regex=None, grammar=None)

Only what can be seen without a model is checked here. Engines compile it (`engines/constraints`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from specrej.errors import UsageError
from specrej.files.reading import check_characters


@dataclass(frozen=True, slots=True)
class Constraint:
    """What every candidate obeys, from its first token on.

    Attributes:
        kind: "json_schema", "regex" or "grammar".
        text: the schema as JSON, the expression in Rust's syntax without look-around, or the
            grammar in Lark's as llguidance takes it.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """How long every candidate may think: then its next tokens are those of the closing mark.

    Attributes:
        most_tokens: of a thought, without its marks.
        opening, closing: the marks.
        is_begun: whether the prompt ends in the opening mark.
    """

    most_tokens: int
    opening: str
    closing: str
    is_begun: bool
    kind: ClassVar[str] = "max_thinking_tokens"


def constraint_of(
    *, json_schema: Mapping[str, Any] | str | None, regex: str | None, grammar: str | None
) -> Constraint | None:
    """The one that is given; None where none is.

    Raises:
        UsageError: several are given, one is no text, or the schema is no JSON object.
    """
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(
            f"{names[0]} must be the one thing that answers obey, got {' and '.join(names)}",
            hint="leave out all but one",
        )
    for name in ("regex", "grammar"):
        if not isinstance(given[name], str | None):
            raise UsageError(f"{name} must be a text, got {given[name]!r}")
        check_characters(given[name], name, UsageError)
    if json_schema is not None:
        return Constraint("json_schema", json.dumps(schema_of(json_schema)))
    if regex is not None:
        return Constraint("regex", regex)
    return None if grammar is None else Constraint("grammar", grammar)


def schema_of(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """A JSON schema, from a mapping or from JSON text.

    Raises:
        UsageError: it is no JSON object.
    """
    if not isinstance(given, Mapping | str):
        raise UsageError(
            f"json_schema must be a JSON object or the text of one, got {given!r}",
            hint='for example {"type": "object"}',
        )
    try:
        text = given if isinstance(given, str) else json.dumps(dict(given), allow_nan=False)
        schema = json.loads(text)
        check_characters(schema, "json_schema", UsageError)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"json_schema must be JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(
            f"json_schema must be a JSON object, got {given!r:.80}",
            hint='for example {"type": "object"}',
        )
    return schema
