"""Prompts per second with many in flight, one at a time, and through transformers. The last line is
one JSON object.

    python benchmarks/throughput.py prompts.jsonl  # 16 prompts, about fifteen minutes on two cores

Three ways through the same prompts, with the same reward, in turns over the prompts so that a drift
of the machine hits all alike:

- `in_flight`: Speculative Rejection, many prompts in one memory (`generate_batch`);
- `one_at_a_time`: the same, prompt after prompt in the same memory: the same results, candidate by
  candidate;
- `transformers`: Best-of-N as most people write it: `model.generate(num_return_sequences=N)`, then
  the reward.

What Speculative Rejection saves shrinks its batch at every decision, and a small batch wastes a
matrix library: the weights are read once a step, for 2 rows as for 64. Many prompts in flight fill
the batch up again.

Equal reward: what Best-of-k gives in the mean, for every k up to N, follows from the rewards of the
N samples; the smallest k that reaches the mean reward of Speculative Rejection is run and timed as
well.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
import transformers

import specrej
from specrej.api import RunRequest, run_many, run_one
from specrej.engines.torch.engine import TorchEngine
from specrej.errors import SpecrejError
from specrej.evaluation.prompts import load_prompts
from specrej.hub.defaults import locate
from specrej.hub.quiet import quiet_transformers
from specrej.memory import format_bytes, parse_bytes
from specrej.messages import as_messages
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.search.pool import Pool
from specrej.settings import Settings
from specrej.types import Candidate, Prompt, Result


class Took(NamedTuple):
    """One way through all prompts."""

    seconds: float
    tokens: int
    rewards: list[float]
    """The best one's, a prompt."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def in_flight(
    engine: TorchEngine, reward: Reward, prompts: Sequence[Prompt], settings: Settings, pool: Pool
) -> tuple[Took, list[Result]]:
    begun = time.perf_counter()
    outcomes = dict(
        run_many(engine, reward, [RunRequest(prompt, settings) for prompt in prompts], pool=pool)
    )
    return took(time.perf_counter() - begun, [outcomes[number] for number in range(len(prompts))])


def one_at_a_time(
    engine: TorchEngine, reward: Reward, prompts: Sequence[Prompt], settings: Settings
) -> tuple[Took, list[Result]]:
    begun = time.perf_counter()
    results = [run_one(engine, reward, prompt, settings) for prompt in prompts]
    return took(time.perf_counter() - begun, results)


def took(seconds: float, outcomes: Sequence[Result | SpecrejError]) -> tuple[Took, list[Result]]:
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    if len(results) < len(outcomes):
        raise next(outcome for outcome in outcomes if isinstance(outcome, SpecrejError))
    tokens = sum(result.usage.generated_tokens for result in results)
    return Took(seconds, tokens, [result.reward or 0.0 for result in results]), results


def transformers_loop(
    model: Any,
    engine: TorchEngine,
    reward: Reward,
    prompts: Sequence[Prompt],
    settings: Settings,
    n: int,
) -> tuple[Took, list[list[float]]]:
    """Best-of-n over `generate`, and the rewards of all samples of each prompt."""
    torch.manual_seed(settings.seed)
    rewards, tokens, begun = [], 0, time.perf_counter()
    for prompt in prompts:
        ids = torch.tensor([engine.encode(prompt)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            num_return_sequences=n,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=model.config.eos_token_id,
        )
        candidates = []
        for index, row in enumerate(out[:, ids.shape[1] :].tolist()):
            end = (
                row.index(model.config.eos_token_id) + 1
                if model.config.eos_token_id in row
                else len(row)
            )
            candidates.append(Candidate(index, text=engine.decode(row[:end])))
            tokens += end
        session = reward.open(as_messages(prompt))
        rewards.append(list(session.score(candidates)))
        session.close()
    return Took(time.perf_counter() - begun, tokens, [max(each) for each in rewards]), rewards


def best_of(k: int, rewards: Sequence[float]) -> float:
    """The mean reward of the best of k, over all choices of k of these samples."""
    ordered, ways = sorted(rewards), math.comb(len(rewards), k)
    return sum(reward * math.comb(place, k - 1) for place, reward in enumerate(ordered)) / ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", help="a JSONL file, or a named set such as alpaca_eval")
    parser.add_argument("--limit", type=int, default=16, help="prompts (default: 16)")
    parser.add_argument("--n", type=int, default=16, help="candidates a prompt (default: 16)")
    parser.add_argument(
        "--memory", default="128MiB", help="KV of one prompt, and of all together (default: 128MiB)"
    )
    parser.add_argument("--decide", default="every:16", help="when to decide (default: every:16)")
    given = parser.parse_args()
    settings = Settings(
        n=given.n, decide=given.decide, max_new_tokens=128, memory=given.memory, seed=1
    )
    prompts = [task.turns[0] for task in load_prompts(given.prompts, given.limit).tasks]
    engine, reward = specrej.open_engine("smollm2"), as_reward("relevance")
    assert isinstance(engine, TorchEngine)
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(locate("smollm2")), dtype=torch.float32
        )
    run_one(engine, reward, "Hello", Settings(n=4, max_new_tokens=8))
    print(json.dumps(measure(engine, model, reward, prompts, settings)))


def measure(
    engine: TorchEngine, model: Any, reward: Reward, prompts: Sequence[Prompt], settings: Settings
) -> dict[str, object]:
    """All ways, and what the JSON line says of them."""
    n = settings.num_candidates or 0
    pool = Pool(parse_bytes(settings.memory or 0))
    together, results = in_flight(engine, reward, prompts, settings, pool)
    report(
        "in flight", together, f", {pool.mean_share:.2f} of {format_bytes(pool.total_bytes)} in use"
    )
    alone, results_alone = one_at_a_time(engine, reward, prompts, settings)
    report("one at a time", alone)
    plain, samples = transformers_loop(model, engine, reward, prompts, settings, n)
    report(f"transformers, best of {n}", plain)
    curve = {k: fmean(best_of(k, each) for each in samples) for k in range(1, n + 1)}
    equal = next((k for k in curve if curve[k] >= fmean(together.rewards)), None)
    even = plain
    if equal is not None and equal < n:
        even, _ = transformers_loop(model, engine, reward, prompts, settings, equal)
        report(f"transformers, best of {equal}", even)
    pairs = list(zip(results, results_alone, strict=True))
    return {
        "benchmark": "throughput",
        "ratio_vs_one_at_a_time": round(alone.seconds / together.seconds, 3),
        "ratio_vs_transformers": round(even.seconds / together.seconds, 3),
        "ratio_vs_transformers_same_n": round(plain.seconds / together.seconds, 3),
        "budget_in_use": round(pool.mean_share, 3),
        "n": n,
        "n_at_equal_reward": equal,
        "mean_reward": {
            "in_flight": round(fmean(together.rewards), 4),
            "one_at_a_time": round(fmean(alone.rewards), 4),
            "transformers_same_n": round(fmean(plain.rewards), 4),
            "transformers_at_equal_reward": round(fmean(even.rewards), 4),
        },
        "same_answer": sum(one.best.token_ids == other.best.token_ids for one, other in pairs),
        "same_reward": sum(one.reward == other.reward for one, other in pairs),
        "seconds": {
            "in_flight": round(together.seconds, 2),
            "one_at_a_time": round(alone.seconds, 2),
            "transformers_same_n": round(plain.seconds, 2),
            "transformers_at_equal_reward": round(even.seconds, 2),
        },
        "tokens": {
            "in_flight": together.tokens,
            "one_at_a_time": alone.tokens,
            "transformers_same_n": plain.tokens,
        },
        "num_prompts": len(prompts),
        "settings": settings.to_dict(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": results[0].versions,
    }


def report(name: str, way: Took, more: str = "") -> None:
    say(
        f"{name}: {way.seconds:.1f} s, {len(way.rewards) / way.seconds:.3f} prompts/s, "
        f"{way.tokens:,} tokens, "
        f"{way.tokens / way.seconds:.1f} tokens/s, mean reward {fmean(way.rewards):.3f}{more}"
    )


if __name__ == "__main__":
    main()
