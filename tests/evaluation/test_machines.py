"""Data sheets against the models themselves, a fit against a machine that is known."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from fakes import FakeEngine, FakeReward
from specrej.engines.base import Token
from specrej.errors import UsageError
from specrej.evaluation.machines import (
    SPILL_ROWS,
    VOCABULARY,
    Cpu,
    TimedStep,
    fit_machine,
    h100,
    llama_3_8b,
    measure,
    read_cpu,
    small_model,
    small_reading,
    write_cpu,
)
from specrej.evaluation.roofline import Machine, Plant, Reading
from specrej.flops import AttentionFlops, ModelFlops, flops_of_config

FLOPS = ModelFlops(linear=2e8, head=5e7, attention=(AttentionFlops(None, 7e4),), chunk=512)
MODEL = small_model("small", FLOPS, 46_080)


def cpu(spill: float, factor: float = 1.0) -> Machine:
    return Machine(
        name="cpu",
        bandwidth=4e9 * factor,
        kv_bandwidth=3e9 * factor,
        flops=4e10 * factor,
        memory_bytes=2**33,
        overhead=0.0,
        is_overlapping=False,
        spill_rows=SPILL_ROWS,
        spill_seconds=spill,
    )


def test_llama_is_what_transformers_makes_of_its_config() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    model, theirs = llama_3_8b(VOCABULARY), flops_of_config(config, 8192)
    assert theirs is not None
    assert model.flops.decode(100, [50]) == theirs.decode(100, [50])
    assert model.resident_bytes == pytest.approx(2 * 8.03e9, rel=1e-3)  # of its model card
    assert model.kv_bytes == 2 * 32 * 1024 * 2


def test_an_h100_holds_writer_and_judge_and_the_papers_120_answers() -> None:
    machine = h100()
    judge = Reading(model=llama_3_8b(1), machine=machine)
    plant = Plant(machine=machine, model=llama_3_8b(VOCABULARY), reward=judge)
    assert 120 < plant.room_bytes / (plant.kv_bytes * 2048) < 160


@given(st.floats(0, 0.01), st.floats(0.2, 5))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_fit_finds_the_machine_that_took_the_steps(spill: float, factor: float) -> None:
    known = cpu(spill, factor)
    sizes = [(1, 50), (4, 200), (16, 800), (16, 3200), (32, 1600), (96, 4800)]
    steps = [
        TimedStep(rows, context, float(MODEL.step_seconds(known, rows, context)))
        for rows, context in sizes
    ]
    found = fit_machine(MODEL, steps, 2**33)
    for rows, context in [(2, 900), (50, 200), (200, 20_000)]:
        assert MODEL.step_seconds(found, rows, context) == pytest.approx(
            MODEL.step_seconds(known, rows, context), rel=1e-3
        )


def test_steps_that_tell_nothing_apart_are_refused() -> None:
    with pytest.raises(UsageError, match="no seconds of their own"):
        fit_machine(MODEL, [TimedStep(rows, 50 * rows, 0.1) for rows in (1, 4, 16, 32, 96)], 2**33)


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    found = Cpu(cpu(0.001), cpu(0.0), 0.01)
    write_cpu(tmp_path / "cpu.json", found)
    assert read_cpu(tmp_path / "cpu.json") == found


@pytest.mark.parametrize("given", ["", "[]", "{}", '{"machine": {"name": 1}}', "[" * 10**5])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "cpu.json").write_text(given)
    with pytest.raises(UsageError, match="holds no measured CPU"):
        read_cpu(tmp_path / "cpu.json")


def test_a_file_of_numbers_that_are_none_is_refused(tmp_path: Path) -> None:
    whole = Cpu(cpu(0.001), cpu(0.0), 0.01).to_dict()
    for value in ("fast", 0, -1.0, None, float("nan")):
        whole["machine"]["flops"] = value
        (tmp_path / "cpu.json").write_text(json.dumps(whole))
        with pytest.raises(UsageError, match="flops"):
            read_cpu(tmp_path / "cpu.json")


def test_files_out_of_reach_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "cpu.json"
    with pytest.raises(UsageError, match="cannot write"):
        write_cpu(missing, Cpu(cpu(0.0), cpu(0.0), 0.0))
    with pytest.raises(UsageError, match="holds no measured CPU"):
        read_cpu(missing)


def test_models_and_rewards_of_unknown_cost_are_refused() -> None:
    with pytest.raises(UsageError, match="does not know"):
        small_model("theirs", None, 1)
    with pytest.raises(UsageError, match="does not say"):
        small_reading(None, cpu(0.0), 0.0)


class TimedEngine(FakeEngine):
    """Its steps take what the cost model says of a machine."""

    def __init__(self, clock: list[float], machine: Machine) -> None:
        super().__init__(eos=0.0)
        self.clock, self.machine = clock, machine

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        (group,) = self.groups.values()
        context = len(group.live) * (len(group.prompt_ids) + group.needed)
        output = super().step(limits)
        self.clock[0] += float(MODEL.step_seconds(self.machine, len(output), context))
        return output


def test_measuring_finds_the_machine_and_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an engine and a reward whose clock is the cost model itself."""
    clock, known = [0.0], cpu(0.002)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engine, said = TimedEngine(clock, known), list[str]()

    def slow(text: str) -> float:
        clock[0] += 0.2 + 0.001 * len(text.encode())  # tokens are bytes
        return 0.0

    reward = FakeReward(slow)
    found = measure(engine, reward, MODEL, said.append)
    for rows, context in [(2, 200), (24, 6000), (64, 9000)]:
        assert MODEL.step_seconds(found.machine, rows, context) == pytest.approx(
            MODEL.step_seconds(known, rows, context), rel=0.02
        )
    assert found.reward_machine.flops == pytest.approx(7.0 / 0.001, rel=0.05)
    assert len(said) == 9
    assert not engine.groups
    reward.close()


def test_a_reward_whose_seconds_do_not_grow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def constant(text: str) -> float:
        clock[0] += 0.2
        return float(len(text))

    with pytest.raises(UsageError, match="'constant' takes"):
        measure(TimedEngine(clock, cpu(0.0)), FakeReward(constant), MODEL, print)
