"""What busy processes cost decoding, by how the threads that compute together wait.

    python benchmarks/contention.py              # some minutes; nothing else should run

Sixteen candidates decode 48 tokens of SmolLM2 alone, beside one and beside two processes that do
nothing but spin. Three processes take turns at it. In the first the threads of OpenMP wait as they
do by themselves: they spin. In the second they spin briefly, then sleep, as `specrej` asks them to.
In the third they sleep at once. How they wait is read once, when torch is loaded. All keep the
model open, and whose turn it is not waits for a line. Every figure is the median over rounds;
ratios are taken round by round, and relative to threads that spin on a quiet machine. One JSON line
last.
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
from collections.abc import Iterator
from typing import Any

from specrej import threads

PROMPT_TOKENS, SEED = 60, 0
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
WAITING = {"spinning": {}, "specrej": threads.WAITING, "sleeping": {"OMP_WAIT_POLICY": "passive"}}
SPIN = """import os
parent = os.getppid()
while os.getppid() == parent:  # who is killed leaves nothing behind
    for _ in range(1_000_000):
        pass
"""
BUSY = [sys.executable, "-c", SPIN]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def decode(engine: Any, candidates: int, tokens: int) -> float:
    """Seconds to read a prompt and decode so many tokens of so many candidates."""
    from specrej.types import SamplingParams

    begun = time.perf_counter()
    ids = [100 + 613 * place % 40_000 for place in range(PROMPT_TOKENS)]
    prompt = engine.open(
        ids, SamplingParams(max_new_tokens=tokens, ignore_eos=True, seed=SEED), 2**30
    )
    engine.add(prompt, range(candidates))
    num_tokens = 0
    while num_tokens < candidates * tokens:
        num_tokens += len(engine.step())
    seconds = time.perf_counter() - begun
    engine.close(prompt)
    return seconds


def decode_when_asked(candidates: int, tokens: int) -> None:
    """Print what computes, and then the seconds of one decoding for each line that comes."""
    with contextlib.redirect_stdout(sys.stderr):
        import specrej

        engine = specrej.open_engine("smollm2")
        decode(engine, candidates, 4)  # what is slow only the first time
        import torch

        about = {"versions": dict(engine.versions()), "threads": torch.get_num_threads()}
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        print(decode(engine, candidates, tokens), flush=True)


@contextlib.contextmanager
def decoder(waiting: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that decodes when it is asked, whose threads wait in this way."""
    environment = {
        name: value for name, value in os.environ.items() if name not in VARIABLES
    } | WAITING[waiting]
    command = [sys.executable, __file__, "--asked", *options]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def answer(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process that decodes has ended (exit code {process.wait()})")
    return json.loads(line)


def ask(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(answer(process))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes of which each wants a core."""
    processes = [subprocess.Popen(BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(
    processes: dict[str, "subprocess.Popen[str]"], neighbours: list[int], rounds: int
) -> dict[str, Any]:
    """Seconds of each round, by how threads wait and how many processes are busy beside them."""
    seconds: dict[str, Any] = {
        waiting: {str(count): [] for count in neighbours} for waiting in processes
    }
    for number in range(rounds):
        for count in neighbours:
            with busy(count):
                # Who comes first changes from round to round.
                for waiting in sorted(processes, reverse=bool(number % 2)):
                    took = ask(processes[waiting])
                    seconds[waiting][str(count)].append(took)
                    say(
                        f"round {number + 1}, beside {count} busy processes, {waiting}: {took:.2f} "
                        "s"
                    )
    return seconds


def figures_of(seconds: dict[str, Any]) -> dict[str, Any]:
    """Medians, and ratios to threads that spin on a quiet machine, taken in the same round."""
    alone = seconds["spinning"]["0"]
    medians, ratios = (
        {
            waiting: {
                count: round(statistics.median(of(took)), 3) for count, took in by_count.items()
            }
            for waiting, by_count in seconds.items()
        }
        for of in (
            list,
            lambda took: [ours / theirs for ours, theirs in zip(took, alone, strict=True)],
        )
    )
    return {"median_s": medians, "to_spinning_alone": ratios}


def print_table(figures: dict[str, Any]) -> None:
    print(
        f"{'busy processes beside it':<26}"
        + "".join(f"{waiting:>12}{'×':>7}" for waiting in WAITING)
    )
    for count in figures["median_s"]["spinning"]:
        cells = (
            f"{figures['median_s'][waiting][count]:>10.2f} "
            f"s{figures['to_spinning_alone'][waiting][count]:>7.2f}"
            for waiting in WAITING
        )
        print(f"{count:<26}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds; in each everyone decodes beside everything"
    )
    parser.add_argument("--neighbours", type=int, default=2, help="most busy processes")
    parser.add_argument("--candidates", type=int, default=16, help="candidates that decode")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each")
    parser.add_argument("--asked", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.asked:
        decode_when_asked(given.candidates, given.tokens)
        return
    options = ["--candidates", str(given.candidates), "--tokens", str(given.tokens)]
    with contextlib.ExitStack() as stack:
        processes = {
            waiting: stack.enter_context(decoder(waiting, *options)) for waiting in WAITING
        }
        about, *_ = (answer(process) for process in processes.values())
        seconds = measure(processes, list(range(given.neighbours + 1)), given.rounds)
    figures = figures_of(seconds)
    print_table(figures)
    asked = {
        "rounds": given.rounds,
        "candidates": given.candidates,
        "tokens": given.tokens,
        "seed": SEED,
    }
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "contention", **figures, **asked, **about, **machine}))


if __name__ == "__main__":
    main()
