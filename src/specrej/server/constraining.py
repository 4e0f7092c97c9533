"""What answers must obey, as bodies say it: `response_format`, or a constraint under `specrej`.

constraint_in({"response_format": {"type": "json_object"}}, {})  # by the names of `Settings`
"""

import reprlib
from collections.abc import Mapping
from typing import Any

from specrej.errors import UsageError
from specrej.server.forcing import forced, schema_of_calls

_TEXT = {"type": "text"}
CONSTRAINTS = ("json_schema", "regex", "grammar")
"""Settings of which one at most is given: what answers obey."""


def constraint_in(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What answers obey, by the names of `Settings`: in place of what they do by default."""
    wanted = {name: own[name] for name in CONSTRAINTS if name in own}
    names = [f"specrej.{name}" for name in wanted][:1]
    if given.get("response_format", _TEXT) != _TEXT:
        wanted = {"json_schema": _schema_of(given["response_format"])}
        names.append("response_format")
    if tools := forced(given):
        wanted = {"json_schema": schema_of_calls(tools)}
        names.append("tool_choice")
    if len(names) > 1:
        raise UsageError(
            f"{names[-1]} must be left out beside {names[0]}", hint="answers obey one thing"
        )
    if not wanted:
        return {}
    # Who obeys something from the first token on thinks nothing: no default limits it.
    unlimited = {} if "thinking_token_budget" in given else {"max_thinking_tokens": None}
    return dict.fromkeys(CONSTRAINTS) | unlimited | wanted


def _schema_of(response_format: Any) -> dict[str, Any]:
    """The schema that a `response_format` asks for. Answers obey it whether it is strict or not."""
    match response_format:
        case {"type": "json_object", **others} if not others:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema, **labels}}:
            if response_format.keys() == {"type", "json_schema"} and _are_labels(labels):
                return dict(schema)
    raise UsageError(
        f"response_format cannot be honoured, got {reprlib.repr(response_format)}",
        hint="leave it out, or give text, json_object or json_schema, such as "
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": {...}}}',
    )


def _are_labels(given: Mapping[Any, Any]) -> bool:
    """Whether these are the fields that OpenAI has beside a schema."""
    kinds = {"name": str, "description": str, "strict": bool}
    return all(
        name in kinds and isinstance(value, kinds[name] | None) for name, value in given.items()
    )
