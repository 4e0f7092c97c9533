"""Seconds that policies would take on a GPU, on paper: recorded traces and a cost model. The last
line is one JSON object.

    python benchmarks/roofline.py traces                      # an H100, a Llama-3-8B, a few minutes
    python benchmarks/roofline.py traces --reward incremental --policy policy.json
    python benchmarks/roofline.py --validate --output cpu.json    # the model against this CPU
    python benchmarks/roofline.py traces --machine cpu.json       # the trace's own model on it

A replay gives tokens and decisions. Each decoding step of b live candidates then takes

    overhead + max(weights / bandwidth, b * FLOPs / peak) + KV of all of them / bandwidth

Prefill, and the reward's pass at each decision, are one such pass over many tokens. `seconds` are
of one prompt at a time, on all its GPUs together. In `packed`, other prompts' candidates fill the
memory that is free. docs/measuring.md says what is assumed.

Lengths, and how partial rewards foretell final ones, are the trace's. Scales multiply all lengths.
Beyond the recorded n, candidates come again: seconds are then those of n, the regret is not.

--validate measures steps of SmolLM2 and readings of its reward, and fits four numbers to them: a
constant, a row's seconds, those of a row beyond what the cache holds, and those of a token of KV.
It then predicts runs of other sizes. Its machine must be quiet.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

import specrej
from specrej.api import run_one
from specrej.errors import SpecrejError, UsageError
from specrej.evaluation.folder import read_info
from specrej.evaluation.machines import (
    VOCABULARY,
    Cpu,
    cpu_plant,
    h100,
    llama_3_8b,
    measure,
    read_cpu,
    small_model,
    small_reading,
    write_cpu,
)
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.replay import Replayer
from specrej.evaluation.roofline import Bill, Plant, Reading, Work, extended, stretched, work_of
from specrej.evaluation.trace import Trace, load
from specrej.search.calibrated import read_policy
from specrej.settings import Settings

TITLES = (
    f"{'n':>6}  {'method':<26}{'waves':>6}{'seconds':>10}{'packed':>10}{'seconds':>10}"
    f"{'packed':>9}{'FLOPs':>9}{'tokens':>9}{'regret':>8}{'asked':>6}"
)
SEED, GB, GOAL, ORACLE_TOKENS, PAPER_ROWS = 16, 10**9, 16.0, 16, 120
UNSEEN = (
    Settings(algorithm="best_of_n", n=8, max_new_tokens=160, seed=SEED),
    Settings(algorithm="best_of_n", n=48, max_new_tokens=64, seed=SEED),
    Settings(alpha=0.5, n=64, decide="at:16,32,64", max_new_tokens=128, seed=SEED),
    Settings(alpha=0.5, n=48, memory="120MiB", max_new_tokens=96, seed=SEED),
)
"""Runs that a fit predicts."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def gpu_plant(given: argparse.Namespace, memory_gb: float) -> Plant:
    machine = h100(
        memory_gb=memory_gb,
        bandwidth_share=given.bandwidth_share,
        flops_share=given.flops_share,
        overhead=given.overhead,
    )
    is_incremental = given.reward == "incremental"
    reward = Reading(model=llama_3_8b(1), machine=machine, is_incremental=is_incremental)
    judge = None if given.reward == "none" else reward
    return Plant(machine=machine, model=llama_3_8b(VOCABULARY), reward=judge)


class Row(NamedTuple):
    """A method on all prompts."""

    waves: float
    seconds: float
    packed: float
    saves_seconds: float
    saves_packed: float
    saves_flops: float
    saves_tokens: float
    regret: float
    decisions: float


class Taken(NamedTuple):
    """A method on one prompt."""

    bill: Bill
    regret: float
    num_decisions: int


Method = Callable[[Trace], Taken]


def replayed(plant: Plant, policy: ReplayPolicy) -> Method:
    def take(trace: Trace) -> Taken:
        layout = trace.layout._replace(bytes_per_token=plant.kv_bytes)
        run = Replayer(replace(trace, layout=layout)).run(policy)
        bill = plant.bill(trace.num_prompt_tokens, work_of(run.num_tokens, run.decisions))
        return Taken(bill, run.regret / _spread(trace), len(run.decisions))

    return take


def _spread(trace: Trace) -> float:
    """Standard deviation of the rewards; nothing can be lost where there is none."""
    return float(trace.final_rewards.std()) or math.inf


def oracle(plant: Plant) -> Method:
    """Knows the best candidate after some tokens, and asks no reward."""

    def take(trace: Trace) -> Taken:
        lengths = np.minimum(trace.lengths, ORACLE_TOKENS)
        best = trace.final_rewards.argmax()
        lengths[best] = trace.lengths[best]
        return Taken(plant.bill(trace.num_prompt_tokens, Work([lengths], [])), 0.0, 1)

    return take


def methods_of(
    plant: Plant, trace: Trace, n: int, scale: int, given: argparse.Namespace
) -> dict[str, Method]:
    """By name, the baseline first. `trace` is an extended one, for its lengths."""
    at_end, room, limit = plant.at_end, plant.room_bytes, trace.max_new_tokens
    paper = at_end.kv_bytes * (trace.num_prompt_tokens + PAPER_ROWS * (limit - 1))
    checkpoints = [length for length in trace.checkpoints if length < limit]
    at = "at:" + ",".join(map(str, checkpoints))
    policies = {}
    for alpha in given.alphas:
        policies[f"alpha {alpha}, memory full"] = ReplayPolicy(alpha=alpha, n=n, memory=room)
        scheduled = ReplayPolicy(alpha=alpha, decide=at, n=n, memory=room)
        policies[f"alpha {alpha}, at lengths"] = scheduled
    if given.policy is not None:
        calibrated = stretched(given.policy, n, scale).to_policy()
        policies["calibrated"] = ReplayPolicy(policy=calibrated, n=n, memory=room)
    whole = [ReplayPolicy(alpha=0.0, n=n, memory=memory) for memory in (room, min(room, paper))]
    return {
        "Best-of-N": replayed(at_end, whole[0]),
        f"Best-of-N, {PAPER_ROWS} a GPU": replayed(at_end, whole[1]),
        **{name: replayed(plant, policy) for name, policy in policies.items()},
        f"oracle at {ORACLE_TOKENS}": oracle(at_end),
    }


def judge(
    plant: Plant, traces: Sequence[Trace], n: int, scale: int, given: argparse.Namespace
) -> dict[str, Row]:
    """All methods at one n."""
    larger = [extended(trace, n, scale, plant.kv_bytes) for trace in traces]
    longest = max(larger, key=lambda trace: trace.num_prompt_tokens)
    taken = {
        name: [method(trace) for trace in larger]
        for name, method in methods_of(plant, longest, n, scale, given).items()
    }
    baseline = next(iter(taken.values()))
    return {name: row_of(baseline, mine) for name, mine in taken.items()}


def row_of(baseline: Sequence[Taken], mine: Sequence[Taken]) -> Row:
    """Savings are those of sums over prompts."""

    def saves(of: Callable[[Bill], float]) -> float:
        whole, part = (sum(of(one.bill) for one in taken) for taken in (baseline, mine))
        return round(whole / part, 3)

    def mean(of: Callable[[Taken], float], digits: int) -> float:
        return round(sum(map(of, mine)) / len(mine), digits)

    return Row(
        waves=mean(lambda one: one.bill.num_waves, 1),
        seconds=mean(lambda one: one.bill.seconds, 3),
        packed=mean(lambda one: one.bill.packed, 3),
        saves_seconds=saves(lambda bill: bill.seconds),
        saves_packed=saves(lambda bill: bill.packed),
        saves_flops=saves(lambda bill: bill.flops),
        saves_tokens=saves(lambda bill: bill.tokens),
        regret=mean(lambda one: one.regret, 4),
        decisions=mean(lambda one: one.num_decisions, 1),
    )


def print_rows(n: int, rows: dict[str, Row]) -> None:
    for name, row in rows.items():
        saved = "".join(
            f"{value:>8.2f}x"
            for value in (row.saves_seconds, row.saves_packed, row.saves_flops, row.saves_tokens)
        )
        print(
            f"{n:>6}  {name:<26}{row.waves:>6.1f}{row.seconds:>10.2f}{row.packed:>10.2f} {saved}"
            f"{row.regret:>8.3f}{row.decisions:>6.1f}"
        )


def reached(
    by_n: dict[int, dict[str, Row]], against: str, most_regret: float
) -> dict[str, dict[str, int | None]]:
    """The smallest n at which each method saves what the paper reports, and loses at most so much;
    None: at none of them.
    """

    def first(name: str, field: str) -> int | None:
        fitting = (
            n
            for n, rows in by_n.items()
            if rows[name].regret <= most_regret
            and getattr(rows[name], field) / getattr(rows[against], field) >= GOAL
        )
        return next(fitting, None)

    names = [name for name in next(iter(by_n.values())) if not name.startswith("Best-of-N")]
    fields = ("saves_seconds", "saves_packed", "saves_flops")
    return {name: {field: first(name, field) for field in fields} for name in names}


def table(
    plant: Plant, traces: Sequence[Trace], scale: int, given: argparse.Namespace
) -> dict[str, Any]:
    """All n of one memory and scale, printed as they come."""
    limit, room = scale * traces[0].max_new_tokens, plant.room_bytes
    fitting = room // (plant.at_end.kv_bytes * (limit - 1))
    print(
        f"\n{plant.model.name} on {plant.machine.name}, {room / GB:.1f} GB for KV: {fitting} "
        f"answers of {limit} tokens\n{'':64}saves"
    )
    print(TITLES)
    by_n: dict[int, dict[str, Row]] = {}
    for n in given.n:
        try:
            by_n[n] = judge(plant, traces, n, scale, given)
        except UsageError as error:
            raise UsageError(
                f"n = {n}, {limit} tokens: {error}", hint="give a smaller n"
            ) from error
        print_rows(n, by_n[n])
    baselines = [name for name in by_n[given.n[0]] if name.startswith("Best-of-N")]
    first_n = {name: reached(by_n, name, given.most_regret) for name in baselines}
    for baseline, answer in first_n.items():
        print(f"first n that saves {GOAL:.0f}x of {baseline}, at most {given.most_regret} lost:")
        for name, fields in answer.items():
            words = ", ".join(
                f"{key.removeprefix('saves_')} {n or '-'}" for key, n in fields.items()
            )
            print(f"    {name:<26}{words}")
    rows = {n: {name: row._asdict() for name, row in rows.items()} for n, rows in by_n.items()}
    about = {"machine": asdict(plant.machine), "kv_room_bytes": room, "limit": limit}
    return {**about, "fitting": fitting, "rows": rows, "first_n": first_n}


def on_paper(given: argparse.Namespace, traces: Sequence[Trace]) -> dict[str, Any]:
    """A table for each memory and scale."""
    if given.machine == "h100":
        plants = [gpu_plant(given, memory) for memory in given.memories]
    else:
        plants = [cpu_plant(read_cpu(given.machine), traces[0])]
    tables = [table(plant, traces, scale, given) for plant in plants for scale in given.scales]
    return {
        "prompts": len(traces),
        "recorded_n": min(trace.num_candidates for trace in traces),
        "reward": given.reward if given.machine == "h100" else traces[0].settings["reward"],
        "tables": tables,
        "seed": read_info(traces[0].path.parent)["settings"]["seed"],
    }


def validate(given: argparse.Namespace, traces: Sequence[Trace]) -> dict[str, Any]:
    """Predicted by measured seconds of runs that the fit has not seen."""
    engine, reward = specrej.open_engine("smollm2"), specrej.as_reward("relevance")
    model = small_model("smollm2", engine.flops, engine.layout.bytes_per_token)
    cpu = measure(engine, reward, model, say)
    if given.output:
        write_cpu(given.output, cpu)
    judge = small_reading(reward.flops_per_token, cpu.reward_machine, cpu.text_seconds)
    plant = Plant(machine=cpu.machine, model=model, reward=judge)
    runs: list[dict[str, Any]] = []
    for settings in UNSEEN:
        result = run_one(engine, reward, "Write a letter to a friend about spring.", settings)
        num_tokens = [len(candidate.token_ids) for candidate in result.candidates]
        work = work_of(num_tokens, result.decisions)
        bill, usage = plant.bill(result.usage.prompt_tokens, work), result.usage
        name = f"{result.settings['algorithm']} n={settings.n} {settings.decide}"
        runs.append({"run": name, **ratios(bill, usage.to_dict())})
    found: dict[str, Any] = {"runs": runs}
    if traces:
        found["recorded"] = recorded_ratios(cpu, traces)
    print(f"{'predicted / measured':<42}{'decode':>8}{'reward':>8}{'total':>8}{'seconds':>9}")
    for run in [*runs, *([{"run": "the traces", **found["recorded"]}] if traces else [])]:
        print(
            f"{run['run']:<42}{run['decode']:>8.2f}{run['reward']:>8.2f}{run['total']:>8.2f}"
            f"{run['seconds']:>9.1f}"
        )
    worst = max(abs(run["total"] - 1) for run in runs)
    print(f"the farthest total is off by {worst:.0%}; the goal is 20%")
    return {**found, "worst": round(worst, 3), "cpu": cpu.to_dict(), "seed": SEED}


def ratios(bill: Bill, usage: dict[str, Any]) -> dict[str, float]:
    measured = usage["prefill_s"] + usage["decode_s"] + usage["reward_s"]
    return {
        "decode": round(bill.decode / usage["decode_s"], 3),
        "reward": round(bill.reward / usage["reward_s"], 3),
        "total": round(bill.seconds / measured, 3),
        "seconds": round(measured, 2),
    }


def recorded_ratios(cpu: Cpu, traces: Sequence[Trace]) -> dict[str, float]:
    """The medians over prompts, of the runs that recorded them."""
    found = []
    for trace in traces:
        at = "at:" + ",".join(map(str, trace.checkpoints))
        policy = ReplayPolicy(alpha=0.0, decide=at, n=trace.num_candidates)
        run = Replayer(trace).run(policy)
        work = work_of(run.num_tokens, run.decisions)
        bill = cpu_plant(cpu, trace).bill(trace.num_prompt_tokens, work)
        found.append(ratios(bill, dict(trace.usage)))
    return {key: round(float(np.median([one[key] for one in found])), 3) for key in found[0]}


def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Of an option's words with commas, all above 0."""

    def read(words: str) -> list[Any]:
        found = [kind(word) for word in words.split(",")]
        if not all(0 < number < math.inf for number in found):
            raise ValueError(words)
        return found

    read.__name__ = "list of numbers above 0"
    return read


def share(word: str) -> float:
    if not 0 < (found := float(word)) <= 1:
        raise ValueError(word)
    return found


def read_arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("traces", nargs="?", help="a folder of traces")
    add("--machine", default="h100", help="h100 (default), or a file of --validate --output")
    add("--memories", type=numbers(float), default="80", help="GB of the GPU (default: 80)")
    add("--bandwidth-share", type=share, default=0.7, help="of the peak (default: 0.7)")
    add("--flops-share", type=share, default=0.5, help="of the peak (default: 0.5)")
    add("--overhead", type=float, default=0.001, help="seconds of a step (default: 0.001)")
    modes = ["anew", "incremental", "none"]
    add("--reward", choices=modes, default="anew", help="how a model of 8B reads (default: anew)")
    add("--n", type=numbers(int), default="64,120,240,480,960,1920,3840", help="with commas")
    add("--scales", type=numbers(int), default="1,4", help="of lengths (default: 1,4)")
    add("--alphas", type=numbers(share), default="0.5,0.9", help="with commas (default: 0.5,0.9)")
    add("--most-regret", type=float, default=0.2, help="that may be lost for 16x (default: 0.2)")
    add("--policy", help="a calibrated policy's file")
    add("--limit", type=numbers(int), help="only the first so many prompts")
    add("--validate", action="store_true", help="predict runs on this CPU, and run them")
    add("--output", help="with --validate: a file for what was measured")
    return parser.parse_args(), parser


def main() -> None:
    given, parser = read_arguments()
    if not given.validate and given.traces is None:
        parser.error("give a folder of traces, or --validate")
    try:
        given.policy = given.policy and read_policy(given.policy)
        traces = list(load(given.traces)) if given.traces else []
        traces = traces[: given.limit and given.limit[0]]
        figures = validate(given, traces) if given.validate else on_paper(given, traces)
    except SpecrejError as error:
        parser.error(f"{error}{f'; {error.hint}' if error.hint else ''}")
    versions = {"specrej": specrej.__version__, "python": platform.python_version()}
    print(json.dumps({"benchmark": "roofline", **figures, "versions": versions}))


if __name__ == "__main__":
    main()
