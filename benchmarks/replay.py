"""Speed of the replay: a grid of policies on synthetic traces. The last line is one JSON object.

    python benchmarks/replay.py  # 1,000 policies, 100 prompts, 64 candidates; under a minute

Traces are random numbers in the shape of real ones: lengths up to 128 tokens, a third of them cut
off there, partial rewards that approach the final one, the KV layout of SmolLM2. Half of the
policies decide when their memory is full. One process, reading traces and writing the summary left
out. `ms_per_replay` is of its CPU time.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

from specrej.attention.layout import KvLayout
from specrej.evaluation.policy_grid import ReplayPolicy, grid
from specrej.evaluation.replay import Replayer
from specrej.evaluation.trace import Trace
from specrej.flops import AttentionFlops, ModelFlops
from specrej.version import __version__

CHECKPOINTS, LENGTH, SEED = (8, 16, 32, 64, 96), 128, 0
LAYOUT = KvLayout(bytes_per_token=46_080, largest_tensor_bytes=768, granule=64)
FLOPS = ModelFlops(linear=2.1e8, head=5.7e7, attention=(AttentionFlops(None, 69_120.0),), chunk=512)


def make_trace(number: int, num_candidates: int) -> Trace:
    generator = np.random.default_rng([SEED, number])
    lengths = np.minimum(generator.geometric(1 / 110, num_candidates), LENGTH)
    finals = generator.normal(size=num_candidates)
    noise = generator.normal(size=(num_candidates, len(CHECKPOINTS)))
    partial = finals[:, None] + noise * np.linspace(2, 0.3, len(CHECKPOINTS))
    num_prompt_tokens = int(generator.integers(30, 200))
    return Trace(
        prompt_id=str(number),
        messages=[{"role": "user", "content": "?"}],
        num_prompt_tokens=num_prompt_tokens,
        checkpoints=CHECKPOINTS,
        memory_bytes=LAYOUT.peak_bytes(num_prompt_tokens, num_candidates, LENGTH - 1),
        layout=LAYOUT,
        flops=FLOPS,
        reward_flops_per_token=4.2e7,
        settings={"max_new_tokens": LENGTH, "reward": "synthetic"},
        usage={"reward_tokens": 10_000},
        lengths=lengths,
        rewards=np.where(lengths[:, None] <= CHECKPOINTS, finals[:, None], partial),
        final_rewards=finals,
        finish_reasons=("eos",) * num_candidates,
        texts=("",) * num_candidates,
        token_ids=[],
        logprobs=[],
        path=Path(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=64)
    given = parser.parse_args()
    traces = [make_trace(number, given.candidates) for number in range(given.prompts)]
    choices = grid(traces)
    budgets = sorted({str(policy.memory) for policy in choices})
    extra = [
        ReplayPolicy(alpha=part / 400, decide="budget", n=given.candidates, memory=memory)
        for part in range(1, 400)
        for memory in budgets
    ]
    policies = [*choices, *extra][: given.policies]
    begun, cpu_begun = time.perf_counter(), time.process_time()
    num_decisions = num_rewards = 0
    for trace in traces:
        replayer = Replayer(trace)
        for policy in policies:
            decisions = replayer.run(policy).decisions
            num_decisions += len(decisions)
            num_rewards += sum(len(decision.scored) for decision in decisions)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    num_runs = len(policies) * len(traces)
    print(
        f"{num_runs} replays in {seconds:.1f} s, {num_decisions / num_runs:.1f} decisions each",
        file=sys.stderr,
    )
    figures = {
        "policies": len(policies),
        "prompts": len(traces),
        "candidates": given.candidates,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "ms_per_replay": round(cpu_seconds / num_runs * 1000, 3),
        "decisions_per_replay": round(num_decisions / num_runs, 2),
        "rewards_per_replay": round(num_rewards / num_runs, 1),
        "seed": SEED,
        "cores": os.cpu_count(),
        "versions": {
            "specrej": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
