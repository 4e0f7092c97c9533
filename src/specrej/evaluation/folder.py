"""A run's folder: run.json says what the run is, so that nobody mixes two.

with open_run(directory, info, resume=False):                # the only writer, until the block ends
    with Journal(directory / RESULTS) as journal:
        ...
info, rows = read_bench(directory)
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout

from specrej.errors import UsageError
from specrej.evaluation.rows import BenchRow, RunInfo
from specrej.files.journal import read_rows, write_json
from specrej.files.resuming import completed, differences

RUN = "run.json"
RESULTS = "results.jsonl"
METHODS_OWN = ("algorithm", "n", "alpha", "threshold")
"""What a method sets; all other settings are the run's."""
_LOCK = ".lock"


@contextmanager
def open_run(
    directory: str | Path,
    info: RunInfo,
    *,
    resume: bool,
    sha256_of_first: Callable[[int], str] | None = None,
) -> Iterator[None]:
    """Be the only writer of a run's folder: a new one, or (with `resume`) one that was stopped.

    Args:
        directory: the run's.
        info: the run.
        resume: go on with a run that is there.
        sha256_of_first: of the run's prompts, the first so many. A run that is there may end with
            one of them, as a trial does. It is this run from then on.

    Raises:
        UsageError: the folder cannot be written, is in use, holds another run or files of no run,
            or holds this run already and `resume` was not asked for.
    """
    directory = Path(directory)
    with locked(directory):
        _check(directory, resume=resume)
        if (directory / RUN).exists():
            _check_same(directory, info, sha256_of_first)
        else:
            write_json(directory / RUN, info)
        yield


def check_free(directory: str | Path, *, resume: bool) -> None:
    """See to what `open_run` asks of a folder, whatever the run is: before a model is opened.

    A folder that is not there is made.

    Raises:
        UsageError: the folder cannot be written, is in use, holds files of no run, or holds a run
            and `resume` was not asked for.
    """
    with locked(directory):
        _check(Path(directory), resume=resume)


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Be the only one that writes to a folder, which is made; until the block ends.

    Raises:
        UsageError: the folder cannot be written, or another process is writing to it.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / _LOCK, timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"another process is writing to {directory}", hint="wait for it, or stop it"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror or error}") from error


def _check(directory: Path, *, resume: bool) -> None:
    if not (directory / RUN).exists():
        if foreign := sorted(
            path.name for path in directory.iterdir() if not path.name.startswith(".")
        ):
            raise UsageError(
                f"{directory} holds no run but other files, such as {foreign[0]}",
                hint="give a folder of its own",
            )
        return
    if not resume:
        raise UsageError(
            f"{directory} holds a run of {read_info(directory)['created']} already",
            hint="go on with it by --resume, or give another folder",
        )


def _check_same(
    directory: Path, info: RunInfo, sha256_of_first: Callable[[int], str] | None
) -> None:
    """See to it that a run may go on as this one. Further methods and prompts become part of it."""
    there, here = read_info(directory), cast("RunInfo", json.loads(json.dumps(info)))
    known = cast("RunInfo", dict(there))
    if set(there["methods"]) < set(here["methods"]):
        known["methods"] = here["methods"]
        if files := here.get("policy_files", {}) | there.get("policy_files", {}):
            known["policy_files"] = files
    held, prompts = there["prompts"], here["prompts"]
    if (
        sha256_of_first is not None
        and held["source"] == prompts["source"]
        and held["num_prompts"] < prompts["num_prompts"]
        and held["sha256"] == sha256_of_first(held["num_prompts"])
    ):
        known["prompts"] = prompts
    if differing := differences(known, here):
        raise UsageError(
            f"{directory} holds another run: its {'; '.join(differing)}",
            hint="resume with the options that the run began with (see run.json), or give another "
            "folder",
        )
    if known != there:
        write_json(directory / RUN, known)


def read_info(directory: str | Path) -> RunInfo:
    """What the run in a folder is. A setting that was added since counts as its default.

    Raises:
        UsageError: there is no run.
    """
    try:
        info = json.loads((Path(directory) / RUN).read_text(encoding="utf-8"))
        settings = completed(info.get("settings", {}), without=METHODS_OWN)
        return cast("RunInfo", {**info, "kind": info["kind"], "settings": settings})
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise UsageError(
            f"{directory} holds no run: {RUN} cannot be read",
            hint="give a folder that specrej bench or trace has made",
        ) from error


def read_bench(directory: str | Path) -> tuple[RunInfo, list[BenchRow]]:
    """What a bench has written so far.

    Raises:
        UsageError: the folder holds no bench, or a row is damaged.
    """
    info = read_info(directory)
    if info["kind"] != "bench":
        raise UsageError(f"{directory} holds a {info['kind']}, not a bench")
    rows = read_rows(Path(directory) / RESULTS, BenchRow.__required_keys__)
    return info, cast("list[BenchRow]", rows)


def count_rows(directory: str | Path) -> int:
    """Rows that a bench has written; 0 where the folder holds none."""
    path = Path(directory) / RESULTS
    return len(read_rows(path)) if path.exists() else 0
