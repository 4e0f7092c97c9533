"""What README and docs tell a reader to type can be typed: every command is parsed, and those that
need no GPU, network or service run in a scratch folder, in the order of their page. Models are
fakes, and amounts of memory and lengths small."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from documents import DOCUMENTS, ROOT, Command, commands
from fakes import FakeEngine, FakeReward
from specrej import rewards
from specrej.cli import app
from specrej.engines import opening

GROUP: Any = typer.main.get_command(app)
ALL = [(page, one) for page, text in DOCUMENTS.items() for one in commands(text)]
OURS = [(page, one) for page, one in ALL if one.program == "specrej"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ELSEWHERE = {
    "a server that runs until it is stopped": r"^serve\b",
    "a server that runs": r"--server\b",
    "a variable of the shell": r"\$",
    "a prompt set from the network": r"^bench \w+ --",
    "a judge, or a benchmark's model": r"^(judge|reproduce)\b",
    "files of raters": r"^ratings import\b",
    "the files of the default models": r"^models\b",
    "the tokenizer of the traces' model": r"^relabel\b",
    "a model, a GPU or a server that is not here": r"\borg/|\bvllm\b|openvino|https?:|--ray\b",
    "an engine that may be installed": r"--engine (auto|torch)",
}
"""Why a command is parsed only, and what such commands look like."""
SMALL = {"--memory": "16KiB", "--total-memory": "64KiB", "--max-new-tokens": "24", "--n": "8"}
SMALL |= {"--checkpoints": "4,8,16", "--budget-tokens": "2000", "--target-regret": "3"}


def ids(given: Any) -> str:
    return given if isinstance(given, str) else " ".join(given.words)[:60]


def parse(words: list[str]) -> None:
    """As the command parses them. A wrong name or option raises."""
    node, rest = GROUP, words[1:]
    while rest and rest[0] in getattr(node, "commands", {}):
        node, rest = node.commands[rest[0]], rest[1:]
    assert not hasattr(node, "commands") or node.invoke_without_command, f"no command: {rest}"
    node.make_context("specrej", list(rest))


@pytest.mark.parametrize(("page", "command"), OURS, ids=ids)
def test_specrej_knows_the_command_and_its_options(page: str, command: Command) -> None:
    parse(command.words)


def test_a_wrong_option_is_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["specrej", "generate", "Hi", "--alhpa", "1"])


@pytest.mark.parametrize("page", DOCUMENTS)
def test_commands_in_sentences_exist(page: str) -> None:
    """`specrej NAME --option` in a sentence: name and options are known."""
    for words in re.findall(r"`specrej ([a-z][^`]*)`", DOCUMENTS[page]):
        name, *rest = words.split()
        options = {one for one in rest if one.startswith("--")} - {"--help"}
        known = {
            name
            for one in [
                GROUP.commands[name],
                *getattr(GROUP.commands[name], "commands", {}).values(),
            ]
            for option in one.params
            for name in option.opts
        }
        assert options <= known, words


@pytest.mark.parametrize(
    ("page", "command"), [one for one in ALL if one[1].program != "specrej"], ids=ids
)
def test_files_targets_and_extras_exist(page: str, command: Command) -> None:
    words = command.words
    if command.program == "make":
        targets = re.findall(
            r"^([\w$()./-]+)(?: .*)?:", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
        wanted = [one for one in words[1:] if "=" not in one and one != ".venv-vllm/.ready"]
        assert set(wanted) <= set(" ".join(targets).split())
    elif command.program == "pip":
        found = [name for word in words for name in re.findall(r"^(?:\.|specrej)\[(.*)\]$", word)]
        assert {name for names in found for name in names.split(",")} <= EXTRAS.keys()
    elif command.program == "python" and words[1].endswith(".py"):
        source = (ROOT / words[1]).read_text()
        assert [one for one in words if one.startswith("--") and f'"{one}"' not in source] == []


def why_not(command: Command) -> str | None:
    line = " ".join(command.words[1:])
    found = [why for why, looks in ELSEWHERE.items() if re.search(looks, line)]
    return command.why_not or (found[0] if found else None)


def small(words: list[str]) -> list[str]:
    """The same with amounts that the fakes hold."""
    return [
        SMALL.get(before, word) if before != "--n" or word != "auto" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


RUNNABLE = {
    page: [one for one in commands(text) if one.program == "specrej" and not why_not(one)]
    for page, text in DOCUMENTS.items()
}


@pytest.mark.parametrize("page", [page for page, found in RUNNABLE.items() if found])
def test_commands_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: FakeEngine())
    monkeypatch.setattr(rewards, "_named", lambda _: FakeReward())
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"id": f"p{number}", "prompt": f"Why {number}?"}) for number in range(8)]
    for name in ("prompts.jsonl", "gsm8k.jsonl", "alpaca_farm_100.jsonl"):
        Path(name).write_text("\n".join(rows) + "\n")
    for command in RUNNABLE[page]:
        words = small(command.words[1:])
        output = Path(words[words.index("--output") + 1]) if "--output" in words else Path("none")
        if "--resume" not in words and output.exists():  # each page begins anew, and so may a line
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        done = CliRunner().invoke(app, words, input=Path("prompts.jsonl").read_text())
        assert done.exit_code == 0, f"specrej {' '.join(words)}\n{done.output}"
