"""FastChat's own commands grade our exports: its means are those of our row.

The package holds no data. Questions and references are the row's prompts, and the words of the
judge's prompts are ours, in FastChat's form.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from servers import Server
from specrej.evaluation.exports import export
from specrej.evaluation.rows import BenchRow

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write 81.", "Now shorter."]},
    {"question_id": 82, "category": "stem", "turns": ["Explain 82.", "And then?"]},
    {
        "question_id": 83,
        "category": "math",
        "turns": ["Add 83 to 1.", "Twice that?"],
        "reference": ["It is 84.", "It is 168."],
    },
    {
        "question_id": 84,
        "category": "coding",
        "turns": ["Sort 84 words.", "Faster?"],
        "reference": ["sorted(words)", "No."],
    },
]
METHODS = {"bo2": "best_of_n:2", "bo8": "best_of_n:8"}
"""By what FastChat calls them."""
ANSWERS = re.compile(r"<(assistant \w+|answer(?:_\d)?)>\n?(.*?)\n?</\1>", re.DOTALL)
"""In the prompts of our judge, and in those made up for FastChat's."""
BEFORE_1 = Path(sys.prefix) / "openai-before-1"
"""The openai that FastChat's judge is written for."""
Run = Callable[..., Any]


def judge_prompts() -> list[dict[str, str]]:
    """The four that single-answer grading needs, in FastChat's form."""
    fields = {
        "single-v1": ["question", "answer"],
        "single-math-v1": ["question", "ref_answer_1", "answer"],
        "single-v1-multi-turn": ["question_1", "answer_1", "question_2", "answer_2"],
        "single-math-v1-multi-turn": [
            *("question_1", "ref_answer_1", "answer_1"),
            *("question_2", "ref_answer_2", "answer_2"),
        ],
    }
    return [
        {
            "name": name,
            "type": "single",
            "system_prompt": "Grade the last answer, as in [[5]].",
            "prompt_template": "\n".join(f"<{field}>{{{field}}}</{field}>" for field in shown),
            "output_format": "[[rating]]",
        }
        for name, shown in fields.items()
    ]


def write(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FastChat's folder of MT-Bench, all but the answers."""
    data = tmp_path / "data"
    write(data / "mt_bench" / "question.jsonl", QUESTIONS)
    references = [
        {"question_id": one["question_id"], "choices": [{"index": 0, "turns": one["reference"]}]}
        for one in QUESTIONS
        if "reference" in one
    ]
    write(data / "mt_bench" / "reference_answer" / "gpt-4.jsonl", references)
    write(data / "judge_prompts.jsonl", judge_prompts())
    return data


def fastchat(command: str, folder: Path, url: str, *arguments: str) -> str:
    """One of its commands in the folder above its data; what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(BEFORE_1),
        "OPENAI_API_KEY": "-",
        "OPENAI_API_BASE": f"{url}/v1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", f"fastchat.llm_judge.{command}", *arguments],
        cwd=folder.parent,
        env=environment,
        input="\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def grade(request: dict[str, Any]) -> dict[str, Any]:
    """The judge: its grade is a hash of the last answer; every sixth cannot be read."""
    *_, (_, answer) = ANSWERS.findall(request["messages"][-1]["content"])
    number = hashlib.sha256(answer.strip().encode()).digest()[0]
    said = f"It is so. [[{1 + number % 10}]]" if number % 6 else "I would rather not say."
    message = {"role": "assistant", "content": said}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
    return {**about, "choices": [choice], "usage": usage}


def incomplete() -> list[BenchRow]:
    """A method that failed on the first question, and answered one turn of the second."""
    asked = [{"role": "user", "content": "Why?"}]
    rows = [
        {
            "prompt_id": str(question["question_id"]),
            "category": question["category"],
            "method": "incomplete",
            "turns": [{"messages": asked, "text": "So."}] * num_turns,
            "error": None if num_turns else {"kind": "RewardError", "message": "NaN"},
        }
        for question, num_turns in zip(QUESTIONS, (0, 1, 2, 2), strict=True)
    ]
    return cast("list[BenchRow]", rows)


def shown_mean(printed: str, part: str, model: str) -> float:
    """Of show_result's table under this title."""
    table = printed.partition(f"########## {part} ##########")[2].partition("#####")[0]
    [line] = [line for line in table.splitlines() if line.startswith(model)]
    return float(line.split()[-1])


def test_fastchat_has_the_mean_grades_of_the_row(
    run: Run, reproduce: Run, judge: Server, folder: Path, tmp_path: Path
) -> None:
    """Each question must have an answer to each of its turns, or FastChat's judge would end."""
    judge.answer = grade
    outcome = reproduce(
        "mt-bench", folder / "mt_bench" / "question.jsonl", ",".join(METHODS.values())
    )
    ours = {(one["method"], one["name"]): one["estimate"]["value"] for one in outcome["figures"]}
    for name, method in METHODS.items():
        file = folder / "mt_bench" / "model_answer" / f"{name}.jsonl"
        run("export", tmp_path / "out", "--to", "mt_bench", "--method", method, "--output", file)
    file = folder / "mt_bench" / "model_answer" / "incomplete.jsonl"
    export(file, incomplete(), "incomplete", "mt_bench")
    judge.requests.clear()
    fastchat("gen_judgment", folder, judge.url)
    assert len(judge.requests) == len(QUESTIONS) * 2 * 3
    empty = [ANSWERS.findall(one["messages"][-1]["content"])[-1][1] for one in judge.requests]
    assert empty.count("") == 3
    printed = fastchat("show_result", folder, judge.url)
    judgements = [
        json.loads(line)
        for line in (folder / "mt_bench/model_judgment/gpt-4_single.jsonl").open(encoding="utf-8")
    ]
    for name, method in METHODS.items():
        scores = [one["score"] for one in judgements if one["model"] == name]
        read = [score for score in scores if score != -1]
        assert len(scores) == 2 * len(QUESTIONS)
        mean = ours[method, "mean grade, unread ones left out"]
        assert mean == pytest.approx(sum(read) / len(read))
        assert mean == pytest.approx(shown_mean(printed, "Average", name), abs=1e-4)
        assert ours[method, "judgements that failed"] == len(scores) - len(read)
    assert sum(one["score"] == -1 for one in judgements) > 0
