"""What answers must obey, as llguidance compiles it; and the refusal of engines that follow none.

    text = checked(Constraint("regex", "[0-9]+"))            # what llguidance reads
    refuse_constraint(sampling, "openvino", "it begins a grammar anew with each page")

JSON is written as Python's `json.dumps` writes it, with a blank behind commas and colons and no
other white space: models know it well, and none can fill an answer with blanks. A schema that has
an `x-guidance` of its own goes before that.
"""

import json
from typing import Any

from specrej.constraint import Constraint, ThoughtLimit
from specrej.errors import SamplingError, UsageError
from specrej.types import SamplingParams

_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_HINT = (
    "taken is what llguidance takes: JSON Schema, Rust's regular expressions without look-around, "
    "Lark's grammars"
)


def refuse_constraint(sampling: SamplingParams, engine: str, reason: str) -> None:
    """Say of an engine that it follows no constraint, where one is asked for.

    Raises:
        SamplingError: one is; says why.
    """
    if sampling.constraint is not None:
        is_of_thoughts = isinstance(sampling.constraint, ThoughtLimit)
        raise SamplingError(
            f"{sampling.constraint.kind} cannot be honoured by the engine {engine!r}: {reason}",
            hint="the engine torch does" if is_of_thoughts else "the engines torch and vllm do",
        )


def spaced(schema: str) -> str:
    """A JSON schema with how white space is written."""
    given: dict[str, Any] = json.loads(schema)
    return json.dumps({**given, "x-guidance": {**_SPACING, **_own_guidance(given)}})


def _own_guidance(schema: dict[str, Any]) -> dict[str, Any]:
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise SamplingError(f"json_schema's x-guidance must be an object, got {own!r}")
    return own


def checked(constraint: Constraint) -> str:
    """What llguidance reads for a constraint, seen to mean something.

    Raises:
        UsageError: llguidance is not installed.
        SamplingError: it cannot be compiled; says what the compiler said.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise UsageError(
            f"{constraint.kind} needs llguidance, which is not installed",
            hint="pip install 'specrej[structured]'",
        ) from error

    match constraint.kind:
        case "json_schema":
            text = LLMatcher.grammar_from_json_schema(spaced(constraint.text))
        case "regex":
            text = LLMatcher.grammar_from_regex(constraint.text)
        case "grammar":
            text = LLMatcher.grammar_from_lark(constraint.text)
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(text, limits=limits())
    if is_wrong:
        raise not_compiled(constraint, messages[0])
    return text


def limits() -> Any:
    """The most that a constraint may cost: a fraction of a second to compile, and some 10 ms for
    a candidate in a step.
    """
    from llguidance import LLParserLimits

    # The default fuel lets one mask of a nested counter, "(a{1000}){1000}", take 50 ms a candidate.
    return LLParserLimits(
        max_lexer_states=50_000,
        step_lexer_fuel=20_000,
        initial_lexer_fuel=500_000,
        verbose_errors=False,
    )


def not_compiled(constraint: Constraint, said: str) -> SamplingError:
    """What a constraint is told that does not compile."""
    words = " ".join(said.split())
    return SamplingError(
        f"{constraint.kind} must be one that can be followed, llguidance says: {words}",
        hint=_HINT,
    )
