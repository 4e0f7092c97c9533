"""One run a folder, one writer a run."""

import copy
from pathlib import Path

import pytest

from specrej.errors import UsageError
from specrej.evaluation.folder import RESULTS, RUN, check_free, open_run, read_bench, read_info
from specrej.evaluation.rows import RunInfo
from specrej.journal import Journal

INFO = RunInfo(
    kind="bench",
    created="2026-01-01T00:00:00+00:00",
    prompts={"source": "prompts.jsonl", "sha256": "0" * 64, "num_prompts": 3},
    methods=["best_of_n:2"],
    settings={"seed": 1, "stop": []},
    engine={"engine": "fake"},
    versions={"specrej": "1"},
)


def test_a_new_folder_says_what_it_holds(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "new" / "out", INFO, resume=False),
        Journal(tmp_path / "new" / "out" / RESULTS) as journal,
    ):
        journal.append({"prompt_id": "a"})
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
