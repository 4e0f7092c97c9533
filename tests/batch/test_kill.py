"""A job that is killed, at any moment and as often as you like, ends with the rows of one that was
left alone.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import specrej
from jobs import openai, plain, rows_in, run_job, write_requests
from real import lend_to_commands
from specrej.batch.rows import row_id
from specrej.cli import app
from specrej.files.journal import read_rows

NUM_JOBS, NUM_KILLS = 4, 5
ROWS: list[Any] = [
    *(plain(number) for number in range(24)),
    *(openai(number, n=2) for number in range(24, 32)),
    "{",
]
SOURCES = Path(specrej.__file__).parents[1]
JOBS = Path(__file__).parents[1] / "jobs.py"


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{SOURCES}{os.pathsep}{JOBS.parent}",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as in this process
    }


def start(*arguments: str | Path, **how: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill(process: "subprocess.Popen[str]", output: Path, num_bytes: int, seconds: float) -> None:
    """Kill it so many seconds after so many more bytes of rows have been written, unless it ends
    before."""
    enough = size_of(output) + num_bytes
    while size_of(output) < enough and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("seed", range(NUM_JOBS))
def test_a_job_killed_again_and_again_ends_with_the_same_rows(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    source, output = write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run_job(source, tmp_path / "whole.jsonl")
    per_sitting = size_of(tmp_path / "whole.jsonl") // (NUM_KILLS + 1)
    num_before = []
    for _ in range(NUM_KILLS):
        process = start(JOBS, source, output, "0.005")
        kill(process, output, draw.randrange(per_sitting), draw.uniform(0, 0.02))
        assert process.returncode == -signal.SIGKILL, process.communicate()
        before = read_rows(output) if output.exists() else []
        assert len({row_id(row) for row in before}) == len(before)
        num_before.append(len(before))
    assert num_before == sorted(num_before)
    assert 0 < num_before[-1] < len(ROWS)
    run_job(source, output, resume=True)
    assert rows_in(output) == rows_in(tmp_path / "whole.jsonl")


def test_a_dead_writer_holds_nobody_up_and_a_live_one_does(tmp_path: Path) -> None:
    source, output = write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    first = start(JOBS, source, output, "0.5")
    while not size_of(output):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = start(JOBS, source, output, "0")
    _, stderr = second.communicate(timeout=300)
    assert second.returncode == 1
    assert f"UsageError: another process is writing to {output}" in stderr
    first.kill()
    first.communicate()
    assert len(run_job(source, output, resume=True)) > 0
    assert len(read_rows(output)) == len(ROWS)


def test_a_disk_that_fills_up_stops_the_job_with_whole_rows(tmp_path: Path) -> None:
    source, output = write_requests(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run_job(source, tmp_path / "whole.jsonl")
    limit = size_of(tmp_path / "whole.jsonl") // 2
    code = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv[1:] = [{str(source)!r}, {str(output)!r}, '0']\n"
        f"runpy.run_path({str(JOBS)!r}, run_name='__main__')"
    )
    process = start("-c", code)
    _, stderr = process.communicate(timeout=300)
    assert f"UsageError: cannot write to {output}: File too large" in stderr
    before = read_rows(output)
    assert 0 < len(before) < len(ROWS)
    assert output.read_bytes().endswith(b"\n")
    run_job(source, output, resume=True)
    assert rows_in(output) == rows_in(tmp_path / "whole.jsonl")


@pytest.mark.slow
def test_a_killed_job_of_real_models_ends_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is killed; the rows without it, and the rest of its own, come from this one."""
    prompts = [
        "Name a fruit.",
        "Why is the sky blue?",
        "Write a word that rhymes with tree.",
        "What is 2 + 2?",
    ]
    source = write_requests(
        tmp_path / "in.jsonl",
        [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(prompts)],
    )
    # With neighbours, the last bits of a sum, and so of a reward, would depend on who they are.
    options = [
        "--n",
        "4",
        "--max-new-tokens",
        "16",
        "--keep",
        "2",
        "--decide",
        "at:8",
        "--in-flight",
        "1",
    ]

    def command(output: Path, *more: str) -> list[str]:
        return ["batch", str(source), "--output", str(output), *options, *more]

    killed = start("-m", "specrej", *command(tmp_path / "out.jsonl"))
    kill(killed, tmp_path / "out.jsonl", 1, 0.05)
    num_before = len(read_rows(tmp_path / "out.jsonl"))
    assert 0 < num_before < len(prompts)
    lend_to_commands(monkeypatch)
    whole = CliRunner().invoke(app, command(tmp_path / "whole.jsonl", "--json"))
    assert whole.exit_code == 0, whole.stderr
    assert json.loads(whole.stdout)["this_run"]["num_rows"] == len(prompts)
    resumed = CliRunner().invoke(app, command(tmp_path / "out.jsonl", "--resume", "--json"))
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["this_run"]["num_rows"] == len(prompts) - num_before
    assert rows_in(tmp_path / "out.jsonl") == rows_in(tmp_path / "whole.jsonl")
