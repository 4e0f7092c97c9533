"""Rating by people, by the commands and the example of docs/ratings.md."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fakes import FakeEngine, FakeReward
from specrej.cli import app
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.prompts import load_prompts
from specrej.evaluation.ratings.sheet import read_keys
from specrej.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "ratings.md").read_text(encoding="utf-8")
EXPORT, IMPORT = re.findall(r"^    specrej (ratings .*)$", TEXT, re.MULTILINE)
[EXAMPLE] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
METHODS = ["best_of_n:4", "speculative_rejection:0.5"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the bench is that the document begins with."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": f"p{n}", "prompt": f"Why {n}?"}) + "\n" for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    settings = Settings(max_new_tokens=20, min_tokens=6, memory="4KiB")
    methods = parse_methods(METHODS, settings)
    loaded = load_prompts("prompts.jsonl")
    run = run_bench(loaded, methods, FakeEngine(), FakeReward(), "out", settings=settings)
    assert len(list(run)) == 12
    return tmp_path


def ask(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def rate(folder: Path) -> int:
    """What two raters send back; the number of items."""
    with (folder / "sheet.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    with (folder / "ben.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *([*row[:-1], 5] for row in rows)])
    lines = [
        {"sheet": row[0], "rater": "anna", "item": int(row[1]), "score": 5 + number % 2}
        for number, row in enumerate(rows)
    ]
    (folder / "ratings-anna.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return len(rows)


def test_the_documents_commands_and_its_example_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ask(EXPORT)
    assert made.exit_code == 0, made.output
    num_items = rate(folder)
    [name] = read_keys("out")
    assert (
        f"{num_items} items in sheet.html, sheet.csv: 12 answers to 6 prompts; seed 0"
        in made.stdout
    )
    assert f"The key is out/ratings/{name}.json" in made.stdout
    assert name in (folder / "sheet.html").read_text()
    told = ask(IMPORT)
    assert told.exit_code == 0, told.output
    assert all(method in told.stdout for method in METHODS)
    words = f"{2 * num_items} ratings by 2 raters of {num_items} of {num_items} items"
    assert words in " ".join(told.stdout.split())
    summary = json.loads(ask(f"{IMPORT} --json").stdout)
    assert list(summary["methods"]) == METHODS
    assert summary["high_disagreement"]["num_ratings"] == 2 * max(1, num_items // 5)
    (folder / "sheet.html").unlink()
    exec(EXAMPLE, {})
    assert str(summary["agreement"]["value"]) in capsys.readouterr().out


def test_an_export_as_json(folder: Path) -> None:
    line = "ratings export out --output a.csv --methods best_of_n:4 --limit 2 --scale 0-4 --json"
    made = json.loads(ask(line).stdout)
    [key] = read_keys(folder / "out").values()
    assert made == {
        "key": f"out/ratings/{key['sheet']}.json",
        "outputs": ["a.csv"],
        "num_items": 2,
        "num_prompts": 2,
        "num_answers": 2,
        "failed": {},
        "num_left_out": 0,
    }
    assert (key["methods"], key["scale"]) == (["best_of_n:4"], [0, 4])


def test_what_cannot_be_done_is_said(folder: Path) -> None:
    again = [ask("ratings export out --output sheet.csv") for _ in range(2)]
    assert [result.exit_code for result in again] == [0, 2]
    assert "error: sheet.csv is there already" in again[1].stderr
    (folder / "ben.csv").write_text("sheet,item,score\ns0,1,5\n")
    foreign = ask("ratings import out ben.csv")
    assert foreign.exit_code == 2
    assert "error: ben.csv line 2: sheet 's0' was not made from out" in foreign.stderr
    assert "hint: nothing was imported" in foreign.stderr
    unknown = ask("ratings export out --output new.csv --methods best_of_n:40")
    assert unknown.exit_code == 2
    assert "unknown method 'best_of_n:40'" in unknown.stderr
