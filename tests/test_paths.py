"""A path may be a text or a `Path`, whatever takes one."""

import importlib
import inspect
import json
import pkgutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward, in_thirds
from jobs import plain, run_job, write_requests
from specrej.batch.description import describe_job
from specrej.batch.job import read_all
from specrej.batch.output import open_output
from specrej.batch.preferences import write_pairs, write_sft
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.exports import export
from specrej.evaluation.folder import read_bench
from specrej.evaluation.judge import judge, read_verdicts
from specrej.evaluation.judge import record as record_verdicts
from specrej.evaluation.judge_client import JudgeServer
from specrej.evaluation.policy_grid import read_policies
from specrej.evaluation.prompts import load_prompts
from specrej.evaluation.recording import record
from specrej.evaluation.relabelling import relabel
from specrej.evaluation.replay_summary import replay_folder
from specrej.evaluation.report import write_report
from specrej.evaluation.trace import load, load_failures, load_file
from specrej.files.journal import read_rows
from specrej.rewards import as_reward
from specrej.settings import Settings

SETTINGS = Settings(n=6, max_new_tokens=20, min_tokens=6, seed=5, memory="4KiB")
INNER = {
    "specrej.attention.fused.Fused",
    "specrej.attention.fused.compile_fused",
    "specrej.evaluation.report.bench_sections.bench_page",
    "specrej.evaluation.report.bench_sections.efficiency_section",
    "specrej.evaluation.report.replay_sections.correlation_section",
    "specrej.evaluation.report.replay_sections.replay_page",
    "specrej.evaluation.report.page.picture",
    "specrej.hub.converted.converted",
    "specrej.hub.defaults.convert_smollm2",
    "specrej.hub.defaults.download_wheel",
    "specrej.hub.fingerprints.fingerprint",
    "specrej.hub.fingerprints.write_whole",
}
"""Parts of what others call: `write_report`, `models.pull`, `open_engine`."""


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All public functions and constructors, but those of the command, whose paths are typer's."""
    for info in pkgutil.walk_packages(specrej.__path__, "specrej."):
        if info.name.startswith("specrej.cli") or info.name == "specrej.__main__":
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != info.name:
                continue
            if inspect.isfunction(value):
                yield f"{info.name}.{name}", value
            elif (
                inspect.isclass(value)
                and "__init__" in vars(value)
                and not hasattr(value, "__dataclass_fields__")
            ):
                yield f"{info.name}.{name}", vars(value)["__init__"]


def test_what_takes_a_path_takes_a_text() -> None:
    taking, only = set(), set()
    for name, function in functions():
        annotations = inspect.get_annotations(function)
        annotations.pop("return", None)
        for annotation in annotations.values():
            kinds = typing.get_args(annotation) or (annotation,)
            if Path in kinds:
                taking.add(name)
                only.update([name] if str not in kinds else [])
    assert only == INNER
    assert len(taking) > 30


@pytest.fixture(params=[str, Path])
def path_to(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Any]:
    """A file of the test's folder by its name, as a text or as a `Path`."""
    return lambda name: request.param(tmp_path / name)


@pytest.fixture
def prompts(path_to: Callable[[str], Any], tmp_path: Path) -> Any:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": word}) + "\n" for word in ("Why?", "How?"))
    )
    return path_to("prompts.jsonl")


def test_a_bench(path_to: Callable[[str], Any], prompts: Any, tmp_path: Path) -> None:
    methods = parse_methods(["best_of_n:3", "speculative_rejection:0.5"], SETTINGS)
    loaded = load_prompts(prompts)
    assert loaded.source == str(tmp_path / "prompts.jsonl")
    run = run_bench(loaded, methods, FakeEngine(), FakeReward(), path_to("out"), settings=SETTINGS)
    assert len(list(run)) == 4
    info, rows = read_bench(path_to("out"))
    assert info["prompts"]["source"] == str(tmp_path / "prompts.jsonl")
    assert write_report(path_to("out")) == tmp_path / "out" / "report.html"
    for form in ("alpaca_eval", "mt_bench"):
        assert export(path_to(form), rows, "best_of_n:3", form).answers == 2
    same: dict[str, Any] = {"method": "best_of_n:3", "baseline": "best_of_n:3"}
    endpoint = JudgeServer(base_url="http://127.0.0.1:9", model="nobody")
    verdicts = judge(rows, **same, endpoint=endpoint, cache=path_to("cache"))
    recorded = record_verdicts(path_to("out/judgements.jsonl"), verdicts)
    assert [verdict["verdict"] for verdict in recorded] == ["tie", "tie"]
    assert len(read_verdicts(path_to("out"))) == 2


def test_a_trace(path_to: Callable[[str], Any], prompts: Any, tmp_path: Path) -> None:
    loaded, out = load_prompts(prompts), path_to("out")
    run = record(
        loaded,
        FakeEngine(),
        FakeReward(),
        out,
        settings=Settings(n=6, max_new_tokens=20),
        checkpoints=[4, 8],
    )
    assert len(list(run)) == 2
    assert len(list(load(out))) == 2
    assert load_failures(out) == []
    (tmp_path / "policies.jsonl").write_text('{"alpha": 0.5, "decide": "at:4", "n": 6}\n')
    assert replay_folder(out, read_policies(path_to("policies.jsonl")))["num_prompts"] == 2
    assert write_report(out) == tmp_path / "out" / "report.html"
    again = relabel(out, FakeReward(in_thirds), FakeEngine().detokenizer, path_to("again"))
    assert len(list(again)) == 2
    assert load_file(path_to("again/00001.parquet")).settings["reward"] == "in_thirds"


def test_a_batch_and_its_pairs(path_to: Callable[[str], Any], tmp_path: Path) -> None:
    write_requests(tmp_path / "in.jsonl", [plain(number) for number in range(3)])
    requests = read_all(path_to("in.jsonl"), SETTINGS, 2, path_to("model"))
    job = describe_job(requests, SETTINGS, 2, model=path_to("model"), reward="fake")
    with open_output(path_to("new.jsonl"), job, resume=False) as output:
        assert not output.done
    run_job(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    counts = write_pairs(path_to("out.jsonl"), path_to("pairs.jsonl"))
    assert counts.pairs == len(read_rows(path_to("pairs.jsonl")))
    assert sum(counts) == 3
    assert write_sft(path_to("out.jsonl"), path_to("sft.jsonl")) == (3, 0)
    with pytest.raises(specrej.UsageError, match="holds the answers"):
        write_sft(path_to("out.jsonl"), path_to("./out.jsonl"))


@pytest.mark.parametrize("memory", [None, "1MiB"])
def test_a_directory_as_a_reward_is_a_classifier(
    memory: str | None, path_to: Callable[[str], Any]
) -> None:
    Path(path_to("mine")).mkdir()
    with pytest.raises(specrej.ModelError, match="mine"):
        as_reward(path_to("mine"), memory)
