"""Answers that obey, as the commands take it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from specrej.cli import app
from tiny import save_model

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2**10)
    return ["--model", model, "--reward", "logprob", "--n", "3", "--max-new-tokens", "40"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_schema_is_a_file_or_the_json_itself(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    for given in (path, json.dumps(SCHEMA)):
        done = invoke("generate", "Why?", "--json", "--json-schema", given, *options)
        assert done.exit_code == 0, done.output
        for one in json.loads(done.stdout)["candidates"]:
            assert json.loads(one["text"]).keys() == {"ok"}


def test_a_regex_and_a_grammar(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "colour.lark"
    path.write_text('start: "red" | "green"')
    for name, given, pattern in (
        ("--regex", "[ab]{2,4}", "[ab]{2,4}"),
        ("--grammar", path, "red|green"),
    ):
        done = invoke("generate", "Why?", "--json", name, given, *options)
        assert done.exit_code == 0, done.output
        for one in json.loads(done.stdout)["candidates"]:
            assert re.fullmatch(pattern, one["text"])


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("--json-schema", "nowhere.json", "nowhere.json"),
        ("--json-schema", '{"type": ', "(char 9)"),
        ("--json-schema", '{"type": "no"}', "json_schema must be"),
        ("--regex", "(a", "regex must be"),
        ("--grammar", "start: foo", "grammar must be"),
    ],
)
def test_what_means_nothing_is_refused(
    name: str, given: str, words: str, options: list[str]
) -> None:
    done = invoke("generate", "Why?", name, given, *options)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.split())


def test_rows_in_openais_form_bring_their_own(tmp_path: Path, options: list[str]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    body = {"model": options[1], "messages": [{"role": "user", "content": "Why?"}]}
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | own}
        for name, own in (("bound", {"response_format": wanted}), ("free", {}))
    ]
    prompts, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = invoke("batch", prompts, "--output", output, *options)
    assert done.exit_code == 0, done.output
    answers = {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in map(json.loads, output.read_text().splitlines())
    }
    assert json.loads(answers["bound"]).keys() == {"ok"}
    assert not answers["free"].startswith('{"ok"')
