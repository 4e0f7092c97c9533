"""The efficiency figure of arXiv 2410.20290 again, on one engine: what Speculative Rejection saves
at equal reward.

    python benchmarks/paper.py prompts.jsonl --output out/paper  # two hours on one core, resumable

Runs Best-of-N and Speculative Rejection on the first 20 prompts with SmolLM2, once with the
relevance reward and once with the generator's own likelihood, in the memory that carries 8
full-length candidates. Writes one bench folder a reward and its page, prints a table for each, and
one JSON line last. Rows that are there already are not run again.
"""

import argparse
import json
from pathlib import Path

import specrej
from specrej.cli.tables import print_bench
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.folder import read_bench
from specrej.evaluation.metrics import summarize
from specrej.evaluation.prompts import Loaded, load_prompts
from specrej.evaluation.report import write_report
from specrej.rewards import as_reward
from specrej.settings import Settings

REWARDS = ("relevance", "logprob")
METHODS = (
    "best_of_n:8",
    "best_of_n:24",
    "best_of_n:64",
    "speculative_rejection:0.2",
    "speculative_rejection:0.5",
    "speculative_rejection:0.8",
)
BASELINE = "best_of_n:8"
"""What fits in memory at once: the part that Best-of-120 has in the paper."""
SETTINGS = Settings(max_new_tokens=128, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", help="a JSONL file, or a named set such as alpaca_eval")
    parser.add_argument("--output", type=Path, required=True, help="folder for one bench a reward")
    parser.add_argument("--limit", type=int, default=20, help="prompts (default: 20)")
    parser.add_argument("--rewards", nargs="+", default=REWARDS, choices=REWARDS)
    given = parser.parse_args()
    loaded = load_prompts(given.prompts, given.limit)
    figures = {reward: measure(loaded, reward, given.output / reward) for reward in given.rewards}
    print(json.dumps({"benchmark": "paper", "num_prompts": len(loaded.tasks), "rewards": figures}))


def measure(loaded: Loaded, reward: str, directory: Path) -> dict[str, object]:
    """Run what is left to run; the figures of the JSON line."""
    engine = specrej.open_engine("smollm2")
    methods = parse_methods(METHODS, SETTINGS)
    rows = run_bench(
        loaded, methods, engine, as_reward(reward), directory, settings=SETTINGS, resume=True
    )
    for number, row in enumerate(rows, 1):
        reached = [round(turn["reward"], 3) for turn in row["turns"]]
        print(
            f"{reward} {number}: {row['prompt_id']} {row['method']} {reached} {row['error'] or ''}",
            flush=True,
        )
    info, done = read_bench(directory)
    summary = summarize(done, BASELINE)
    print_bench(summary)
    print(write_report(directory, baseline=BASELINE))
    return {
        "summary": summary,
        "seed": SETTINGS.seed,
        "engine": info["engine"],
        "versions": info["versions"],
    }


if __name__ == "__main__":
    main()
