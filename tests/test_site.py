"""What the site is made of beside its pages: the reference, the table of sizes, the pictures, and
errors with cause and cure. `make docs` builds it, and fails on a warning."""

import inspect
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import typer

import generated
import race
import sizing
import specrej
from fakes import FakeEngine, FakeReward
from specrej import errors
from specrej.cli import app

DOCS = Path(__file__).parents[1] / "docs"
TROUBLE = (DOCS / "howto" / "troubleshoot.md").read_text(encoding="utf-8")
CLASSES = [
    name
    for name, one in vars(errors).items()
    if inspect.isclass(one) and issubclass(one, errors.SpecrejError) and name != "SpecrejError"
]


def test_every_name_of_the_package_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: specrej\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(set(specrej.__all__) - {"__version__"})


def leaves(command: Any) -> list[Any]:
    inner = getattr(command, "commands", {})
    return [leaf for one in inner.values() for leaf in leaves(one)] if inner else [command]


def test_the_reference_has_all_commands_and_options() -> None:
    page = generated.command_page()
    sections = dict(re.findall(r"^## `specrej (.*)`$\n((?:(?!## ).*\n)*)", page, re.MULTILINE))
    commands = leaves(typer.main.get_command(app))
    assert len(sections) >= len(commands) > 15
    for name, section in sections.items():
        command: Any = typer.main.get_command(app)
        for part in name.split():
            command = command.commands[part]
        wanted = {option for one in command.params for option in one.opts if "--" in option}
        assert wanted - set(re.findall(r"`(--[\w-]+)`", section)) <= {"--help"}
    assert "| `--port` |" in sections["serve"]
    assert "`--min-p`" in sections["serve"].partition("As in [Options](options.md): ")[2]


def test_the_reference_has_all_endpoints_and_no_broken_anchor() -> None:
    page = generated.bodies_page()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/score"):
        assert f"## `POST {path}`" in page
    anchors = set(re.findall(r"\{ #(\w+) \}", page))
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= anchors
    assert "| `max_completion_tokens` |" in page


def test_the_table_of_sizes_is_what_the_engine_counts() -> None:
    before, table, _ = sizing.parts()
    assert "## Sizes" in before
    assert table == sizing.make()
    llama = sizing.SHAPES[1].layout
    assert llama.bytes_per_token == 2 * 32 * 8 * 128 * 2  # known: 128 KiB
    most = sizing.beginning(llama, 2**30)
    assert sizing.held(llama, most, sizing.FIRST) <= 2**30
    assert sizing.held(llama, most + 1, sizing.FIRST) > 2**30


def test_the_race_is_drawn_from_its_run() -> None:
    run = json.loads(race.DATA.read_text(encoding="utf-8"))
    drawing = race.draw(run)
    assert race.DRAWING.read_text(encoding="utf-8") == drawing
    candidates, best = run["candidates"], run["candidates"][run["best"]]
    assert best["state"] == "complete"
    assert all(one["tokens"] <= one["whole"] for one in candidates)
    assert drawing.count('class="could"') == len(candidates)
    assert drawing.count('class="gone"') == sum(one["rejected"] for one in run["decisions"])


@pytest.mark.parametrize("name", ["race", "architecture"])
def test_a_picture_loads_nothing(name: str) -> None:
    text = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|@import", text)
    assert root.find("{http://www.w3.org/2000/svg}title") is not None


def section(name: str) -> str:
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", TROUBLE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/howto/troubleshoot.md says nothing of {name}"
    return found[1]


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_has_a_cause_and_a_cure(name: str) -> None:
    assert hasattr(specrej, name)
    assert "- **Cause:**" in section(name)
    assert "- **Cure:**" in section(name)


def too_few(prompt: str, texts: list[str]) -> list[float]:
    return [1.0]


REAL: list[dict[str, Any]] = [
    {"alpha": 1.5},
    {"model": "smolm2"},
    {"prompt": ""},
    {"memory": "1KiB", "max_new_tokens": 200},
    {"reward": too_few},
]


@pytest.mark.parametrize("given", REAL, ids=lambda given: next(iter(given)))
def test_the_messages_are_real(given: dict[str, Any]) -> None:
    options = {"prompt": "Hi", "model": FakeEngine(), "reward": FakeReward(), **given}
    with pytest.raises(specrej.SpecrejError) as caught:
        specrej.generate(**options)
    error = caught.value
    assert f"    {error}\n    hint: {error.hint}\n" in section(type(error).__name__)
