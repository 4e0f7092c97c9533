"""KV memory as measured: every storage that torch allocates while the engine runs is followed until
it is freed.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from meter import Meter, storages
from specrej.attention import groups
from specrej.attention.groups import Group
from specrej.attention.layout import KvLayout
from specrej.engines.torch import passes
from specrej.engines.torch.engine import TorchEngine
from specrej.errors import DeviceMemoryError
from specrej.types import SamplingParams
from tiny import VOCABULARY, Answers, decode, make_engine, make_ids, make_model

EOS_IDS = [50, 100, 150]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PREFILL_CHUNK", 64)
    monkeypatch.setattr(groups, "GRANULE", 8)


def beside_kv(engine: TorchEngine, num_rows: int) -> int:
    """Bytes that a prompt holds beside its KV: logits and state of its last position, a token
    and a state a row."""
    hidden_bytes: int = engine.model.config.get_text_config().hidden_size * 4
    return VOCABULARY * 4 + hidden_bytes + num_rows * (8 + hidden_bytes)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
def test_memory_stays_within_the_budget_at_every_moment(name: str, share: float) -> None:
    """A run as Speculative Rejection makes it: whenever the next step would not fit, a third of
    the rows goes."""
    prompt_ids, num_candidates, max_new_tokens = make_ids(150), 12, 45
    engine = make_engine(make_model(name), [] if share == 0.5 else EOS_IDS)
    prompt_bytes = engine.kv_bytes(len(prompt_ids), 0, 0)
    full = engine.kv_bytes(len(prompt_ids), num_candidates, max_new_tokens)
    budget = prompt_bytes + int((full - prompt_bytes) * share)
    sampling = SamplingParams(max_new_tokens=max_new_tokens, top_k=0)
    num_drops, live = 0, set(range(num_candidates))
    with Meter() as meter:
        prompt = engine.open(prompt_ids, sampling, budget)
        assert meter.peak_bytes <= budget
        engine.add(prompt, range(num_candidates))
        while live:
            memory = engine.memory(prompt)
            while memory.next_step > budget:
                engine.drop(prompt, sorted(live)[:: max(len(live) // 3, 1)])
                live -= set(sorted(live)[:: max(len(live) // 3, 1)])
                num_drops += 1
                memory = engine.memory(prompt)
            meter.peak_bytes = 0
            for token in engine.step():
                if token.finish_reason:
                    live.discard(token.candidate)
            # What is promised, planned and reported, each against what was measured.
            assert meter.peak_bytes <= budget
            assert meter.block_bytes() == engine.memory(prompt).in_use
            assert meter.all_bytes() <= budget + beside_kv(engine, num_candidates)
            assert meter.peak_bytes <= engine.memory(prompt).peak <= budget
        assert (num_drops > 0) == (share < 1.0)
        engine.close(prompt)
        assert meter.block_bytes() == 0
        assert meter.all_bytes() == 0


def test_the_meter_sees_what_the_engine_holds() -> None:
    engine = make_engine(make_model("llama"))
    # Two layers, keys and values, two heads of eight numbers of four bytes.
    bytes_per_token = 2 * 2 * 2 * 8 * 4
    with Meter() as meter:
        prompt = engine.open(make_ids(100), SamplingParams(max_new_tokens=9), 2**24)
        assert meter.block_bytes() == 100 * bytes_per_token
        engine.add(prompt, range(5))
        decode(engine, 2)
        assert meter.block_bytes() == (100 + 5 * groups.GRANULE) * bytes_per_token
        assert meter.all_bytes() == meter.block_bytes() + beside_kv(engine, 5)


@pytest.mark.parametrize("dropped", [[0], [9], [3, 4], [0, 2, 4, 6, 8], list(range(9))])
def test_memory_is_free_when_drop_returns(dropped: list[int]) -> None:
    engine = make_engine(make_model("llama"))
    with Meter() as meter:
        prompt = engine.open(make_ids(40), SamplingParams(max_new_tokens=50), 2**24)
        prompt_bytes = meter.block_bytes()
        engine.add(prompt, range(10))
        decode(engine, 12)
        before = meter.block_bytes()
        engine.drop(prompt, dropped)
        after = meter.block_bytes()
        assert after - prompt_bytes == (before - prompt_bytes) * (10 - len(dropped)) // 10
        assert engine.memory(prompt).in_use == after
        engine.drop(prompt, sorted(set(range(10)) - set(dropped)))
        assert meter.block_bytes() == prompt_bytes
        assert engine.memory(prompt)[:2] == (prompt_bytes, prompt_bytes)
        assert engine.step() == []


def test_a_full_block_is_dropped_from_within_the_budget() -> None:
    """Compaction copies one tensor at a time, so it needs less than the next step would have."""
    engine = make_engine(make_model("llama"))
    prompt_ids = make_ids(30)
    budget = engine.kv_bytes(len(prompt_ids), 10, 21)
    with Meter() as meter:
        prompt = engine.open(prompt_ids, SamplingParams(max_new_tokens=50), budget)
        engine.add(prompt, range(10))
        while engine.memory(prompt).next_step <= budget:
            engine.step()
        for index in range(10):
            engine.drop(prompt, [index])
            assert meter.peak_bytes <= budget
            assert meter.peak_bytes <= engine.memory(prompt).peak


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize(
    ("num_candidates", "num_new_tokens"), [(1, 1), (1, 2), (7, 8), (7, 9), (3, 20)]
)
def test_kv_bytes_is_enough_and_all_that_is_taken(
    name: str, num_candidates: int, num_new_tokens: int
) -> None:
    prompt_ids = make_ids(33)
    engine = make_engine(make_model(name))
    budget = engine.kv_bytes(len(prompt_ids), num_candidates, num_new_tokens)
    with Meter() as meter:
        prompt = engine.open(prompt_ids, SamplingParams(max_new_tokens=100), budget)
        engine.add(prompt, range(num_candidates))
        for _ in range(num_new_tokens):
            assert engine.memory(prompt).next_step <= budget
            engine.step()
        assert meter.peak_bytes <= budget
        # One step further does not fit, or little more than nothing is left.
        assert engine.memory(prompt).next_step > budget


def test_many_prompts_keep_to_budgets_of_their_own() -> None:
    engine = make_engine(make_model("gemma3"), EOS_IDS)
    sizes = [20, 70, 45]
    budgets = [engine.kv_bytes(size, 6, 30) for size in sizes]
    with Meter() as meter:
        prompts = []
        for size, budget in zip(sizes, budgets, strict=True):
            prompts.append(
                engine.open(make_ids(size), SamplingParams(max_new_tokens=30, top_k=0), budget)
            )
            engine.add(prompts[-1], range(6))
            decode(engine, 3)
            assert meter.peak_bytes <= sum(budgets)
        decode(engine)
        assert meter.peak_bytes <= sum(budgets)
        for prompt, budget in zip(prompts, budgets, strict=True):
            assert engine.memory(prompt).peak <= budget
            engine.close(prompt)
        assert meter.all_bytes() == 0


class Shortage(TorchDispatchMode):
    """Raises in the n-th operator that makes a tensor of some size, as a device does that is
    full."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = number
        self._error = error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given_storages = {storage._cdata for storage in storages((args, kwargs))}
        if any(
            storage.nbytes() > 400 and storage._cdata not in given_storages
            for storage in storages(out)
        ):
            self.left -= 1
            if self.left == 0:
                raise type(self._error)(*self._error.args)
        return out


@pytest.mark.parametrize(
    ("disturbed_steps", "error"),
    [
        ([1, 3, 9], torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
        (
            [9],
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you "
                "tried"
            ),
        ),
    ],
)
def test_a_step_that_ran_out_of_memory_has_changed_nothing(
    disturbed_steps: list[int], error: Exception
) -> None:
    """Whichever operator fails: at the first growth of the block, at a later one and in between,
    the step can be made again, and its tokens are those of an undisturbed run."""
    sampling = SamplingParams(max_new_tokens=14, top_k=0, repetition_penalty=1.1)

    def run(disturbed_steps: Sequence[int]) -> tuple[Answers, int]:
        engine = make_engine(make_model("llama"))
        first = engine.open(make_ids(30), sampling, 2**22)
        second = engine.open(make_ids(20, seed=1), sampling, 2**22)
        engine.add(first, range(6))
        answers, num_failures = Answers(), 0
        for step in range(16):
            if step == 2:
                engine.add(second, range(6, 12))
            number = 1
            while step in disturbed_steps:
                try:
                    with Shortage(number, error) as shortage:
                        answers.add(engine.step())
                except DeviceMemoryError:
                    number += 1
                    num_failures += 1
                else:
                    assert shortage.left > 0
                    break
            if step not in disturbed_steps:
                answers.add(engine.step())
        return answers, num_failures

    quiet, _ = run([])
    disturbed, num_failures = run(disturbed_steps)
    assert num_failures > 40
    assert disturbed == quiet


def test_candidates_can_be_given_up_after_a_shortage() -> None:
    """What the scheduler does then: drop some of one prompt, go on with the rest of all."""

    def run(*, is_disturbed: bool) -> Answers:
        engine = make_engine(make_model("llama"))
        sampling = SamplingParams(max_new_tokens=20)
        first = engine.open(make_ids(30), sampling, 2**22)
        second = engine.open(make_ids(20, seed=1), sampling, 2**22)
        engine.add(first, range(6))
        engine.add(second, range(6))
        answers = decode(engine, 9)
        if is_disturbed:
            for number in range(1, 10):
                with (
                    pytest.raises(DeviceMemoryError),
                    Shortage(number, torch.OutOfMemoryError("full")),
                ):
                    engine.step()
        engine.drop(second, [0, 3])
        return decode(engine, None, answers)

    assert run(is_disturbed=True) == run(is_disturbed=False)


def test_an_error_that_is_no_shortage_stays_what_it_is() -> None:
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(30), SamplingParams(), 2**22)
    engine.add(prompt, range(2))
    engine.step()
    with (
        pytest.raises(RuntimeError, match="unspecified launch failure"),
        Shortage(1, RuntimeError("unspecified launch failure")),
    ):
        engine.step()


def test_opening_that_ran_out_of_memory_leaves_nothing() -> None:
    engine = make_engine(make_model("llama"))
    prompt_ids = make_ids(100)
    with Meter() as meter:
        for number in (1, 2, 5, 20, 50):
            with pytest.raises(DeviceMemoryError), Shortage(number, torch.OutOfMemoryError("full")):
                engine.open(prompt_ids, SamplingParams(), 2**22)
            assert meter.all_bytes() == 0
    assert engine.step() == []


@settings(max_examples=80, deadline=None, derandomize=True)
@given(num_rows=st.integers(1, 12), data=st.data())
def test_rows_that_leave_take_nothing_along(num_rows: int, data: st.DataObject) -> None:
    """Each row of the block keeps its candidate's numbers, whatever leaves, in whatever order."""
    group = Group([1, 2, 3], 10**9, KvLayout(0, 0, groups.GRANULE), max_slots=50)
    group.prompt_keys, group.prompt_values = [torch.zeros(2, 3, 4)], [torch.zeros(2, 3, 5)]
    group.indices = list(range(100, 100 + num_rows))
    newest = list(group.indices)
    while group.num_rows:
        group.reserve()
        for row, index in enumerate(group.indices):
            group.keys[0][row, :, group.length] = index + group.length / 100
            group.values[0][row, :, group.length] = -index - group.length / 100
        group.length += 1
        slots = torch.arange(group.length) / 100
        for row, index in enumerate(group.indices):
            assert torch.allclose(
                group.keys[0][row, :, : group.length], (index + slots)[None, :, None]
            )
            assert torch.allclose(
                group.values[0][row, :, : group.length], (-index - slots)[None, :, None]
            )
        gone = data.draw(st.sets(st.sampled_from(range(group.num_rows))))
        order = group.remove(sorted(gone))
        newest = [newest[row] for row in order]
        assert newest == group.indices
        if data.draw(st.booleans()):
            group.fit()
            assert group.num_rows == 0 or group.keys[0].shape[0] == group.num_rows
        if group.length > 20:
            break
    assert sorted(group.indices) == sorted(set(group.indices))
