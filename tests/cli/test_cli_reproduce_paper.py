"""The paper's tables and figures again, from a file of prompts to the page: a tiny model answers, a
local server judges, and numpy computes every figure again from the files.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from markupsafe import Markup
from typer.testing import CliRunner, Result

from judging import say
from recomputed import FIGURES, Files, coefficients, efficiency, mean
from servers import Server, record_waits, serving
from specrej.cli import app
from specrej.evaluation import recording
from specrej.evaluation.report import bench_sections, replay_sections
from specrej.evaluation.report.page import Picture
from specrej.evaluation.reproduce.paper import page
from specrej.evaluation.reproduce.paper.outcome import (
    NO_CORRELATION,
    NO_EXAMPLE,
    NO_JUDGE,
    NO_PERPLEXITY,
    NO_SCORE,
    UNREAD,
    empty_tables,
)
from specrej.evaluation.reproduce.paper.plan import (
    METHODS,
    TABLE_2_METHODS,
    checkpoints_of,
    example_checkpoint,
    plan_of,
)
from specrej.evaluation.reproduce.paper.published import GENERATORS, TABLE_1, TABLE_2
from tiny import save_model

WORDS = ("best_of_n:4", "best_of_n:12", "speculative_rejection:0.5:16")
LARGEST = "best_of_n:12"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, serving(lambda answer: answer) as server:
        record_waits(patch)
        server.answer = say
        yield server


@pytest.fixture(scope="module")
def run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("given")
    model = save_model(folder / "tiny", max_position_embeddings=2**20)
    prompts = [{"id": name, "prompt": f"Why {name}?"} for name in "abcde"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    judge = ("--judge", "some-judge", "--judge-url", f"{server.url}/v1")

    def invoke(
        name: str,
        output: Path,
        *arguments: str,
        methods: tuple[str, ...] = WORDS,
        is_judged: bool = True,
    ) -> Result:
        options = ["--model", model, "--reward", "logprob", "--max-new-tokens", "8"]
        options += ["--prompts", str(folder / "prompts.jsonl"), "--limit", "4"]
        options += ["--methods", ",".join(methods), "--output", str(output)]
        asked = judge if is_judged else ()
        return CliRunner().invoke(app, ["reproduce", name, *options, *asked, *arguments])

    return invoke


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder and what the command said."""
    folder = tmp_path_factory.mktemp("paper") / "out"
    done = run("paper", folder)
    assert done.exit_code == 0, done.stderr
    return folder, done


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds; one run paints them."""
    empty = Picture("", "", Markup(""))
    for module in (page, bench_sections, replay_sections):
        monkeypatch.setattr(module, "picture", lambda *_, **__: empty)
    for module, name in (
        (page, "scatter"),
        (bench_sections, "efficiency"),
        (replay_sections, "violins"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)


def outcome_of(folder: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((folder / "paper.json").read_text())
    return outcome


def numbers(estimate: Any) -> list[float]:
    ends = estimate.values() if isinstance(estimate, dict) else estimate
    return [math.nan if end is None else end for end in ends]


def same(given: Any, expected: Any) -> bool:
    return numbers(given) == pytest.approx(numbers(expected), rel=1e-9, abs=1e-12, nan_ok=True)


def test_tables_are_those_that_numpy_finds_in_the_files(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    outcome = outcome_of(folder)
    for place, (part, baseline) in enumerate((("alpacafarm", WORDS[0]), ("perplexity", LARGEST))):
        table = outcome["tables"][place]
        assert (table["table"], table["baseline"]) == (place + 1, baseline)
        given = {
            (name, row["method"]): estimate
            for row in table["rows"]
            for name, estimate in row["measured"].items()
        }
        expected = FIGURES[part](Files(folder / part, baseline))
        assert given.keys() == expected.keys()
        for key, figure in expected.items():
            assert same(given[key], figure), key
    order = ["best_of_n:4", "best_of_n:12", "best_of_n:240"]
    assert [row["method"] for row in outcome["tables"][0]["rows"]][:3] == order
    shown = {row["method"]: row["paper"] for row in outcome["tables"][0]["rows"]}
    assert shown[WORDS[0]] == {}
    assert shown["speculative_rejection:0.5"]["Llama-3-8B"] == {
        "win rate": 73.60,
        "length-controlled win rate": 77.91,
    }


def test_figure_3_is_that_which_numpy_finds_in_the_files(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    given = outcome_of(folder)["figures"]["efficiency"]["methods"]
    expected = efficiency(Files(folder / "alpacafarm", WORDS[0]))
    for method in WORDS:
        assert same(given[method]["improvement"], expected["improvement"]["improvement", method])
        for measure in ("seconds", "tokens", "flops"):
            if given[method]["relative"][measure]["value"] is not None:
                assert same(
                    given[method]["relative"][measure], expected["relative"][measure, method]
                )
            speedup = given[method]["speedup"]["improvement"][measure]
            value = expected["speedup"][measure, method][0]
            assert value is not None
            assert {"below": value == 0, "not_reached": math.isinf(value), "reached": True}[
                speedup["outcome"]
            ]
            if speedup["outcome"] == "reached":
                assert speedup["value"] == pytest.approx(value, rel=1e-9)


def test_figures_2_and_4_are_those_that_numpy_finds_in_the_traces(
    finished: tuple[Path, Result],
) -> None:
    folder, _ = finished
    figures = outcome_of(folder)["figures"]
    traces = []
    for path in sorted((folder / "trace").glob("*.parquet")):
        columns = pq.ParquetFile(path).read(["token_ids", "rewards", "final_reward"]).to_pydict()
        lengths = np.array([len(ids) for ids in columns["token_ids"]])
        traces.append((lengths, np.array(columns["rewards"]), np.array(columns["final_reward"])))
    assert len(traces) == 4
    assert [at["num_tokens"] for at in figures["correlations"]] == [1, 2, 4]
    for place, at in enumerate(figures["correlations"]):
        for kind, least in (("unfinished", at["num_tokens"]), ("all", -1)):
            found = [
                coefficients(rewards[lengths > least, place], final[lengths > least])
                for lengths, rewards, final in traces
            ]
            for measure in ("pearson", "spearman", "kendall"):
                given = at[kind][measure]
                values = [one[measure] for one in found]
                assert given["by_prompt"] == pytest.approx(values, rel=1e-9, abs=1e-12)
                assert same(given["estimate"], mean(values))
    example = figures["example"]
    lengths, rewards, final = traces["abcd".index(example["prompt_id"])]
    partial = rewards[:, [1, 2, 4].index(example["num_tokens"])]
    assert (example["partial"], example["final"]) == (partial.tolist(), final.tolist())
    live = lengths > example["num_tokens"]
    assert example["is_unfinished"] == live.tolist()
    assert example["unfinished"] == pytest.approx(coefficients(partial[live], final[live]))
    spread = np.cov(partial[live], final[live])
    assert example["slope"] == pytest.approx(spread[0, 1] / spread[0, 0])
    line = example["intercept"] + example["slope"] * partial[live].mean()
    assert line == pytest.approx(final[live].mean())
    assert example["below_best"] == np.mean(partial < partial[np.argmax(final)])
    of_all = sorted(figures["correlations"][0]["unfinished"]["pearson"]["by_prompt"])
    assert example["unfinished"]["pearson"] == of_all[1]


def test_cost_is_the_sum_of_the_files_and_all_is_shown(
    finished: tuple[Path, Result], server: Server
) -> None:
    folder, done = finished
    outcome = outcome_of(folder)
    usages = [
        turn["usage"]
        for part in ("alpacafarm", "perplexity")
        for row in Files(folder / part, WORDS[0]).rows
        for turn in row["turns"]
    ]
    for path in (folder / "trace").glob("*.parquet"):
        about = pq.ParquetFile(path).schema_arrow.metadata[b"specrej"]
        usages.append(json.loads(about)["usage"])
    total = outcome["spent"]["total"]
    for name, field in (
        ("seconds", "total_s"),
        ("generated_tokens", "generated_tokens"),
        ("reward_tokens", "reward_tokens"),
    ):
        assert total[name] == pytest.approx(sum(usage[field] for usage in usages))
    assert (outcome["seed"], outcome["num_failed"], outcome["num_all"]) == (0, 0, 28)
    assert outcome["calls"]["requests"] > 0
    assert {run["engine"]["engine"] for run in outcome["runs"].values()} == {"torch"}
    assert outcome["left_out"] == []
    shown = (folder / "paper.html").read_text()
    for words in ("73.60/77.91", "1.299/30.6", "Figure 2", "Figure 3", "Figure 4", "16 to 32"):
        assert words in shown
    assert shown.count("<svg") == 7
    last = done.stdout.splitlines()[-1]
    assert f"Page: {folder / 'paper.html'}" in last
    assert f"{total['generated_tokens']:,} tokens generated" in last


@pytest.mark.usefixtures("unpainted")
def test_stopped_anywhere_it_is_resumed_where_it_was(
    run: Run,
    finished: tuple[Path, Result],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, folder = outcome_of(finished[0]), tmp_path / "out"
    shutil.copytree(finished[0], folder)
    (folder / "paper.json").unlink()
    for file, left in (("perplexity/results.jsonl", 5), ("alpacafarm/preferences.jsonl", 3)):
        rows = (folder / file).read_text().splitlines(keepends=True)
        (folder / file).write_text("".join(rows[:left]))
    (folder / "trace" / "00002.parquet").unlink()
    answers = (folder / "alpacafarm" / "results.jsonl").read_bytes()
    refused = run("paper", folder)
    assert (refused.exit_code, "go on with it by --resume" in refused.stderr) == (2, True)

    def stopped(*_: object, **__: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(recording, "record", stopped)
        halted = run("paper", folder, "--resume")
    assert (halted.exit_code, "with --resume to go on" in halted.stderr) == (130, True)
    assert not (folder / "paper.json").exists()
    done = run("paper", folder, "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    after = json.loads(done.stdout)
    assert (folder / "alpacafarm" / "results.jsonl").read_bytes() == answers
    assert after["tables"][0] == before["tables"][0]
    assert after["figures"] == before["figures"]
    perplexities = [
        [row["measured"].get("perplexity") for row in one["tables"][1]["rows"]]
        for one in (before, after)
    ]
    assert perplexities[0] == perplexities[1]
    assert after == outcome_of(folder)


@pytest.mark.usefixtures("unpainted")
def test_a_finished_row_in_the_folder_is_taken_over(
    run: Run, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert run("alpacafarm", folder, methods=(WORDS[0], WORDS[2])).exit_code == 0
    rows, figures = ((folder / name).read_bytes() for name in ("results.jsonl", "alpacafarm.json"))
    done = run("paper", folder, "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    assert (folder / "results.jsonl").read_bytes().startswith(rows)
    assert (folder / "alpacafarm.json").read_bytes() == figures
    assert not (folder / "alpacafarm").exists()
    (table, _) = json.loads(done.stdout)["tables"]
    assert [row["method"] for row in table["rows"] if row["measured"]] == list(WORDS)


@pytest.mark.usefixtures("unpainted")
def test_without_a_judge_all_but_table_1_is_there(
    run: Run, finished: tuple[Path, Result], server: Server, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    before, asked = outcome_of(finished[0]), len(server.requests)
    done = run("paper", tmp_path / "out", "--resume", is_judged=False)
    assert done.exit_code == 0, done.stderr
    assert len(server.requests) == asked
    assert f"left out: {NO_JUDGE}" in done.stdout
    after = outcome_of(tmp_path / "out")
    assert (after["judge"], after["left_out"]) == (None, [NO_JUDGE])
    known = {name for row in after["tables"][0]["rows"] for name in row["measured"]}
    assert known == {"improvement score"}
    assert after["tables"][1] == before["tables"][1]
    assert after["figures"] == before["figures"]
    assert NO_JUDGE in (tmp_path / "out" / "paper.html").read_text()


@pytest.mark.usefixtures("unpainted")
def test_what_is_empty_is_left_out(run: Run, tmp_path: Path) -> None:
    """A reward that is the same for all."""
    words = ("best_of_n:2", "speculative_rejection:0.5:4")
    done = run("paper", tmp_path / "out", "--reward", "regex:~{9}", "--limit", "2", methods=words)
    assert done.exit_code == 0, done.stderr
    after = outcome_of(tmp_path / "out")
    assert after["left_out"] == [NO_SCORE, NO_EXAMPLE, NO_CORRELATION]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("The candidates of Best-of-2 differ in reward on no prompt")
    assert "slower" not in last


def test_a_table_without_figures_of_its_own_is_left_out() -> None:
    perplexity = {"name": "perplexity", "estimate": {"value": 2.0}}
    table_2: Any = {"figures": [perplexity]}
    for num_asked, num_unread, empty in ((2, 1, []), (0, 0, []), (2, 2, [UNREAD])):
        table_1: Any = {"num_asked": num_asked, "num_unread": num_unread}
        assert empty_tables(table_1, table_2, is_judged=True) == empty
    none: Any = {"figures": [perplexity | {"estimate": {"value": None}}]}
    assert empty_tables(table_1, none, is_judged=True) == [UNREAD, NO_PERPLEXITY]


@pytest.mark.parametrize("table", [TABLE_1, TABLE_2])
def test_the_papers_means_are_those_of_its_columns(table: Any) -> None:
    """A digit copied wrongly would show."""
    *columns, last = GENERATORS
    for method, row in table.rows.items():
        means = np.mean([row[name] for name in columns], axis=0)
        digits = (2, 2) if table.number == 1 else (3, 1)
        for found, printed, count in zip(means, row[last], digits, strict=True):
            assert abs(found - printed) <= 0.51 * 10.0**-count, method


def test_lengths_and_methods_are_the_papers(tmp_path: Path) -> None:
    lengths = checkpoints_of(2048)
    assert (lengths, lengths[example_checkpoint(lengths)]) == (
        (16, 32, 64, 128, 256, 512, 1024),
        256,
    )
    assert checkpoints_of(3) == (1,)
    plan = plan_of(tmp_path, (), is_judged=True)
    assert [part.methods for part in plan.parts] == [METHODS, TABLE_2_METHODS]
    assert plan.num_traced == 120
    assert TABLE_1.rows.keys() <= set(METHODS)
    assert TABLE_2.rows.keys() == set(TABLE_2_METHODS)
