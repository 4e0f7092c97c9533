"""One run a folder, one writer a run."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine, FakeReward
from older import older
from specrej.errors import UsageError
from specrej.evaluation.bench import describe_run, parse_methods, run_bench
from specrej.evaluation.folder import RESULTS, RUN, check_free, open_run, read_bench, read_info
from specrej.evaluation.rows import BenchRow, RunInfo
from specrej.files.journal import Journal, write_json
from specrej.settings import Settings
from traces import loaded_of

INFO = RunInfo(
    kind="bench",
    created="2026-01-01T00:00:00+00:00",
    prompts={"source": "prompts.jsonl", "sha256": "0" * 64, "num_prompts": 3},
    methods=["best_of_n:2"],
    settings=describe_run(
        "bench", loaded_of(["Why?"]), FakeEngine(), FakeReward(), Settings(seed=1), []
    )["settings"],
    engine={"engine": "fake"},
    versions={"specrej": "1"},
)


ROW = BenchRow(prompt_id="a", category=None, method="best_of_n:2", place=0, turns=[], error=None)


def test_a_new_folder_says_what_it_holds(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "new" / "out", INFO, resume=False),
        Journal(tmp_path / "new" / "out" / RESULTS) as journal,
    ):
        journal.append(ROW)
    info, rows = read_bench(tmp_path / "new" / "out")
    assert info == INFO
    assert [row["prompt_id"] for row in rows] == ["a"]


def test_a_run_is_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    with open_run(tmp_path, INFO, resume=False):
        pass
    with (
        pytest.raises(UsageError, match="holds a run of 2026-01-01") as caught,
        open_run(tmp_path, INFO, resume=False),
    ):
        pass
    assert "--resume" in (caught.value.hint or "")
    later = copy.deepcopy(INFO)
    later["created"] = "2026-02-02T00:00:00+00:00"
    with open_run(tmp_path, later, resume=True):
        pass
    assert read_info(tmp_path) == INFO


def test_a_run_takes_further_methods_and_gives_none_up(tmp_path: Path) -> None:
    with open_run(tmp_path, INFO, resume=False):
        pass
    more = copy.deepcopy(INFO)
    more["methods"] = ["policy:p.json", *INFO["methods"]]
    more["policy_files"] = {"p.json": "one"}
    with open_run(tmp_path, more, resume=True):
        pass
    assert read_info(tmp_path) == more
    changed = copy.deepcopy(more)
    changed["methods"], changed["policy_files"] = [*more["methods"], "b"], {"p.json": "two"}
    for other, field in ((INFO, "methods"), (changed, "policy_files")):
        with (
            pytest.raises(UsageError, match=f"holds another run: its {field}"),
            open_run(tmp_path, other, resume=True),
        ):
            pass
    assert read_info(tmp_path) == more


@pytest.mark.parametrize("name", [name for name in RunInfo.__annotations__ if name != "created"])
def test_another_run_is_refused_by_what_differs(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path, INFO, resume=False):
        pass
    other = copy.deepcopy(INFO)
    other[name] = "other"  # type: ignore[literal-required]
    with (
        pytest.raises(UsageError, match=f"holds another run: its {name}"),
        open_run(tmp_path, other, resume=True),
    ):
        pass
    assert read_info(tmp_path) == INFO


ADDED = {"policy", "strict", "continue_final_message"}
ADDED |= {"frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs"}
ADDED |= {"json_schema", "regex", "grammar", "reward_sees", "extract", "window", "warm_up"}
ADDED |= {"max_thinking_tokens", "refill"}


def without(name: str) -> dict[str, object]:
    """INFO without the field of this name; "a.b" is b within a."""
    info: dict[str, Any] = json.loads(json.dumps(INFO))
    *outer, last = name.split(".")
    del (info[outer[0]] if outer else info)[last]
    return info


def test_a_setting_that_an_older_version_did_not_know_has_its_default(tmp_path: Path) -> None:
    before = older(INFO)
    assert INFO["settings"].keys() - before["settings"].keys() == ADDED
    write_json(tmp_path / RUN, before)
    with open_run(tmp_path, INFO, resume=True):
        pass
    assert json.loads((tmp_path / RUN).read_text()) == before  # the file stays as it is
    assert read_info(tmp_path) == INFO
    other = copy.deepcopy(INFO)
    other["settings"]["policy"] = "theirs"
    with (
        pytest.raises(
            UsageError, match=r'its settings\.policy was null, now it is "theirs"'
        ) as caught,
        open_run(tmp_path, other, resume=True),
    ):
        pass
    assert "run.json" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("settings.reward", "settings.reward was missing"),
        ("settings", "settings.model was missing"),
        ("engine.engine", "engine.engine was missing"),
        ("versions", "versions was missing"),
    ],
)
def test_what_is_missing_and_is_no_setting_is_refused_by_name(
    tmp_path: Path, name: str, said: str
) -> None:
    write_json(tmp_path / RUN, without(name))
    with pytest.raises(UsageError, match=re.escape(said)), open_run(tmp_path, INFO, resume=True):
        pass


def test_a_setting_that_is_gone_since_is_refused_by_name(tmp_path: Path) -> None:
    before = copy.deepcopy(INFO)
    before["settings"]["beams"] = 4
    write_json(tmp_path / RUN, before)
    with (
        pytest.raises(UsageError, match=r"its settings\.beams was 4, now it is missing"),
        open_run(tmp_path, INFO, resume=True),
    ):
        pass


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"settings": 1}', "{"])
def test_what_is_no_description_of_a_run_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN).write_text(content)
    with pytest.raises(UsageError, match="holds no run"):
        read_info(tmp_path)


@pytest.mark.parametrize("name", [None, "turns", "method", "error"])
def test_a_row_that_lacks_a_field_is_damaged(tmp_path: Path, name: str | None) -> None:
    with open_run(tmp_path, INFO, resume=False), Journal(tmp_path / RESULTS) as journal:
        journal.append(ROW)
        journal.append({key: value for key, value in ROW.items() if name and key != name})
    with pytest.raises(UsageError, match=rf"line 2 of .* it lacks .*{name or 'prompt_id'}"):
        read_bench(tmp_path)


def test_a_bench_does_not_go_on_with_a_damaged_row(tmp_path: Path) -> None:
    settings, loaded = Settings(max_new_tokens=4), loaded_of(["Why?"])
    methods = parse_methods(["best_of_n:2"], settings)

    def bench(*, resume: bool) -> Iterator[BenchRow]:
        engine, reward = FakeEngine(), FakeReward()
        return run_bench(
            loaded, methods, engine, reward, tmp_path, settings=settings, resume=resume
        )

    assert len(list(bench(resume=False))) == 1
    with (tmp_path / RESULTS).open("a") as file:
        file.write("{}\n")
    with pytest.raises(UsageError, match=r"line 2 of .* is damaged: it lacks category, error"):
        list(bench(resume=True))


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, INFO, resume=False),
        pytest.raises(UsageError, match="another process"),
        open_run(tmp_path, INFO, resume=True),
    ):
        pass


def test_files_of_no_run_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex"), open_run(tmp_path, INFO, resume=True):
        pass
    assert not (tmp_path / RUN).exists()


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UsageError, match="cannot write"),
        open_run(tmp_path / "file", INFO, resume=False),
    ):
        pass
    with pytest.raises(UsageError, match="holds no run"):
        read_info(tmp_path / "file")


def test_a_folder_that_is_free_may_be_claimed_and_no_other(tmp_path: Path) -> None:
    check_free(tmp_path / "new" / "out", resume=False)
    with (
        open_run(tmp_path / "new" / "out", INFO, resume=False),
        pytest.raises(UsageError, match="another process"),
    ):
        check_free(tmp_path / "new" / "out", resume=True)
    check_free(tmp_path / "new" / "out", resume=True)
    with pytest.raises(UsageError, match="holds a run of 2026-01-01"):
        check_free(tmp_path / "new" / "out", resume=False)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds no run but other files"):
        check_free(tmp_path, resume=True)
    with pytest.raises(UsageError, match="cannot write"):
        check_free(tmp_path / "thesis.tex", resume=False)
