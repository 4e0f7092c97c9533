"""What stands on the fields of `Settings` and `Opening` is what every surface says: a new option is
written once.
"""

import ast
import math
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from specrej.cli import app
from specrej.errors import UsageError
from specrej.opening import Opening, OpeningOptions
from specrej.options import About, options_of
from specrej.server import schema
from specrej.server.protocol import CHAT_ONLY, OWN, SAMPLING, parse_chat
from specrej.settings import Options, Settings
from specrej.types import SamplingParams

ROOT = Path(__file__).parents[1]
COMMANDS: Any = typer.main.get_command(app)
SETTINGS = options_of(Settings)
EVERYTHING = options_of(Opening) | SETTINGS
DEFAULTS = vars(Opening()) | Settings().to_dict()
COMMAND = {"continue_final_message": "batch"}
"""What `generate`, which takes all others, does not take."""
FIELDS = {name: name for name in OWN} | SAMPLING
"""Settings by the names that bodies have for them."""
ANOTHER: dict[str, Any] = {
    "algorithm": "best_of_n",
    "n": 12,
    "alpha": 0.25,
    "keep": 3,
    "decide": "every:8",
    "min_tokens": 4,
    "refill": "forks",
    "reward_sees": "answer",
    "max_thinking_tokens": 5,
    "extract": "number",
    "threshold": 1.5,
    "window": 8,
    "warm_up": 4,
    "memory": "2MiB",
    "max_new_tokens": 7,
    "temperature": 0.5,
    "top_k": 9,
    "top_p": 0.25,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.25,
    "presence_penalty": -0.5,
    "logit_bias": {"7": -100, "42": 1.5},
    "top_logprobs": 3,
    "stop": ["a", "b"],
    "seed": 9,
    "continue_final_message": True,
    "json_schema": {"type": "object"},
    "regex": "[ab]+",
    "grammar": 'start: "a"',
}
"""A value of each setting that a body can name, other than the default."""


def body_with(field: str, value: Any) -> dict[str, Any]:
    last = {"role": "assistant", "content": "Well,"} if field == "continue_final_message" else None
    messages = [{"role": "user", "content": "Hello"}, *([last] if last else [])]
    asks = {"logprobs": True} if field == "top_logprobs" else {}
    return {"model": "m", "messages": messages, **asks} | (
        {"specrej": {field: value}} if field in OWN else {field: value}
    )


def properties() -> dict[str, Any]:
    """What the document says of each field, by its name in bodies."""
    models: tuple[Any, ...] = (schema.Own, schema.TextRequest, schema.ChatRequest)
    found = {
        name: model.model_json_schema()["properties"]
        for name, model in zip("otc", models, strict=True)
    }
    return {
        name: found["o" if name in OWN else "c" if name in CHAT_ONLY else "t"][name]
        for name in FIELDS
    }


def edges(field: Field[Any], about: About) -> list[Any]:
    """Numbers at the bounds, just beside them and well beyond."""
    found: list[Any] = [field.default]
    for bound in about.bounds.values():
        found += [bound - 1, bound, bound + 1]
        if field.type is float:
            found += [math.nextafter(bound, side) for side in (-math.inf, math.inf)]
    return found


def is_taken(call: Any, *arguments: Any, **given: Any) -> bool:
    try:
        call(*arguments, **given)
    except (UsageError, ValidationError):
        return False
    return True


@pytest.mark.parametrize(("owner", "options"), [(Settings, Options), (Opening, OpeningOptions)])
def test_keyword_arguments_are_the_fields_in_name_order_and_type(owner: Any, options: Any) -> None:
    assert list(options_of(owner)) == [field.name for field in fields(owner)]
    assert list(options.__annotations__) == list(options_of(owner))
    assert options.__annotations__ == {field.name: field.type for field in fields(owner)}


def test_settings_are_written_to_runs_by_their_names() -> None:
    assert list(Settings().to_dict()) == list(SETTINGS)


def test_every_sampling_parameter_but_one_for_measuring_is_the_same_option_of_a_run() -> None:
    assert Settings().sampling == SamplingParams()
    for name, (field, about) in options_of(SamplingParams).items():
        if name != "ignore_eos":
            assert SETTINGS[name][1] is about
            own = SETTINGS[name][0].default
            assert ((own or ()) if name == "logit_bias" else own) == field.default


@pytest.mark.parametrize("owner", [Settings, Opening, SamplingParams])
def test_docstrings_name_all_options(owner: Any) -> None:
    attributes = owner.__doc__.partition("Attributes:")[2].partition("Raises:")[0]
    named = re.findall(r"^        (\w[\w, ]*):", attributes, re.MULTILINE)
    assert [name for names in named for name in names.split(", ")] == list(options_of(owner))


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_command_line_has_it(name: str) -> None:
    field, about = EVERYTHING[name]
    [shown] = [
        one for one in COMMANDS.commands[COMMAND.get(name, "generate")].params if one.name == name
    ]
    assert shown.opts == [f"--{name.replace('_', '-')}"]
    assert shown.default == DEFAULTS[name]
    assert shown.help == about.words + (" May be given again." if name == "stop" else "")
    assert shown.metavar == about.metavar
    assert shown.show_default == (about.unset or True)
    is_sampling, is_opened = name in options_of(SamplingParams), name in options_of(Opening)
    panels = "How tokens are drawn", "Model and reward", "How answers are chosen"
    assert shown.rich_help_panel == panels[0 if is_sampling else 1 if is_opened else 2]
    assert (field.default is None) == bool(about.unset) or name == "engine_args"


@pytest.mark.parametrize("command", ["generate", "batch"])
def test_help_says_what_it_means(command: str) -> None:
    help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).stdout
    for name, (_, about) in EVERYTHING.items():
        if (name == "keep", name == "continue_final_message") != (
            command == "batch",
            command == "generate",
        ):
            assert about.words in help_text, name


def test_a_command_that_calls_it_otherwise_says_the_same() -> None:
    [shown] = [one for one in COMMANDS.commands["batch"].params if one.name == "keep_at_decisions"]
    assert shown.help == SETTINGS["keep"][1].words


@pytest.mark.parametrize("name", [name for name, (_, about) in SETTINGS.items() if about.bounds])
def test_the_command_line_refuses_what_is_out_of_bounds(name: str) -> None:
    field, about = SETTINGS[name]
    outside = [value for value in edges(field, about) if not is_taken(Settings, **{name: value})]
    assert outside
    for value in outside:
        done = CliRunner().invoke(app, ["generate", "Hello", f"--{name.replace('_', '-')}={value}"])
        assert done.exit_code == 2
        assert f"{name} must be {about.expected}, got " in " ".join(done.stderr.split())


def test_a_body_gives_every_setting_but_a_policy() -> None:
    assert set(FIELDS.values()) == SETTINGS.keys() - {"policy", "strict"}
    assert set(ANOTHER) == set(FIELDS.values())


@pytest.mark.parametrize("field", FIELDS)
def test_a_body_takes_it_and_the_document_says_what_it_means(field: str) -> None:
    name = FIELDS[field]
    body = body_with(field, ANOTHER[name])
    settings = parse_chat(body, Settings()).settings
    assert settings.to_dict() == Settings().to_dict() | {name: ANOTHER[name]}
    schema.ChatRequest.model_validate(body)
    said = properties()[field]
    assert said["description"] == SETTINGS[name][1].words
    assert said["default"] is None


@pytest.mark.parametrize(
    "field", [field for field, name in FIELDS.items() if SETTINGS[name][1].bounds]
)
def test_the_document_has_the_bounds_that_are_kept(field: str) -> None:
    option, about = SETTINGS[FIELDS[field]]
    terms = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    numbers = [
        one for one in properties()[field]["anyOf"] if one.get("type") in ("integer", "number")
    ]
    assert [{terms[kind]: bound for kind, bound in about.bounds.items()}] == [
        {key: one[key] for key in one.keys() & set(terms.values())} for one in numbers
    ]
    for value in (*edges(option, about), *about.choices):
        if value is not None:
            body, is_right = body_with(field, value), is_taken(Settings, **{FIELDS[field]: value})
            assert is_taken(parse_chat, body, Settings()) == is_right, value
            assert is_taken(schema.ChatRequest.model_validate, body) == is_right, value


def row_of(name: str) -> str:
    """The row of docs/reference/options.md for an option."""
    field, about = EVERYTHING[name]
    default = (
        about.unset if field.default is None else f"`{field.default}`" if field.default else ""
    )
    default = (
        str(DEFAULTS[name])
        if isinstance(field.default, int | float) and field.type is not bool
        else default
    )
    words = re.sub(r"([*|])", r"\\\1", about.words)
    return f"| `--{name.replace('_', '-')}` | {words} | {default} |"


def test_the_docs_list_all_options_with_words_and_defaults() -> None:
    document = (ROOT / "docs" / "reference" / "options.md").read_text()
    table = document.partition("| option | meaning | default |\n|---|---|---|\n")[2].partition(
        "\n\n"
    )[0]
    assert table.split("\n") == [row_of(name) for name in EVERYTHING]


def test_the_servers_docs_list_all_fields() -> None:
    docs = (ROOT / "docs" / "server.md").read_text()
    rows = dict(re.findall(r"^\| (both|chat|`specrej`) \| (.*) \|$", docs, re.MULTILINE))
    told = {where: re.findall(r"`(\w+)`", row) for where, row in rows.items()}
    assert told["`specrej`"][: len(OWN)] == list(OWN)
    assert set(SAMPLING) - set(CHAT_ONLY) <= set(told["both"])
    assert set(CHAT_ONLY) <= set(told["chat"])


def test_nobody_writes_the_words_a_second_time() -> None:
    """Strings of the source, of the command line and the server above all, that are the words of
    an option."""
    words = {about.words for _, about in EVERYTHING.values()} | {
        about.words for _, about in SETTINGS.values()
    }
    found = [
        node.value
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in words
    ]
    assert sorted(found) == sorted(words)
