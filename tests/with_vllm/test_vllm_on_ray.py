"""A batch job on Ray whose actor has vLLM, typed as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import GENERATOR_ARGUMENTS, generator

import specrej

pytest.importorskip("vllm")
pytest.importorskip("ray")
pytestmark = pytest.mark.vllm

PROMPTS = ["Name a tree.", "Give three tips for staying healthy.", ""]


def test_rows_are_those_of_this_process(tmp_path: Path) -> None:
    rows = [
        json.dumps({"id": f"{number}", "prompt": prompt}) + "\n"
        for number, prompt in enumerate(PROMPTS)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    command = [
        sys.executable,
        "-m",
        "specrej",
        "batch",
        "prompts.jsonl",
        "--output",
        "answers.jsonl",
    ]
    command += [
        "--engine",
        "vllm",
        "--engine-args",
        json.dumps(GENERATOR_ARGUMENTS),
        "--ray",
        "local",
    ]
    command += [
        "--reward",
        "logprob",
        "--n",
        "6",
        "--max-new-tokens",
        "16",
        "--seed",
        "4",
        "--in-flight",
        "1",
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [*command, "--memory", "64MiB"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {
        row["id"]: row
        for row in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    }
    assert "empty" in made["2"]["error"]["message"]
    for number, prompt in enumerate(PROMPTS[:2]):
        expected = specrej.generate(
            prompt,
            model=generator(),
            reward="logprob",
            n=6,
            max_new_tokens=16,
            seed=4,
            memory="64MiB",
        )
        row = made[f"{number}"]
        assert row["reward"] == pytest.approx(expected.reward, abs=1e-4)
        assert row["text"] == expected.best.text
        assert row["usage"]["num_preemptions"] == 0
