"""Traces with another reward: what comes out is what a live run with that reward records."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fakes import FakeEngine, FakeReward, FakeSession, by_hash, in_thirds
from older import make_older
from specrej.errors import UsageError
from specrej.evaluation.folder import read_info
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.recording import RecordedPrompt, record
from specrej.evaluation.relabelling import relabel
from specrej.evaluation.trace import METADATA, load, load_failures
from specrej.rewards import as_reward
from specrej.rewards.classifier import ClassifierReward
from specrej.settings import Settings
from specrej.types import Candidate, Detokenizer, Message, Piece, Prompt
from tiny import CHAT_TEMPLATE, make_config, make_tokenizer
from traces import loaded_of

PROMPTS = ["Why?", "How?", "When?", "Who?"]
CHECKPOINTS = (4, 8)
SETTINGS = Settings(n=6, max_new_tokens=20, seed=3)


def recorded(
    folder: Path,
    reward: Any = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    loaded: Loaded | None = None,
    settings: Settings = SETTINGS,
    checkpoints: Sequence[int] = CHECKPOINTS,
    eos: float = 0.1,
) -> Path:
    steps = record(
        loaded or loaded_of(prompts),
        FakeEngine(eos=eos),
        reward or FakeReward(),
        folder,
        settings=settings,
        checkpoints=checkpoints,
    )
    assert list(steps)
    return folder


def relabelled(
    source: Path, reward: Any, folder: Path, *, resume: bool = False
) -> list[RecordedPrompt]:
    return list(relabel(source, reward, FakeEngine().detokenizer, folder, resume=resume))


def tables(folder: Path) -> dict[str, tuple[pa.Table, dict[str, Any]]]:
    """Columns of each trace, and what it says of itself but for what a clock has measured."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[METADATA])
        about["usage"] = {
            name: value for name, value in about["usage"].items() if not name.endswith("_s")
        }
        found[path.name] = (table.replace_schema_metadata(None), about)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Session(FakeSession):
    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        super().score(candidates)
        return [by_hash(repr(candidate)) for candidate in candidates]


class SeesAll(FakeReward):
    """Goes by all that a candidate is: tokens, log-probabilities, rewards so far, how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "sees_all"

    def open(self, messages: Sequence[Message]) -> FakeSession:
        self.sessions.append(Session(by_hash))
        return self.sessions[-1]


# What comes out


@given(
    st.sets(st.integers(1, 24), min_size=1, max_size=5),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([None, "4KiB", "1MiB"]),
    st.sampled_from([(), ("ab",), ("c", "<eos>")]),
    st.sampled_from([1, 5, 11]),
    st.sampled_from([0.0, 1.0]),
)
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
def test_a_relabelled_trace_is_that_of_a_live_run(
    checkpoints: set[int],
    seed: int,
    eos: float,
    memory: str | None,
    stop: tuple[str, ...],
    n: int,
    temperature: float,
) -> None:
    settings = Settings(
        n=n, max_new_tokens=20, seed=seed, memory=memory, stop=stop, temperature=temperature
    )
    how: dict[str, Any] = {
        "prompts": ["Why?"],
        "settings": settings,
        "checkpoints": sorted(checkpoints),
        "eos": eos,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        source, live_reward, reward = folder / "source", SeesAll(), SeesAll()
        live = tables(recorded(folder / "live", live_reward, **how))
        recorded(source, FakeReward(by_hash), **how)
        before = contents(source)
        [step] = relabelled(source, reward, folder / "new")
        assert step.error is None
        assert tables(folder / "new") == live
        # Asked for the same candidates at the same moments, in one session.
        assert [one.scored for one in reward.sessions] == [
            one.scored for one in live_reward.sessions
        ]
        assert all(session.is_closed for session in reward.sessions)
        relabelled(source, FakeReward(by_hash), folder / "same")
        assert tables(folder / "same") == tables(source)
        assert contents(source) == before


@pytest.mark.parametrize(
    "spec", ["logprob", "logprob:sum", "ensemble:logprob+logprob:sum?scale=z&combine=worst"]
)
@pytest.mark.parametrize("memory", ["4KiB", "1MiB"])
def test_rewards_by_name_are_those_of_a_live_run(tmp_path: Path, spec: str, memory: str) -> None:
    """Also where a score depends on who else is scored at the first decision."""
    settings = Settings(n=6, max_new_tokens=20, seed=3, memory=memory)
    live = recorded(tmp_path / "live", as_reward(spec), settings=settings)
    recorded(tmp_path / "source", settings=settings)
    relabelled(tmp_path / "source", as_reward(spec), tmp_path / "new")
    assert tables(tmp_path / "new") == tables(live)


def test_a_reward_model_that_keeps_kv_scores_as_in_a_live_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = make_config("llama", num_labels=1)
    auto: Any = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config).eval()
    model.config.pad_token_id = 0
    reward = ClassifierReward((model, make_tokenizer(CHAT_TEMPLATE)))
    live = tables(recorded(tmp_path / "live", reward, prompts=PROMPTS[:2]))
    recorded(tmp_path / "source", prompts=PROMPTS[:2])
    relabelled(tmp_path / "source", reward, tmp_path / "new")
    new = tables(tmp_path / "new")
    assert new == live
    assert {about["usage"]["reward_reuse"] for _, about in new.values()} == {"answers"}


def test_traces_that_an_older_version_recorded_are_relabelled(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source")
    relabelled(source, FakeReward(in_thirds), tmp_path / "new")
    for path in (source / "run.json", *source.glob("*.parquet")):
        make_older(path)
    relabelled(source, FakeReward(in_thirds), tmp_path / "later")
    for one, other in zip(load(tmp_path / "later"), load(tmp_path / "new"), strict=True):
        assert one.rewards.tolist() == other.rewards.tolist()
        assert one.settings == other.settings
    assert relabelled(source, FakeReward(in_thirds), tmp_path / "later", resume=True) == []


def of_prompt(prompt: Prompt) -> Loaded:
    task = Task(id="a", turns=(prompt,), category=None, line=1)
    return Loaded(source="-", tasks=(task,), broken=(), sha256="a")


@pytest.mark.parametrize(
    "prompt",
    [
        "Why?",
        [{"role": "user", "content": "Why?"}],
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}],
    ],
)
def test_a_reward_is_shown_the_conversation_whatever_the_prompt_is(
    tmp_path: Path, prompt: Prompt
) -> None:
    class Listening(FakeReward):
        heard: list[Sequence[Message]]

        def open(self, messages: Sequence[Message]) -> Any:
            self.heard = [*getattr(self, "heard", []), messages]
            return super().open(messages)

    is_begun = not isinstance(prompt, str) and len(prompt) > 1
    settings = Settings(n=6, max_new_tokens=20, seed=3, continue_final_message=is_begun)
    live, later = Listening(), Listening()
    source = recorded(tmp_path / "source", live, loaded=of_prompt(prompt), settings=settings)
    relabelled(source, later, tmp_path / "new")
    assert live.heard == later.heard == [[{"role": "user", "content": "Why?"}]]
    assert tables(tmp_path / "new") == tables(source)


def test_the_run_says_what_it_was_recorded_with(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source")
    relabelled(source, FakeReward(in_thirds), tmp_path / "new")
    old, new = read_info(source), read_info(tmp_path / "new")
    assert new["kind"] == "trace"
    assert new["settings"] == {**old["settings"], "reward": "in_thirds"}
    assert new["relabelled"] == {"reward": "by_hash", "created": old["created"]}
    assert "relabelled" not in old
    for name in ("prompts", "methods", "engine", "versions"):
        assert new[name] == old[name]


# Failures and resuming


class FailsOn(FakeReward):
    """Cannot read one prompt."""

    def __init__(self, prompt: str, rate: Callable[[str], float] = by_hash) -> None:
        super().__init__(rate)
        self._prompt = prompt

    def open(self, messages: Sequence[Message]) -> Any:
        if messages[0]["content"] == self._prompt:
            raise ValueError("too hard")
        return super().open(messages)


def test_prompts_that_failed_or_fail_now_are_failures(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source", FailsOn("How?"))
    steps = relabelled(source, FailsOn("When?", in_thirds), tmp_path / "new")
    assert [(step.num_done, step.num_tasks, step.prompt_id) for step in steps] == [
        (1, 3, "0"),
        (2, 3, "2"),
        (3, 3, "3"),
    ]
    assert [trace.prompt_id for trace in load(tmp_path / "new")] == ["0", "3"]
    failures = load_failures(tmp_path / "new")
    assert [(row["prompt_id"], row["kind"]) for row in failures] == [
        ("1", "RewardError"),
        ("2", "RewardError"),
    ]
    again = relabelled(source, FailsOn("When?", in_thirds), tmp_path / "new", resume=True)
    assert again == []
    assert load_failures(tmp_path / "new") == failures


def test_a_filter_that_rejects_is_a_failure_as_in_a_live_run(tmp_path: Path) -> None:
    spec = "ensemble:logprob?filter=regex:^a"
    source = recorded(tmp_path / "source", prompts=PROMPTS[:1])
    live = recorded(tmp_path / "live", as_reward(spec), prompts=PROMPTS[:1])
    [step] = relabelled(source, as_reward(spec), tmp_path / "new")
    assert step.error is not None
    assert load_failures(tmp_path / "new") == load_failures(live)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    class Shouting:
        def add(self, token_id: int) -> Piece:
            return Piece("A")

    def detokenizer(prompt: Prompt) -> Detokenizer:
        return Shouting()

    source = recorded(tmp_path / "source", prompts=PROMPTS[:1])
    [step] = relabel(source, FakeReward(), detokenizer, tmp_path / "new")
    assert "the tokenizer of 'bytes' does not give the text" in str(step.error)
    assert not list((tmp_path / "new").glob("*.parquet"))


def test_a_run_that_was_stopped_goes_on_also_with_traces_that_came_since(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source")
    relabelled(source, FakeReward(in_thirds), tmp_path / "whole")
    held_back = source / "00003.parquet"
    held_back.rename(tmp_path / "held_back")
    steps = relabel(source, FakeReward(in_thirds), FakeEngine().detokenizer, tmp_path / "new")
    next(steps)
    steps.close()
    before = contents(tmp_path / "new")
    (tmp_path / "held_back").rename(held_back)
    reward = FakeReward(in_thirds)
    later = relabelled(source, reward, tmp_path / "new", resume=True)
    assert [step.num_done for step in later] == [2, 3, 4]
    assert len(reward.sessions) == 3
    assert tables(tmp_path / "new") == tables(tmp_path / "whole")
    after = contents(tmp_path / "new")
    assert {name: after[name] for name in before} == before


def test_folders_are_never_mixed(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source")
    before = contents(source)
    for resume in (False, True):
        with pytest.raises(UsageError, match="holds a"):
            relabelled(source, FakeReward(in_thirds), source, resume=resume)
        with pytest.raises(UsageError, match="holds a"):
            relabelled(source, FakeReward(), source, resume=resume)
    assert contents(source) == before
    relabelled(source, FakeReward(in_thirds), tmp_path / "new")
    with pytest.raises(UsageError, match="reward was"):
        relabelled(source, FakeReward(), tmp_path / "new", resume=True)
    with pytest.raises(UsageError, match="holds no run"):
        relabelled(tmp_path, FakeReward(), tmp_path / "other")
