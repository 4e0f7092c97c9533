"""How long `specrej generate` takes from the start of its process until it could decode, beside
what `import torch` takes.

    python benchmarks/opening.py                 # a minute on a quiet machine

Four kinds of process take turns: one that imports torch and ends; one that opens the default model
and reward with a cache in which nothing is remembered of them (cold); one that does so again
(warm); and one that opens nothing, since a server that runs answers (`generate --server`), up to
its first request. The cache is one of its own, with the default models of the user's. Files are in
the system's memory from the first round on, which does not count. Ratios are taken round by round,
of wall-clock seconds and of the CPU's seconds, which other processes change less. Every figure is
the median over rounds. One JSON line last.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from specrej.hub.defaults import cache_dir
from specrej.threads import settle_threads

OPENS = """
import specrej.cli
from specrej.opening import Opening
engine, reward = Opening().open()
"""
CODE = {
    "import torch": "import torch",
    "cold": OPENS,
    "warm": OPENS,
    "server": "import specrej.cli, specrej.server.asking, httpx",
}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def took(code: str, cache: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a process."""
    environment = os.environ | {"SPECREJ_CACHE": str(cache)}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # Ends at once: freeing all that is open is no part of opening it.
    subprocess.run(
        [sys.executable, "-c", f"{code}\nimport os; os._exit(0)"], env=environment, check=True
    )
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def measure(rounds: int, cache: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each round but the first, by kind of process."""
    measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in CODE}
    for number in range(rounds + 1):
        shutil.rmtree(cache / "openings", ignore_errors=True)
        for kind, code in CODE.items():
            seconds = took(code, cache)
            say(f"round {number}, {kind}: {seconds[0]:.2f} s, of a CPU {seconds[1]:.2f} s")
            if number:
                measured[kind].append(seconds)
    return measured


def figures_of(measured: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Medians, and ratios to importing torch in the same round."""
    figures: dict[str, Any] = {}
    for place, unit in enumerate(("wall", "cpu")):
        base = [seconds[place] for seconds in measured["import torch"]]
        for kind, rows in measured.items():
            mine = [row[place] for row in rows]
            ratios = [one / torch for one, torch in zip(mine, base, strict=True)]
            figures[f"{kind} {unit}"] = {
                "median_s": round(statistics.median(mine), 3),
                "to_import_torch": round(statistics.median(ratios), 3),
            }
    return figures


def main() -> None:
    settle_threads()  # for the processes too, as the command has it
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory)
        (cache / "models").symlink_to((cache_dir() / "models").resolve())
        figures = figures_of(measure(given.rounds, cache))
    print(f"{'from the start of the process':<32}{'wall':>8}{'×':>7}{'CPU':>9}{'×':>7}")
    for kind in CODE:
        wall, cpu = (figures[f"{kind} {unit}"] for unit in ("wall", "cpu"))
        print(
            f"{kind:<32}{wall['median_s']:>6.2f} s{wall['to_import_torch']:>7.2f}"
            f"{cpu['median_s']:>7.2f} s{cpu['to_import_torch']:>7.2f}"
        )
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(
        json.dumps(
            {
                "benchmark": "opening",
                **figures,
                "rounds": given.rounds,
                "versions": versions,
                **machine,
            }
        )
    )


if __name__ == "__main__":
    main()
