"""A batch job writes one row for each row in, whatever fails or stops in between, and holds nothing
it has written.
"""

import _thread
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specrej
from calling import END, TOOL, CallingEngine
from fakes import FakeEngine, FakeReward, by_hash
from jobs import (
    SETTINGS,
    TOTAL_BYTES,
    openai,
    plain,
    rows_in,
    run_job,
    without_seconds,
    write_requests,
)
from older import make_older
from specrej.batch.description import describe_job
from specrej.batch.job import local_rows, read_all, run_batch
from specrej.batch.output import Output, open_output
from specrej.batch.requests import Request
from specrej.batch.rows import row_id
from specrej.batch.summary import Tally, figures_of, summarize
from specrej.errors import DeviceMemoryError, UsageError
from specrej.files.journal import read_rows
from specrej.rewards import as_reward
from specrej.search.pool import Pool
from specrej.settings import Settings
from specrej.types import Piece, Result

BROKEN: list[Any] = [
    "{broken",
    {"id": "x"},
    {"id": "p1", "prompt": "A second one?"},
    {"id": "long", "prompt": "x" * 500},
    openai(98, model="another"),
    openai(99, tools=[{}]),
]
MIXED = [
    *(plain(number) for number in range(6)),
    *(openai(number, n=2) for number in range(6, 10)),
    *BROKEN,
]


@pytest.fixture(autouse=True, scope="module")
def _no_disk() -> Iterator[None]:
    """What reaches the disk when is a matter of the journal and its tests; here it would cost
    minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", MIXED)


@pytest.mark.parametrize("num_done", [0, 1, 3])
def test_rows_with_tools_are_resumed_as_they_would_have_been(tmp_path: Path, num_done: int) -> None:
    """Their calls have the ids that an uninterrupted job gives them."""
    script: list[Any] = [Piece("", "[TOOL_CALLS]"), '[{"name": "weather", "arguments": {"a": 1}}]']
    result = {"role": "tool", "content": "rain"}
    asked = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    user = {"role": "user", "content": "Why?"}
    given: dict[str, Any] = {"tools": [TOOL], "stop": END, "max_tokens": 60}
    source = write_requests(
        tmp_path / "in.jsonl",
        [
            openai(0, **given),
            openai(1, **given, chat_template_kwargs={"thinking": True}),
            openai(2, **given, parallel_tool_calls=False, messages=[user, asked, result]),
            openai(3, stop=END, max_tokens=60, n=2),
        ],
    )

    def run(output: Path, resume: bool = False) -> list[str]:
        run_job(source, output, resume=resume, engine=CallingEngine("mistral", script))
        return rows_in(output)

    whole = run(tmp_path / "whole.jsonl")
    bodies = [json.loads(row)["response"]["body"] for row in whole]
    calls = [body["choices"][0]["message"].get("tool_calls") for body in bodies]
    assert [call and call[0]["function"] for call in calls] == [
        *[{"name": "weather", "arguments": '{"a": 1}'}] * 3,
        None,
    ]
    assert len({call[0]["id"] for call in calls if call}) == 3
    output = tmp_path / "out.jsonl"
    run(output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:num_done]))
    assert run(output, resume=True) == whole
    # A job that offers other functions is another one.
    changed = source.read_text().replace("Tells it.", "Tells all.")
    source.write_text(changed)
    with pytest.raises(UsageError):
        run(output, resume=True)


def test_each_row_is_what_generate_gives(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [plain(number) for number in range(8)])
    rows = {ended.row["id"]: ended.row for ended in run_job(source, tmp_path / "out.jsonl")}
    assert len(rows) == 8
    options: Any = {name: value for name, value in SETTINGS.to_dict().items() if name != "stop"}
    for number in range(8):
        alone = specrej.generate(
            plain(number)["prompt"], model=FakeEngine(), reward=FakeReward(), **options
        )
        row = rows[f"p{number}"]
        assert (row["text"], row["reward"]) == (alone.text, alone.reward)
        assert row["usage"]["generated_tokens"] == alone.usage.generated_tokens
        assert len(row["answers"]) == min(2, sum(c.state == "complete" for c in alone.candidates))


def test_every_row_in_has_one_row_out_whatever_is_wrong_with_it(
    mixed: Path, tmp_path: Path
) -> None:
    ended = run_job(mixed, tmp_path / "out.jsonl")
    rows = read_rows(tmp_path / "out.jsonl")
    assert rows == [each.row for each in ended]
    assert len(rows) == len({row_id(row) for row in rows}) == len(MIXED)
    failed = {
        row_id(row): figures_of(row).message or "" for row in rows if row["error"] is not None
    }
    assert failed.keys() == {"line-11", "x", "line-13", "long", "o98", "o99"}
    assert "the id 'p1' is that of line 2" in failed["line-13"]
    assert "the row asks for the model 'another', the job runs 'bytes'" in failed["o98"]
    assert "exceed" in failed["long"] or "context" in failed["long"]
    assert all((each.flops is None) == (each.row["error"] is not None) for each in ended)


def test_a_prompt_that_the_reward_fails_on_is_a_row(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [plain(number) for number in range(5)])

    def failing(prompt: str, texts: list[str]) -> list[float]:
        if "3" in prompt:
            raise ValueError("no score today")
        return [by_hash(text) for text in texts]

    rows = {
        ended.row["id"]: ended.row
        for ended in run_job(source, tmp_path / "out.jsonl", reward=as_reward(failing))
    }
    assert [name for name, row in sorted(rows.items()) if row["error"]] == ["p3"]
    assert rows["p3"]["error"]["kind"] == "reward_error"
    assert "no score today" in rows["p3"]["error"]["message"]
    assert run_job(source, tmp_path / "out.jsonl", resume=True, reward=as_reward(failing)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an input and the output of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    run_job(write_requests(directory / "in.jsonl", MIXED), directory / "out.jsonl")
    return directory


@hypothesis.settings(max_examples=15, deadline=None)
@given(cut=st.floats(0, 1), in_flight=st.integers(1, 6))
def test_an_output_cut_anywhere_is_gone_on_with_to_the_same_rows(
    whole: Path, cut: float, in_flight: int
) -> None:
    output = whole / "cut.jsonl"
    content = (whole / "out.jsonl").read_bytes()
    left = content[: round(cut * len(content))]
    output.write_bytes(left)
    (whole / "cut.jsonl.job.json").write_bytes((whole / "out.jsonl.job.json").read_bytes())
    ended = run_job(whole / "in.jsonl", output, resume=True, in_flight=in_flight)
    assert len(ended) == len(MIXED) - left.count(b"\n")
    assert rows_in(output) == rows_in(whole / "out.jsonl")
    assert output.read_bytes().startswith(left[: left.rfind(b"\n") + 1])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_an_interrupt_at_any_decision_frees_the_engine_and_keeps_the_rows(
    mixed: Path, tmp_path: Path, share: float
) -> None:
    total = calls = 0

    def counting(text: str) -> float:
        nonlocal calls
        calls += 1
        if calls == round(share * total):
            raise KeyboardInterrupt
        return by_hash(text)

    all_rows = without_seconds(
        [ended.row for ended in run_job(mixed, tmp_path / "a.jsonl", reward=FakeReward(counting))]
    )
    total, calls = calls, 0
    with pytest.raises(KeyboardInterrupt):
        run_job(mixed, tmp_path / "out.jsonl", reward=FakeReward(counting))
    before = read_rows(tmp_path / "out.jsonl")
    assert len(before) < len(MIXED)
    run_job(mixed, tmp_path / "out.jsonl", resume=True)
    assert read_rows(tmp_path / "out.jsonl")[: len(before)] == before
    assert rows_in(tmp_path / "out.jsonl") == all_rows


def test_an_interrupt_lets_the_write_in_progress_end(mixed: Path, tmp_path: Path) -> None:
    written: list[str] = []

    def append(row: Any) -> None:
        written.append("begun")
        if len(written) > 12:
            _thread.interrupt_main()
            time.sleep(0.1)
        written[-1] = row_id(row)

    requests = read_all(str(mixed), SETTINGS, 1, "bytes")
    rows = run_batch(
        requests,
        local_rows(FakeEngine(), FakeReward(), Pool(TOTAL_BYTES), 4),
        Output(append, frozenset(), Tally()),
    )
    with pytest.raises(KeyboardInterrupt), closing(rows):
        list(rows)
    assert len(written) == 13
    assert "begun" not in written


def test_a_device_without_memory_stops_the_job_and_what_is_done_stays(
    mixed: Path, tmp_path: Path
) -> None:
    class Exhausted(FakeEngine):
        def step(self, limits: Any = None) -> Any:
            if self.num_prefills > 6:
                raise DeviceMemoryError("no memory at all")
            return super().step(limits)

    with pytest.raises(DeviceMemoryError):
        run_job(mixed, tmp_path / "out.jsonl", engine=Exhausted())
    before = read_rows(tmp_path / "out.jsonl")
    assert before
    run_job(mixed, tmp_path / "out.jsonl", resume=True)
    assert read_rows(tmp_path / "out.jsonl")[: len(before)] == before
    assert len(read_rows(tmp_path / "out.jsonl")) == len(MIXED)


def test_rows_that_are_there_are_gone_on_with_only_when_asked(mixed: Path, tmp_path: Path) -> None:
    run_job(mixed, tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UsageError, match=f"holds {len(MIXED)} rows of a job of 20") as caught:
        run_job(mixed, tmp_path / "out.jsonl")
    assert "--resume" in (caught.value.hint or "")
    assert run_job(mixed, tmp_path / "out.jsonl", resume=True) == []
    assert (tmp_path / "out.jsonl").read_bytes() == before


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": (
        {"settings": Settings(memory="3KiB", max_new_tokens=24, min_tokens=6, seed=6)},
        "settings.seed was 5, now it is 6",
    ),
    "memory": (
        {"settings": Settings(memory="4KiB", max_new_tokens=24, min_tokens=6, seed=5)},
        r'memory was "3KiB"',
    ),
    "kept": ({"num_kept": 3}, "num_kept was 2, now it is 3"),
    "model": ({"model": "letters"}, 'model was "bytes", now it is "letters"'),
    "reward": ({"reward": "length"}, 'reward was "fake", now it is "length"'),
    "weights": ({"weights": "fp32"}, 'weights was null, now it is "fp32"'),
    "device": ({"device": "cuda:1"}, "device was null"),
    "prompt": ({"rows": [plain(0), {"id": "p1", "prompt": "Another?"}]}, "requests.sha256"),
    "id": ({"rows": [plain(0), {"id": "q1", "prompt": "Question 1?"}]}, "requests.sha256"),
    "more": ({"rows": [plain(0), plain(1), plain(2)]}, "requests.num_rows was 2, now it is 3"),
    "form": ({"rows": [plain(0), openai(1) | {"custom_id": "p1"}]}, "requests.sha256"),
    "several": ({"model": "letters", "reward": "length"}, "model was .*; reward was"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job_is_refused_by_what_differs(tmp_path: Path, name: str) -> None:
    def open_job(resume: bool, **changes: Any) -> Any:
        given: dict[str, Any] = {
            "rows": [plain(0), plain(1)],
            "settings": SETTINGS,
            "num_kept": 2,
            "model": "bytes",
            "reward": "fake",
        }
        given |= changes
        path = write_requests(tmp_path / "in.jsonl", given.pop("rows"))
        requests = read_all(str(path), given["settings"], given["num_kept"], "bytes")
        job = describe_job(requests, given.pop("settings"), given.pop("num_kept"), **given)
        return open_output(tmp_path / "out.jsonl", job, resume=resume)

    with open_job(False) as output:
        output.append({"id": "p0", "error": {"kind": "x", "message": "y"}})
    changes, words = CHANGES[name]
    with pytest.raises(UsageError, match=f"(?m){words}"), open_job(True, **changes):
        pass
    with open_job(True) as output:
        assert output.done == {"p0"}
        assert output.tally.failures == {"x": 1}


def test_a_job_that_has_written_nothing_may_become_another(tmp_path: Path) -> None:
    requests = read_all(
        str(write_requests(tmp_path / "in.jsonl", [plain(0)])), SETTINGS, 1, "bytes"
    )
    for reward in ("misspelt", "fake"):
        with open_output(
            tmp_path / "out.jsonl",
            describe_job(requests, SETTINGS, 1, model="bytes", reward=reward),
            resume=False,
        ):
            pass
    assert json.loads((tmp_path / "out.jsonl.job.json").read_text())["reward"] == "fake"


@pytest.mark.parametrize(
    "content", ['{"id": "mine"}\n', '{"one": "object", "and": "no newline"}', "notes\n"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_file_of_somebody_else_is_left_alone(
    mixed: Path, tmp_path: Path, content: str, resume: bool
) -> None:
    (tmp_path / "out.jsonl").write_text(content)
    with pytest.raises(UsageError, match="is the output of no batch") as caught:
        run_job(mixed, tmp_path / "out.jsonl", resume=resume)
    assert "give another --output" in (caught.value.hint or "")
    assert (tmp_path / "out.jsonl").read_text() == content


def test_a_job_that_an_older_version_began_goes_on(mixed: Path, tmp_path: Path) -> None:
    run_job(mixed, tmp_path / "whole.jsonl")
    output, beside = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job.json"
    run_job(mixed, output)
    make_older(beside)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:4]))
    assert len(run_job(mixed, output, resume=True)) == len(MIXED) - 4
    assert rows_in(output) == rows_in(tmp_path / "whole.jsonl")
    with pytest.raises(UsageError, match=r"another job: settings\.seed was 5, now it is 6"):
        run_job(mixed, output, resume=True, settings=replace(SETTINGS, seed=6))


def test_a_vote_that_was_begun_without_votes_in_its_rows_goes_on(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [plain(number) for number in range(6)])
    output = tmp_path / "out.jsonl"
    voting = replace(SETTINGS, algorithm="majority_vote", n=4, extract="text")
    run_job(source, output, settings=voting)
    whole, lines = rows_in(output), output.read_text().splitlines()[:3]
    older = [json.dumps({**json.loads(line), "votes": None}) for line in lines[:1]]
    for line in lines[1:]:
        row = json.loads(line)
        assert sum(row.pop("votes").values()) == 4
        older.append(json.dumps(row))
    output.write_text("".join(f"{line}\n" for line in older))
    assert len(run_job(source, output, settings=voting, resume=True)) == 3
    rows = list(read_rows(output))
    assert [row.get("votes") is None for row in rows] == [True] * 3 + [False] * 3
    new = {row_id(row) for row in rows[3:]}
    assert without_seconds(rows[3:]) == [row for row in whole if row_id(json.loads(row)) in new]


def test_what_is_missing_and_is_no_setting_is_refused_by_name(mixed: Path, tmp_path: Path) -> None:
    output, beside = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job.json"
    run_job(mixed, output)
    job = json.loads(beside.read_text())
    del job["special_tokens"]  # of a time when messages that spell such tokens were no text
    beside.write_text(json.dumps(job))
    with pytest.raises(
        UsageError, match=r'another job: special_tokens was missing, now it is "text"'
    ):
        run_job(mixed, output, resume=True)


def test_two_writers_are_one_too_many(mixed: Path, tmp_path: Path) -> None:
    requests = read_all(str(mixed), SETTINGS, 1, "bytes")
    job = describe_job(requests, SETTINGS, 1, model="bytes", reward="fake")
    with (
        open_output(tmp_path / "out.jsonl", job, resume=True),
        pytest.raises(UsageError, match="another process is writing to"),
        open_output(tmp_path / "out.jsonl", job, resume=True),
    ):
        pass
    with open_output(tmp_path / "out.jsonl", job, resume=True):
        pass


@pytest.mark.parametrize(
    ("name", "words"), [("", "is no file"), ("in.jsonl/out.jsonl", "cannot write to")]
)
def test_an_output_that_cannot_be_written(
    mixed: Path, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run_job(mixed, tmp_path / name)


def test_an_error_behind_an_opened_output_is_not_the_files(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        open_output(
            tmp_path / "out.jsonl",
            describe_job([], SETTINGS, 1, model="a", reward="b"),
            resume=False,
        ),
    ):
        (tmp_path / "absent").read_text()


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_input_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(UsageError, match="holds no row"):
        read_all(str(tmp_path / "in.jsonl"), SETTINGS, 1, "bytes")


def test_figures_are_of_the_whole_output_and_cost_is_of_one_sitting(
    mixed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    ended = run_job(mixed, output)
    rewards = [reward for each in ended if (reward := figures_of(each.row).reward) is not None]
    requests = read_all(str(mixed), SETTINGS, 2, "bytes")
    job = describe_job(requests, SETTINGS, 2, model="bytes", reward="fake")
    whole, pool = Tally(), Pool(1000)
    for each in ended:
        whole.add(figures_of(each.row), each.flops)
    with open_output(output, job, resume=True) as there:
        summary = summarize(there.tally, whole, output="out", seconds=2.0, pool=pool, job=job)
    json.dumps(summary, allow_nan=False)
    assert (summary["num_rows"], summary["num_failed"]) == (len(MIXED), 6)
    assert summary["failures"] == {"prompt_error": 4, "usage_error": 2}
    assert summary["reward"] == {"mean": pytest.approx(sum(rewards) / 10), "n": 10}
    assert summary["tokens"] == summary["this_run"]["tokens"]
    generated = sum(
        row["usage"]["generated_tokens"] for row in read_rows(output) if row.get("usage")
    )
    generated += sum(
        row["response"]["body"]["specrej"]["generated_tokens"]
        for row in read_rows(output)
        if row.get("response")
    )
    assert summary["tokens"]["generated"] == generated
    assert summary["this_run"]["tokens_per_s"] == generated / 2
    flops = [each.flops for each in ended if each.flops is not None]
    assert summary["this_run"]["flops"]["decode"] == sum(each["decode"] or 0 for each in flops)
    assert summary["this_run"]["flops"]["reward"] == 7 * summary["tokens"]["reward"]


def test_a_reward_that_says_no_flops_makes_their_sum_unknown() -> None:
    tally = Tally()
    figures = figures_of({"id": "a", "error": {"kind": "x", "message": "y"}})
    for reward in (1.0, None, 2.0):
        tally.add(figures, {"prefill": 1.0, "decode": 2.0, "reward": reward})
    assert tally.flops == {"prefill": 3.0, "decode": 6.0, "reward": None}


MANY, IN_FLIGHT = 1000, 4


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], list[tuple[int, int]]]:
    """Of a job of many short prompts, all alike: calls made up to each row; requests and results
    held, now and then."""
    directory = tmp_path_factory.mktemp("many")
    rows = [{"id": f"p{number:04}", "prompt": "Hi"} for number in range(MANY)]
    options = Settings(algorithm="best_of_n", n=2, max_new_tokens=2)
    requests = read_all(str(write_requests(directory / "in.jsonl", rows)), options, 1, "bytes")
    job = describe_job(requests, options, 1, model="bytes", reward="fake")
    rows_of = local_rows(FakeEngine(), FakeReward(), Pool(TOTAL_BYTES), IN_FLIGHT)
    num_calls, calls, held = 0, [], []
    gc.collect()  # what earlier tests have left

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal num_calls
        num_calls += event == "call"

    with open_output(directory / "out.jsonl", job, resume=False) as output:
        sys.setprofile(count)
        try:
            for number, _ in enumerate(run_batch(requests, rows_of, output), 1):
                calls.append(num_calls)
                if number % 100 == 0:
                    kinds = [type(each) for each in gc.get_objects()]
                    held.append((kinds.count(Request), kinds.count(Result)))
        finally:
            sys.setprofile(None)
    return calls, held


def test_nothing_is_held_of_a_row_that_is_written(
    measured: tuple[list[int], list[tuple[int, int]]],
) -> None:
    for number, (num_requests, num_results) in enumerate(measured[1], 1):
        assert num_requests <= MANY - 100 * number + 4 * IN_FLIGHT
        assert num_results <= IN_FLIGHT


def test_a_row_takes_as_much_work_however_many_there_are(
    measured: tuple[list[int], list[tuple[int, int]]],
) -> None:
    calls = measured[0]
    assert len(calls) == MANY
    assert calls[950] - calls[750] == pytest.approx(calls[300] - calls[100], rel=0.02)
