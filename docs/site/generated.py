"""Pages of the reference that the code itself writes: the command, and the bodies of the server.

    print(command_page())
    print(bodies_page())

The site is built with them (`pages.py`). Nothing here is written by hand but the sentences on top.
"""

import json
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import typer

from specrej.cli import app
from specrej.server.app import make_app
from specrej.server.service import Service
from specrej.settings import Settings


def command_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    lines = [
        "# Command line",
        "",
        "Written from the command itself, as `specrej COMMAND --help` shows it. What an option "
        "means that many commands share is in [Options](options.md).",
        "",
    ]
    commands = dict(_commands("specrej", typer.main.get_command(app)))
    shared = {_row(one) for one in commands["specrej generate"].params if one.rich_help_panel}
    for name, command in commands.items():
        lines += _command(name, command, shared)
    return "\n".join(lines)


def bodies_page() -> str:
    """Every endpoint, and every body with its fields, as /openapi.json has them."""
    stub = SimpleNamespace(total_bytes=0, reward=SimpleNamespace(name="relevance"))
    document = make_app(cast("Service", stub), model="smollm2", defaults=Settings()).openapi()
    lines = [
        "# HTTP bodies",
        "",
        "Written from the server's OpenAPI document, which it serves at `/openapi.json`. "
        "[Run the server](../server.md) says what the fields do.",
        "",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += _endpoint(f"{method.upper()} {path}", operation)
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return "\n".join(lines)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """All commands, those of groups by both names; a group itself where it does something alone."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    if command.invoke_without_command:
        yield name, command
    for inner, one in command.commands.items():
        yield from _commands(f"{name} {inner}", one)


def _command(name: str, command: Any, shared: set[str]) -> list[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    given = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    wanted = " ".join(f"[{_name(one)}]" if not one.required else _name(one) for one in given)
    lines = [f"## `{name}`", "", _plain(command.help), "", f"    {name} {wanted} [OPTIONS]", ""]
    lines += [f"- `{_name(one)}`: {_plain(one.help)}" for one in given] + [""]
    own = [row for row in map(_row, options) if row not in shared]
    if own:
        lines += ["| option | meaning | default |", "|---|---|---|", *own, ""]
    if also := [f"`{one.opts[0]}`{{ .whole }}" for one in options if _row(one) in shared]:
        lines += [f"As in [Options](options.md): {', '.join(also)}.", ""]
    return lines


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper().strip("[]")


def _row(option: Any) -> str:
    names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"| {names} | {_cell(option.help)} | {_default(option)} |"


def _default(option: Any) -> str:
    """What holds where the option is not given, in its own words where it has them."""
    if option.required:
        return "needed"
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    is_said = option.default is not None and option.default is not False
    return f"`{option.default}`" if is_said and option.default not in ("", (), [], {}) else ""


def _endpoint(name: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"## `{name}`", "", _plain(operation.get("description")), ""]
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        lines += [f"The body is {_type(body)}.", ""]
    lines += ["| status | meaning | body |", "|---|---|---|"]
    for status, reply in operation["responses"].items():
        kinds = ", ".join(
            _type(kind["schema"]) if kind.get("schema") else f"`{media}`"
            for media, kind in reply.get("content", {}).items()
        )
        lines.append(f"| {status} | {_cell(reply.get('description'))} | {kinds} |")
    return [*lines, ""]


def _schema(name: str, schema: Mapping[str, Any]) -> list[str]:
    needed = schema.get("required", [])
    lines = [f"### {name} {{ #{name.lower()} }}", "", _plain(schema.get("description")), ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for field, about in schema.get("properties", {}).items():
        words = ("Needed. " if field in needed else "") + _cell(about.get("description"))
        lines.append(f"| `{field}` | {_type(about)} | {words} |")
    return [*lines, ""]


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return " or ".join(f"`{json.dumps(one)}`" for one in values) or schema.get("type", "anything")


def _plain(words: str | None) -> str:
    return " ".join((words or "").split())


def _cell(words: str | None) -> str:
    """Words for a cell of a table, in which nothing is formatted but code."""
    return re.sub(r"(`[^`]*`)|([*_<\[|])", lambda one: one[1] or f"\\{one[2]}", _plain(words))
