"""`tool_choice` that has a function called: the answer is the JSON of one call.

tools = forced(body)                # the functions of which one must be called; none at "auto"
schema_of_calls(tools)              # what the answer obeys
FORM.parse(answer, names)           # and how it is read
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from specrej.errors import UsageError
from specrej.hub.tool_formats import ToolForm
from specrej.messages import as_tools


def forced(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The functions of a body of which its `tool_choice` has one called; empty where none must be.

    Raises:
        UsageError: the choice is none, or names a function that is not among the tools.
        PromptError: see `as_tools`.
    """
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none"):
        return []
    tools = as_tools(without_strict(body.get("tools", [])))
    match choice:
        case "required":
            chosen = tools
        case {"type": "function", "function": {"name": name, **rest}, **others} if not (
            rest or others
        ):
            chosen = [tool for tool in tools if tool["function"]["name"] == name]
        case _:
            raise UsageError(
                f"tool_choice cannot be honoured, got {reprlib.repr(choice)}",
                hint='give auto, none, required or {"type": "function", "function": {"name": ...}}',
            )
    if not chosen:
        raise UsageError(
            f"tool_choice must be among the tools, got {reprlib.repr(choice)}",
            hint="give the function in tools, with its parameters",
        )
    return chosen


def without_strict(tools: Any) -> Any:
    """Tools as they are where calls obey their schema anyway: `strict` asks for nothing more."""
    if not isinstance(tools, list):
        return tools
    return [
        {**tool, "function": {**tool["function"], "strict": None}}
        if isinstance(tool, Mapping)
        and isinstance(tool.get("function"), Mapping)
        and tool["function"].get("strict") is True
        else tool
        for tool in tools
    ]


def schema_of_calls(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A JSON schema of a call of one of some functions. Arguments are an object, which parameters
    without a type leave open.

    Raises:
        UsageError: parameters that no object obeys, or that are nested too deeply.
    """
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": _arguments(
                        tool["function"], f"#/anyOf/{number}/properties/arguments"
                    ),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, tool in enumerate(tools)
        ]
    }


def _arguments(function: Mapping[str, Any], root: str) -> dict[str, Any]:
    """What the arguments of a function obey, where they stand at this root."""
    parameters = function["parameters"]
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise UsageError(
            f"tools must have parameters of the type object, got {reprlib.repr(kind)} for "
            f"{function['name']}"
        )
    try:
        moved: dict[str, Any] = _moved(parameters, root)
    except RecursionError:
        raise UsageError(
            f"tools must have parameters that are nested less deeply, {function['name']} has not"
        ) from None
    return {**moved, "type": "object"}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references still lead where they did, now that it stands elsewhere."""
    if isinstance(schema, Mapping):
        return {
            name: root + value.removeprefix("#")
            if name == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for name, value in schema.items()
        }
    return [_moved(one, root) for one in schema] if isinstance(schema, list) else schema


def _read(spelled: str) -> tuple[str, list[Any]]:
    return "", [json.loads(spelled)]


FORM = ToolForm("forced", "", (), ("{",), True, _read)
"""How an answer stands for a call that must be made, in any family of models."""
