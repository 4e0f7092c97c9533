"""A budget of tokens is spent in waves, changes no candidate, and survives a stop."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeEngine, FakeReward, by_hash
from jobs import TOTAL_BYTES, openai, plain, rows_in, run_job, without_seconds, write_requests
from specrej.batch.allotting import Allotted, most_worth, worth
from specrej.batch.description import describe_job
from specrej.batch.job import FinishedRequest, local_rows, read_all, run_batch
from specrej.batch.output import open_output
from specrej.batch.waves import check_spending, in_waves, open_waves
from specrej.errors import UsageError
from specrej.files.journal import read_rows
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.search.pool import Pool
from specrej.settings import Settings

SETTINGS = Settings(algorithm="best_of_n", n=3, memory="3KiB", max_new_tokens=24, seed=5)
BUDGET = 6 * 3 * 24 + 700
ROWS = [plain(number) for number in range(6)]


@pytest.fixture(autouse=True, scope="module")
def _no_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def run_waves(
    source: Path,
    output: Path,
    *,
    budget_tokens: int = BUDGET,
    settings: Settings = SETTINGS,
    num_kept: int = 2,
    resume: bool = False,
    reward: Reward | None = None,
    in_flight: int = 4,
    stop_after: int | None = None,
) -> list[FinishedRequest]:
    """Run a job to its end, or until so many waves are written."""
    engine = FakeEngine()
    requests = read_all(str(source), settings, num_kept, "bytes")
    check_spending(requests, settings, budget_tokens)
    job = describe_job(
        requests, settings, num_kept, model="bytes", reward="fake", budget_tokens=budget_tokens
    )
    one_wave = local_rows(engine, reward or FakeReward(), Pool(TOTAL_BYTES), in_flight)
    written = 0

    with (
        open_output(output, job, resume=resume) as there,
        open_waves(output, job, resume=resume) as waves,
    ):

        def append(row: Any) -> None:
            nonlocal written
            if written == stop_after:
                raise KeyboardInterrupt
            waves.append(row)
            written += 1

        noted = waves._replace(append=append)
        rows_of = in_waves(one_wave, settings, num_kept, budget_tokens, noted, lambda _: None)
        with closing(run_batch(requests, rows_of, there)) as ended:
            return list(ended)


def counts_of(ended: Sequence[FinishedRequest]) -> dict[str, int]:
    return {each.row["id"]: each.row["num_candidates"] for each in ended}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", ROWS)


def test_a_row_is_that_of_all_its_candidates_at_once(source: Path, tmp_path: Path) -> None:
    ended = run_waves(source, tmp_path / "out.jsonl", num_kept=5)
    counts = counts_of(ended)
    assert len(set(counts.values())) > 1
    for each in ended:
        row = dict(each.row)
        one = write_requests(
            tmp_path / "one.jsonl", [request for request in ROWS if request["id"] == row["id"]]
        )
        output = tmp_path / f"{row['id']}.jsonl"
        at_once = replace(SETTINGS, n=row["num_candidates"])
        (alone,) = run_job(one, output, settings=at_once, num_kept=5)
        for part in ("text", "reward", "answers", "lowest", "num_candidates", "seed", "prompt"):
            assert row[part] == alone.row[part]
        for part in ("generated_tokens", "reward_tokens", "prompt_tokens"):
            assert row["usage"][part] == alone.row["usage"][part]
        num_waves = row["num_candidates"] // 3
        assert row["usage"]["reread_tokens"] == (num_waves - 1) * row["usage"]["prompt_tokens"]
        assert each.flops is not None
        assert alone.flops is not None
        assert each.flops["decode"] == alone.flops["decode"]
        assert row.keys() == alone.row.keys()


@hypothesis.settings(max_examples=15, deadline=None)
@given(budget=st.integers(6 * 72, 6 * 72 * 6))
def test_a_budget_is_never_exceeded_and_no_wave_is_left_that_it_surely_pays(
    budget: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("spent")
    source = write_requests(directory / "in.jsonl", ROWS)
    ended = run_waves(source, directory / "out.jsonl", budget_tokens=budget)
    spent = sum(each.row["usage"]["generated_tokens"] for each in ended)
    assert budget - 72 < spent <= budget
    waves = read_rows(directory / "out.jsonl.waves.jsonl")
    assert sum(wave["usage"]["generated_tokens"] for wave in waves) == spent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an input and the output of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    source = write_requests(directory / "in.jsonl", [*ROWS, {"id": "x"}])
    run_waves(source, directory / "out.jsonl")
    return directory


@hypothesis.settings(max_examples=20, deadline=None)
@given(stop_after=st.integers(0, 35), in_flight=st.integers(1, 6), again=st.integers(1, 6))
def test_stopped_anywhere_it_ends_with_the_same_rows_and_pays_nothing_twice(
    whole: Path, stop_after: int, in_flight: int, again: int
) -> None:
    output, waves = whole / "cut.jsonl", whole / "cut.jsonl.waves.jsonl"
    for path in whole.glob("*cut.jsonl*"):
        path.unlink()
    num_all = len(read_rows(whole / "out.jsonl.waves.jsonl"))
    try:
        run_waves(whole / "in.jsonl", output, in_flight=in_flight, stop_after=stop_after)
    except KeyboardInterrupt:
        assert stop_after < num_all
    left = waves.read_bytes()
    run_waves(whole / "in.jsonl", output, in_flight=again, resume=True)
    assert waves.read_bytes().startswith(left)
    assert rows_in(output) == rows_in(whole / "out.jsonl")
    as_whole = read_rows(whole / "out.jsonl.waves.jsonl")
    assert set(without_seconds(read_rows(waves))) == set(without_seconds(as_whole))


def test_of_prompts_of_equal_worth_the_order_in_which_they_ended_decides_nothing(
    source: Path, tmp_path: Path
) -> None:
    one_token = replace(SETTINGS, max_new_tokens=1)
    solved = as_reward(lambda prompt, texts: [float("3" in prompt) for _ in texts])
    found = []
    for name in ("as it was", "turned round"):
        output = tmp_path / name / "out.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run_waves(
                source, output, settings=one_token, budget_tokens=24, reward=solved, stop_after=6
            )
        if name == "turned round":
            waves = output.with_name("out.jsonl.waves.jsonl")
            waves.write_bytes(b"".join(reversed(waves.read_bytes().splitlines(keepends=True))))
        ended = run_waves(
            source, output, settings=one_token, budget_tokens=24, reward=solved, resume=True
        )
        found.append(counts_of(ended))
    assert sorted(found[0].values()) == [3, 3, 3, 3, 6, 6]
    assert found[0] == found[1]


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_stopped_while_the_rows_are_written_it_runs_nothing_again(
    whole: Path, tmp_path: Path, num_rows: int
) -> None:
    for name in ("out.jsonl.job.json", "out.jsonl.waves.jsonl", "out.jsonl.waves.jsonl.job.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    lines = (whole / "out.jsonl").read_bytes().splitlines(keepends=True)
    output = tmp_path / "out.jsonl"
    output.write_bytes(b"".join(lines[:num_rows]))
    run_waves(whole / "in.jsonl", output, resume=True, stop_after=0)
    assert rows_in(output) == rows_in(whole / "out.jsonl")


def test_waves_of_another_job_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_waves(source, output, stop_after=4)
    with pytest.raises(UsageError, match="holds 4 rows of a job"):
        run_waves(source, output)
    with pytest.raises(UsageError, match=f"budget_tokens was {BUDGET}, now it is {BUDGET + 1}"):
        run_waves(source, output, resume=True, budget_tokens=BUDGET + 1)


def test_a_prompt_that_is_solved_gets_no_more(source: Path, tmp_path: Path) -> None:
    def solved(prompt: str, texts: list[str]) -> list[float]:
        return [float("3" in prompt) for _ in texts]

    counts = counts_of(run_waves(source, tmp_path / "out.jsonl", reward=as_reward(solved)))
    assert counts.pop("p3") == 3
    assert min(counts.values()) > 3
    same = as_reward(lambda _, texts: [1.0] * len(texts))
    counts = counts_of(run_waves(source, tmp_path / "same.jsonl", reward=same))
    assert set(counts.values()) == {3}


def test_a_prompt_that_fails_is_a_row_and_the_others_go_on(source: Path, tmp_path: Path) -> None:
    calls = {"Question 2?": 0}

    def failing(prompt: str, texts: list[str]) -> list[float]:
        if "3" in prompt:
            raise ValueError("no score today")
        if "2" in prompt:
            calls["Question 2?"] += 1
            if calls["Question 2?"] > 1:
                raise ValueError("one is enough")
            return [-5.0] * len(texts)  # which has most room
        return [by_hash(text) for text in texts]

    ended = run_waves(source, tmp_path / "out.jsonl", reward=as_reward(failing))
    rows = {each.row["id"]: each.row for each in ended}
    assert rows["p3"]["error"]["kind"] == "reward_error"
    assert rows["p2"]["error"] is None
    assert "one is enough" in rows["p2"]["note"]
    assert (rows["p2"]["num_candidates"], rows["p2"]["reward"]) == (3, -5.0)
    assert max(row.get("num_candidates", 0) for row in rows.values()) > 3


def test_a_failed_row_that_is_taken_out_is_run_again_within_the_budget(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    is_broken = True

    def failing(prompt: str, texts: list[str]) -> list[float]:
        if is_broken and "3" in prompt:
            raise ValueError("no score today")
        return [by_hash(text) for text in texts]

    run_waves(source, output, reward=as_reward(failing))
    others = [row for row in read_rows(output) if row["error"] is None]
    assert len(others) == 5
    write_requests(output, others)
    is_broken = False
    (again,) = run_waves(source, output, reward=as_reward(failing), resume=True)
    assert (again.row["id"], again.row["error"]) == ("p3", None)
    rows = read_rows(output)
    assert rows == [*others, again.row]
    assert sum(row["usage"]["generated_tokens"] for row in rows) <= BUDGET


@pytest.mark.parametrize("more", [72, 73, 100, 144, 216, 720])
def test_a_failed_row_that_is_run_again_and_lost_once_more_stays_within_the_budget(
    more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every candidate draws all its tokens; p3 fails, is run again, and its row is lost."""
    monkeypatch.setattr(f"{__name__}.FakeEngine", partial(FakeEngine, eos=0.0))
    source, output, budget = tmp_path / "in.jsonl", tmp_path / "out.jsonl", 6 * 3 * 24 + more
    write_requests(source, ROWS)
    is_broken = True

    def failing(prompt: str, texts: list[str]) -> list[float]:
        if "3" not in prompt:
            return [by_hash(text) for text in texts]
        if is_broken:
            raise ValueError("no score today")
        return [-1e7] * len(texts)

    def again(keeps: Callable[[Any], bool]) -> None:
        write_requests(output, [row for row in read_rows(output) if keeps(row)])
        run_waves(source, output, budget_tokens=budget, reward=as_reward(failing), resume=True)

    run_waves(source, output, budget_tokens=budget, reward=as_reward(failing))
    is_broken = False
    again(lambda row: row["error"] is None)
    again(lambda row: row["id"] != "p3")
    rows = read_rows(output)
    assert len(rows) == 6
    assert sum(row["usage"]["generated_tokens"] for row in rows) <= budget


@pytest.mark.parametrize("lacks", ["round", "id", "usage", "error", "reward"])
def test_a_row_that_is_no_wave_is_named(lacks: str, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_waves(source, output, stop_after=2)
    path = tmp_path / "out.jsonl.waves.jsonl"
    first, second = read_rows(path)
    del second[lacks]
    write_requests(path, [first, second])
    with pytest.raises(UsageError, match=r"waves\.jsonl holds a row that is no wave"):
        run_waves(source, output, resume=True)


@pytest.mark.parametrize(
    ("settings", "budget_tokens", "words"),
    [
        (replace(SETTINGS, n="auto"), BUDGET, "n is 'auto'"),
        (replace(SETTINGS, algorithm="speculative_rejection"), BUDGET, "is for Best-of-N"),
        (replace(SETTINGS, temperature=0.0), BUDGET, "all candidates are alike"),
        (SETTINGS, 431, "431 tokens do not pay the first 3 candidates of 6 prompts"),
    ],
)
def test_what_no_budget_can_be_spent_on_is_refused(
    source: Path, settings: Settings, budget_tokens: int, words: str
) -> None:
    requests = read_all(str(source), settings, 1, "bytes")
    with pytest.raises(UsageError, match=words) as raised:
        check_spending(requests, settings, budget_tokens)
    if budget_tokens == 431:
        assert "a budget of 432 tokens at least" in str(raised.value.hint)


def test_rows_in_openais_form_are_refused(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [*ROWS, openai(7)])
    requests = read_all(str(source), SETTINGS, 1, "bytes")
    with pytest.raises(UsageError, match="line 7 is in OpenAI's form"):
        check_spending(requests, SETTINGS, BUDGET)


def test_alpha_0_is_best_of_n(source: Path, tmp_path: Path) -> None:
    zero = replace(SETTINGS, algorithm="speculative_rejection", alpha=0.0)
    run_waves(source, tmp_path / "zero.jsonl", settings=zero)
    run_waves(source, tmp_path / "best.jsonl")
    assert rows_in(tmp_path / "zero.jsonl") == rows_in(tmp_path / "best.jsonl")


prompts = st.builds(
    Allotted,
    num_candidates=st.integers(1, 100),
    num_tokens=st.integers(100, 10_000),
    best=st.floats(-10, 10),
)


@given(prompt=prompts, top=st.floats(10, 20), num_more=st.integers(1, 16))
def test_worth_falls_with_candidates_cost_and_reward(
    prompt: Allotted, top: float, num_more: int
) -> None:
    here = worth(prompt, top, num_more)
    more = prompt._replace(
        num_candidates=2 * prompt.num_candidates, num_tokens=2 * prompt.num_tokens
    )
    assert here >= worth(more, top, num_more) >= 0
    assert here >= worth(prompt._replace(num_tokens=2 * prompt.num_tokens), top, num_more)
    assert here >= worth(prompt._replace(best=prompt.best / 2 + top / 2), top, num_more)
    assert worth(prompt._replace(best=top), top, num_more) == 0


@given(worths=st.lists(st.floats(0, 3)), at_most=st.integers(0, 5))
def test_those_of_the_highest_worth_are_chosen(worths: list[float], at_most: int) -> None:
    chosen = most_worth(worths, at_most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(at_most, sum(value > 0 for value in worths))
    others = [value for at, value in enumerate(worths) if at not in chosen]
    assert all(worths[at] >= value and worths[at] > 0 for at in chosen for value in others)


def test_a_job_without_a_budget_describes_itself_as_before(source: Path) -> None:
    requests = read_all(str(source), SETTINGS, 1, "bytes")
    assert "budget_tokens" not in json.dumps(
        describe_job(requests, SETTINGS, 1, model="bytes", reward="fake")
    )
