"""Traces: what is in them, and that a folder of them survives failures, kills and full disks."""

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import specrej
from fakes import FLOPS, FakeEngine, FakeReward, by_hash, in_thirds, text_of
from older import make_older
from specrej.errors import UsageError
from specrej.evaluation.folder import read_info
from specrej.evaluation.recording import RecordedPrompt, record
from specrej.evaluation.trace import load, load_failures
from specrej.settings import Settings
from traces import loaded_of, trace_of, traces_in

PROMPTS = ["Why?", "How?", "When?", "Who?"]
SETTINGS = Settings(n=6, max_new_tokens=20, seed=3)


def run(
    directory: Path,
    engine: Any = None,
    reward: Any = None,
    *,
    settings: Settings = SETTINGS,
    **options: Any,
) -> list[RecordedPrompt]:
    prompts, checkpoints = options.pop("prompts", PROMPTS), options.pop("checkpoints", (4, 8))
    return list(
        record(
            loaded_of(prompts),
            engine or FakeEngine(),
            reward or FakeReward(),
            directory,
            settings=settings,
            checkpoints=checkpoints,
            **options,
        )
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


# What is in a trace


@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=5),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([None, "1MiB"]),
    st.sampled_from([(), ("ab",)]),
)
@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
def test_a_trace_is_best_of_n_with_rewards_and_states_at_the_checkpoints(
    checkpoints: list[int], seed: int, eos: float, memory: str | None, stop: tuple[str, ...]
) -> None:
    options: dict[str, Any] = {
        "n": 11,
        "max_new_tokens": 20,
        "seed": seed,
        "memory": memory,
        "stop": stop,
    }
    with TemporaryDirectory() as folder:
        (trace,) = traces_in(Path(folder), ["Why?"], checkpoints, FakeEngine(eos=eos), **options)
        states, final_states = trace.hidden_states(), trace.final_hidden_states()
    options["seed"] = trace.settings["seed"]
    live = specrej.generate(
        "Why?", model=FakeEngine(eos=eos), reward=FakeReward(), algorithm="best_of_n", **options
    ).candidates
    assert trace.checkpoints == tuple(sorted(set(checkpoints)))
    assert [ids.tolist() for ids in trace.token_ids] == [candidate.token_ids for candidate in live]
    assert [values.tolist() for values in trace.logprobs] == [
        candidate.logprobs for candidate in live
    ]
    assert trace.lengths.tolist() == [len(candidate.token_ids) for candidate in live]
    assert trace.texts == tuple(candidate.text for candidate in live)
    assert trace.finish_reasons == tuple(candidate.finish_reason for candidate in live)
    assert trace.final_rewards.tolist() == [candidate.reward for candidate in live]
    for index, candidate in enumerate(live):
        for place, point in enumerate(trace.checkpoints):
            ids = candidate.token_ids[:point]
            text = candidate.text if point >= len(candidate.token_ids) else text_of(ids)
            assert trace.rewards[index, place] == by_hash(text)
            assert states[index, place].tolist() == [len(ids), ids[-1]]
        assert final_states[index].tolist() == [len(candidate.token_ids), candidate.token_ids[-1]]


def test_a_trace_says_what_it_is_of(tmp_path: Path) -> None:
    run(
        tmp_path, prompts=["Why?"], settings=Settings(n=3, max_new_tokens=20, seed=3, memory=40_000)
    )
    (trace,) = load(tmp_path)
    assert (trace.prompt_id, trace.messages) == ("0", [{"role": "user", "content": "Why?"}])
    assert (trace.num_prompt_tokens, trace.num_candidates, trace.max_new_tokens) == (5, 3, 20)
    assert trace.memory_bytes == 40_000
    assert (trace.layout, trace.flops, trace.reward_flops_per_token) == (
        FakeEngine.layout,
        FLOPS,
        7.0,
    )
    assert trace.usage["generated_tokens"] == trace.lengths.sum()
    assert trace.usage["total_s"] > 0
    assert trace.settings["seed"] == loaded_of(["Why?"]).seeds(3)["0"]
    assert read_info(tmp_path)["settings"]["seed"] == 3
    assert (trace.settings["reward"], trace.settings["n"]) == ("by_hash", 3)


def test_states_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    class Loud(FakeEngine):
        def hidden_states(self, prompt: int) -> dict[int, NDArray[np.float32]]:
            return {
                index: state * np.float32(-1e6)
                for index, state in super().hidden_states(prompt).items()
            }

    (trace,) = traces_in(tmp_path, ["Why?"], [4], Loud(), n=3, max_new_tokens=20)
    assert np.all(trace.hidden_states() == np.finfo(np.float16).min)


def test_an_engine_without_states_is_recorded_all_the_same(tmp_path: Path) -> None:
    class Silent(FakeEngine):
        has_hidden_states = False

        def hidden_states(self, prompt: int) -> dict[int, NDArray[np.float32]]:
            raise AssertionError("asked for what it does not have")

    (trace,) = traces_in(tmp_path / "silent", ["Why?"], [4], Silent(), n=3, max_new_tokens=20)
    (known,) = traces_in(tmp_path / "known", ["Why?"], [4], FakeEngine(), n=3, max_new_tokens=20)
    assert np.array_equal(trace.rewards, known.rewards)
    with pytest.raises(UsageError, match="has no hidden states"):
        trace.hidden_states()


def test_states_are_asked_for_only_where_one_is_kept() -> None:
    class Counting(FakeEngine):
        num_asked = 0

        def hidden_states(self, prompt: int) -> dict[int, NDArray[np.float32]]:
            self.num_asked += 1
            return super().hidden_states(prompt)

    engine = Counting(eos=0.0)
    trace_of("Why?", [4, 8], engine, n=5, max_new_tokens=20, memory="1MiB")
    assert engine.num_asked == 3


# Failures, kills and resuming


class FailsOn(FakeReward):
    """Cannot read one prompt."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        self._prompt = prompt

    def open(self, messages: Sequence[Any]) -> Any:
        if messages[0]["content"] == self._prompt:
            raise ValueError("too hard")
        return super().open(messages)


def test_a_prompt_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    progress = run(tmp_path, reward=FailsOn("How?"))
    assert [(p.num_done, p.num_tasks, p.prompt_id) for p in progress] == [
        (i + 1, 4, str(i)) for i in range(4)
    ]
    assert [type(p.error).__name__ for p in progress] == [
        "NoneType",
        "RewardError",
        "NoneType",
        "NoneType",
    ]
    assert [trace.prompt_id for trace in load(tmp_path)] == ["0", "2", "3"]
    (failure,) = load_failures(tmp_path)
    assert (failure["prompt_id"], failure["kind"]) == ("1", "RewardError")
    assert "too hard" in failure["message"]
    assert failure["seed"] == loaded_of(PROMPTS).seeds(SETTINGS.seed)["1"]
    assert run(tmp_path, reward=FailsOn("How?"), resume=True) == []


def test_candidates_lost_to_a_device_without_memory_are_a_failure(tmp_path: Path) -> None:
    progress = run(tmp_path, FakeEngine(eos=0.0, fail_at=[7]), prompts=PROMPTS[:2])
    assert [str(p.error) for p in progress] == [
        "candidates were lost (out_of_memory): a trace needs all of them",
        "None",
    ]
    assert [trace.prompt_id for trace in load(tmp_path)] == ["1"]


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_kill_leaves_whole_files_and_resuming_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run(tmp_path / "whole")
    write, num_written = pq.write_table, 0

    def killed(table: pa.Table, file: Any, **options: Any) -> None:
        nonlocal num_written
        num_written += 1
        if num_written == 3 and moment == "before":
            raise SystemExit
        if num_written == 3 and moment == "within":
            file.write(b"PAR1 and so on")
            file.flush()
            raise SystemExit
        write(table, file, **options)
        if num_written == 3:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", killed)
        with pytest.raises(SystemExit):
            run(tmp_path / "killed")
    before = contents(tmp_path / "killed")
    assert [trace.prompt_id for trace in load(tmp_path / "killed")] == ["0", "1"]
    engine = FakeEngine()
    progress = run(tmp_path / "killed", engine, resume=True)
    assert [p.num_done for p in progress] == [3, 4]
    assert engine.num_prefills == 2
    after = contents(tmp_path / "killed")
    assert {name: after[name] for name in before} == before
    for one, other in zip(load(tmp_path / "killed"), load(tmp_path / "whole"), strict=True):
        assert one.texts == other.texts
        assert np.array_equal(one.rewards, other.rewards)
    assert not list((tmp_path / "killed").glob("*.part"))


def test_a_full_disk_is_an_error_that_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, prompts=PROMPTS[:1])
    before = contents(tmp_path)

    def full(table: pa.Table, file: Any, **options: Any) -> None:
        file.write(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UsageError, match=r"cannot write .*00000.parquet: No space left on device"):
        run(tmp_path / "other")
    assert contents(tmp_path / "other") == {}
    assert not list((tmp_path / "other").glob("*.part"))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "other",
    [
        {"settings": Settings(n=6, max_new_tokens=20, seed=4)},
        {"settings": Settings(n=7, max_new_tokens=20, seed=3)},
        {"checkpoints": (4, 9)},
        {"reward": FakeReward(in_thirds)},
        {"prompts": PROMPTS[:2]},
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="holds another run"):
        run(tmp_path, resume=True, **other)
    with pytest.raises(UsageError, match="holds a run of"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_traces_that_an_older_version_recorded_are_gone_on_with_and_read(tmp_path: Path) -> None:
    run(tmp_path)
    whole = list(load(tmp_path))
    for path in (tmp_path / "run.json", *tmp_path.glob("*.parquet")):
        make_older(path)
    (tmp_path / "00002.parquet").unlink()
    assert [progress.num_done for progress in run(tmp_path, resume=True)] == [4]
    for one, other in zip(load(tmp_path), whole, strict=True):
        assert one.settings == other.settings
        assert one.texts == other.texts


def test_traces_of_one_seed_for_all_prompts_are_read_and_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    del info["seeds"]
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert len(list(load(tmp_path))) == len(PROMPTS)
    with pytest.raises(UsageError, match='its seeds was missing, now it is "one for each prompt"'):
        run(tmp_path, resume=True)


def test_traces_of_another_model_are_refused(tmp_path: Path) -> None:
    class Other(FakeEngine):
        def describe(self) -> dict[str, str]:
            return {"engine": "fake", "model": "words"}

    run(tmp_path)
    with pytest.raises(UsageError, match="holds another run"):
        run(tmp_path, Other(), resume=True)


# What is refused


@pytest.mark.parametrize("checkpoints", [(), (0, 4), (-1,)])
def test_checkpoints_that_are_no_lengths_are_refused(
    tmp_path: Path, checkpoints: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="checkpoints must be lengths of at least one token"):
        run(tmp_path / "new", checkpoints=checkpoints)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        list(load(tmp_path))
    run(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    with pytest.raises(UsageError, match="holds no trace yet"):
        list(load(tmp_path))
    info = json.loads((tmp_path / "run.json").read_text()) | {"kind": "bench"}
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(UsageError, match="holds a bench, not traces"):
        list(load(tmp_path))


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"00001.parquet cannot be read as a trace"):
        list(load(tmp_path))
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UsageError, match=r"00001.parquet is a Parquet file, but no trace"):
        list(load(tmp_path))
