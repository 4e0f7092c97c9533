"""Engines side by side on one machine, our overhead over a bare vLLM, and both algorithms on vLLM.
One JSON line last.

    python benchmarks/engines.py  # all that is installed: about 30 minutes on two cores
    python benchmarks/engines.py --batches 1,64 --engines torch-fp16,vllm

To have all of them in one run, install vLLM for CPUs and OpenVINO in one environment
(docs/engines.md). Every engine has a process of its own, since vLLM binds the threads of the one it
lives in. They take turns (A B C, A B C, ...), so that a drift of the machine hits all alike; who is
not asked sleeps.

Everyone decodes 64 new tokens after the same 60, top_k 50, temperature 1, prompt inside the clock,
with a log-probability for each token; the best round of each counts. `overhead` alternates our
engine with `LLM.generate` of the same requests, seeds and block size, each on an engine of its own,
in one process. `algorithms` runs what `specrej compare` runs, on vLLM, with the relevance reward,
at one KV budget.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

PROMPT_TOKENS, NEW_TOKENS, SEED = 60, 64, 0
UNLIMITED = 2**30
OPENINGS: dict[str, dict[str, Any]] = {
    "torch-fp16": {"engine": "torch", "weights": "fp16"},
    "torch-fp32": {"engine": "torch", "weights": "fp32"},
    "openvino": {"engine": "openvino"},
    "vllm": {"engine": "vllm", "engine_args": {"max_model_len": 2048}},
}
PROMPTS = (
    "Give three tips for staying healthy.",
    "What is a good name for a bakery, and why?",
    "Explain how a bicycle stays upright.",
    "Write two sentences about the sea.",
)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prompt_ids() -> list[int]:
    return [100 + 613 * place % 40_000 for place in range(PROMPT_TOKENS)]


def decode(engine: Any, batch: int) -> float:
    """Seconds to read a prompt and decode every token of so many candidates."""
    from specrej.types import SamplingParams

    begun = time.perf_counter()
    budget = min(engine.capacity_bytes or UNLIMITED, UNLIMITED)
    prompt = engine.open(
        prompt_ids(), SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=SEED), budget
    )
    engine.add(prompt, range(batch))
    num_tokens = 0
    while num_tokens < batch * NEW_TOKENS:
        num_tokens += len(engine.step())
    seconds = time.perf_counter() - begun
    engine.close(prompt)
    return seconds


def answer(name: str, asked: TextIO, told: TextIO) -> None:
    """Open an engine and tell what it is; then, for each batch that is asked for, the seconds. A
    JSON value a line.
    """
    import specrej

    begun = time.perf_counter()
    engine = specrej.open_engine("smollm2", **OPENINGS[name])
    open_s = time.perf_counter() - begun
    decode(engine, 2)  # what is slow only the first time
    about = {
        "describe": dict(engine.describe()),
        "versions": dict(engine.versions()),
        "open_s": round(open_s, 1),
    }
    print(json.dumps(about), file=told, flush=True)
    for line in asked:
        print(json.dumps(decode(engine, int(line))), file=told, flush=True)


def measure_speeds(names: list[str], batches: list[int], rounds: int) -> dict[str, Any]:
    """What each engine is, and its tokens/s by batch size; None for one that does not open."""
    run = [sys.executable, __file__, "--only"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    found: dict[str, Any] = dict.fromkeys(names)
    with contextlib.ExitStack() as stack:
        processes: dict[str, Any] = {}
        for name in names:
            process: Any = stack.enter_context(subprocess.Popen([*run, name], **pipes))
            if line := process.stdout.readline():
                found[name], processes[name] = json.loads(line), process
            else:
                say(f"left out: {name} does not open")
        for batch in batches:
            seconds: dict[str, list[float]] = {name: [] for name in processes}
            for _ in range(rounds):
                for name, process in processes.items():
                    print(batch, file=process.stdin, flush=True)
                    seconds[name].append(json.loads(process.stdout.readline()))
            for name, took in seconds.items():
                speed = round(batch * NEW_TOKENS / min(took), 1)
                found[name].setdefault("tokens_per_s", {})[str(batch)] = speed
                told = ", ".join(f"{one:.2f}" for one in took)
                say(f"batch of {batch}: {name} {speed} tokens/s, all rounds: {told} s")
    return found


def measure_overhead(batch: int, rounds: int) -> dict[str, Any]:
    """Our engine on vLLM against a bare `LLM.generate` of the same requests."""
    import specrej
    from specrej.engines.streams import seeds
    from specrej.engines.vllm_process import quiet

    engine = specrej.open_engine("smollm2", **OPENINGS["vllm"])
    with quiet():
        from vllm import LLM, SamplingParams

        from specrej.hub.defaults import locate

        bare = LLM(
            model=str(locate("smollm2")),
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_model_len=2048,
            max_num_seqs=1024,
            max_num_batched_tokens=65_536,
            kv_cache_memory_bytes=2**31,
            use_tqdm_on_load=False,
        )
    asked = [
        SamplingParams(
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            top_k=50,
            seed=seed,
            temperature=1.0,
            logprobs=0,
            detokenize=False,
        )
        for seed in seeds(SEED, range(batch))
    ]

    def generate() -> float:
        begun = time.perf_counter()
        bare.generate([{"prompt_token_ids": prompt_ids()} for _ in asked], asked, use_tqdm=False)
        return time.perf_counter() - begun

    contenders: dict[str, Callable[[], float]] = {
        "specrej": lambda: decode(engine, batch),
        "vllm_generate": generate,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            took = run()
            if number:  # the first round warms up
                seconds[name].append(took)
                say(f"overhead, {name}: {took:.2f} s")
    ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {
        "batch": batch,
        "rounds": rounds,
        "median_s": medians,
        "median_ratio": round(statistics.median(ratios), 4),
    }


def measure_algorithms() -> dict[str, Any]:
    """Both algorithms on vLLM in the same KV cache: sums over prompts, and the mean reward."""
    import specrej

    engine = specrej.open_engine("smollm2", **OPENINGS["vllm"])
    totals: dict[str, dict[str, float]] = {}
    for prompt in PROMPTS:
        results = specrej.compare(prompt, model=engine, max_new_tokens=128, seed=SEED)
        for name, result in results.items():
            sums = totals.setdefault(
                name, dict.fromkeys(("n", "tokens", "seconds", "reward", "preemptions"), 0.0)
            )
            usage = result.usage
            sums["n"] += len(result.candidates) / len(PROMPTS)
            sums["tokens"] += usage.generated_tokens
            sums["seconds"] += usage.total_s
            sums["reward"] += (result.reward or 0.0) / len(PROMPTS)
            sums["preemptions"] += usage.num_preemptions
            say(
                f"{name}: {len(result.candidates)} candidates, {usage.generated_tokens} tokens, "
                f"{usage.total_s:.1f} s"
            )
    return {
        name: {key: round(value, 3) for key, value in sums.items()} for name, sums in totals.items()
    }


def in_a_process(name: str) -> Any:
    """What this program prints of one measurement; None where it fails."""
    run = [sys.executable, __file__, "--only", name]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        say(f"left out: {name} (exit code {done.returncode})")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="1,16,64,256", help="batch sizes, with commas")
    parser.add_argument("--engines", default=",".join(OPENINGS), help="engines, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each batch size")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        told = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # engines print there, too
        if given.only == "overhead":
            print(json.dumps(measure_overhead(64, rounds=5)), file=told)
        elif given.only == "algorithms":
            print(json.dumps(measure_algorithms()), file=told)
        else:
            answer(given.only, sys.stdin, told)
        return
    names = given.engines.split(",")
    batches = [int(batch) for batch in given.batches.split(",")]
    engines = measure_speeds(names, batches, given.rounds)
    has_vllm = "vllm" in names
    overhead = in_a_process("overhead") if has_vllm else None
    algorithms = in_a_process("algorithms") if has_vllm else None
    about = {
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "seed": SEED,
        "cores": os.cpu_count(),
    }
    figures = {"engines": engines, "overhead": overhead, "algorithms": algorithms, **about}
    print(json.dumps({"benchmark": "engines", **figures, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
