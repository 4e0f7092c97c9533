"""What a budget of tokens buys when it is spent in waves where they help most, against the same n
for every prompt: replayed from recorded traces. The last line is one JSON object.

    python benchmarks/budget.py out/traces                  # of `specrej trace`
    python benchmarks/budget.py out/traces --limit 128      # answers cut at a checkpoint
    python benchmarks/budget.py out/traces --reward logprob
    python benchmarks/budget.py out/traces --offset 5       # rewards that no scale has in common

Every prompt begins with one wave. Then come rounds: each gives a wave to the prompts of the highest
worth, as many as half of what is left surely pays. Candidates come in a random order, many times.
`uniform` is the exact mean over all orders. `saves` is the share of the tokens of a uniform n that
a rule needs less for the same mean reward; in spreads, rewards are divided by the standard
deviation of their prompt. Rules:

    room        that of `specrej batch --budget-tokens`: see `specrej.batch.allotting`
    normal      expected improvement if rewards of a prompt were normal (Pandora's rule)
    shrunk      the same, with each variance drawn to the mean variance by 4 observations
    tokens      who has got fewest tokens: what differing lengths alone give
    oracle      expected improvement under the recorded candidates themselves, which nobody knows

Intervals are of 95%, over resampled prompts.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import specrej
from specrej.batch.allotting import Allotted, most_worth, worth
from specrej.calibration.replays import expected_best
from specrej.evaluation.trace import Trace, load

SEED = 16
SIZES = (8, 12, 16, 24, 32)
Floats = NDArray[np.float64]


class Drawn(NamedTuple):
    """Candidates of all prompts, in the order in which they would come."""

    rewards: Floats
    """`[prompts, candidates]`."""
    lengths: Floats


class Seen(NamedTuple):
    """What a rule knows of each prompt, `[prompts]`, but for the oracle, which looks at `all`."""

    counts: NDArray[np.int64]
    best: Floats
    mean: Floats
    variance: Floats
    tokens: Floats
    wave: int
    all: Drawn


Rule = Callable[[Seen], Sequence[float]]


def rewards_of(trace: Trace, limit: int, reward: str) -> tuple[Floats, Floats]:
    """Rewards and lengths of a prompt's candidates, of answers of at most so many tokens."""
    lengths = np.minimum(trace.lengths, limit).astype(float)
    if reward == "logprob":
        return np.array([values[:limit].mean() for values in trace.logprobs]), lengths
    if limit >= trace.max_new_tokens:
        return trace.final_rewards, lengths
    return trace.rewards[:, trace.checkpoints.index(limit)], lengths


def room(seen: Seen) -> list[float]:
    return [
        worth(Allotted(int(count), int(tokens), best), seen.best.max(), seen.wave)
        for count, tokens, best in zip(seen.counts, seen.tokens, seen.best, strict=True)
    ]


def normal(seen: Seen, observations: float = 0.0) -> list[float]:
    weight = seen.counts - 1
    variance = observations * seen.variance.mean() + weight * seen.variance
    spread = np.sqrt(variance / (observations + weight)) + 1e-9
    above = (seen.best - seen.mean) / spread
    unit = NormalDist()
    gains = [s * (unit.pdf(z) - z * unit.cdf(-z)) for s, z in zip(spread, above, strict=True)]
    return list(np.array(gains) * seen.counts / seen.tokens)


def oracle(seen: Seen) -> list[float]:
    gains = np.maximum(seen.all.rewards - seen.best[:, None], 0).mean(1)
    return list(gains * seen.counts / seen.tokens)


RULES: dict[str, Rule] = {
    "room": room,
    "normal": normal,
    "shrunk": lambda seen: normal(seen, 4.0),
    "tokens": lambda seen: list(1 / seen.tokens),
    "oracle": oracle,
}


def look(drawn: Drawn, counts: NDArray[np.int64], wave: int) -> Seen:
    """What is known when each prompt has so many candidates."""
    num_all = drawn.rewards.shape[1]
    there = np.arange(num_all) < counts[:, None]
    mean = np.where(there, drawn.rewards, 0).sum(1) / counts
    squares = np.where(there, (drawn.rewards - mean[:, None]) ** 2, 0).sum(1)
    best = np.where(there, drawn.rewards, -np.inf).max(1)
    tokens = np.where(there, drawn.lengths, 0).sum(1)
    return Seen(counts, best, mean, squares / np.maximum(counts - 1, 1), tokens, wave, drawn)


def spend(drawn: Drawn, rule: Rule, budget: float, wave: int, limit: int) -> Seen:
    """Spend a budget of tokens; what there is then. It is never exceeded."""
    num_prompts, num_all = drawn.rewards.shape
    seen = look(drawn, np.full(num_prompts, wave), wave)
    while (num_waves := int(budget - seen.tokens.sum()) // (wave * limit)) > 0:
        worths = [
            value if count + wave <= num_all else 0.0
            for value, count in zip(rule(seen), seen.counts, strict=True)
        ]
        chosen = most_worth(worths, math.ceil(num_waves / 2))
        if not chosen:
            break
        counts = seen.counts.copy()
        counts[chosen] += wave
        seen = look(drawn, counts, wave)
    return seen


class Curve(NamedTuple):
    """Mean rewards by tokens spent, both rising: `raw`, and in spreads."""

    tokens: Floats
    raw: Floats
    spreads: Floats


def uniform(pool: Drawn, spreads: Floats) -> Curve:
    """The same n for every prompt, n from 1: exact, over all orders of the candidates."""
    num_all = pool.rewards.shape[1]
    best = [
        np.array([expected_best(rewards, n) for rewards in pool.rewards])
        for n in range(1, num_all + 1)
    ]
    tokens = pool.lengths.mean(1).sum() * np.arange(1, num_all + 1)
    return Curve(
        tokens,
        np.array([each.mean() for each in best]),
        np.array([(each / spreads).mean() for each in best]),
    )


def curve(
    pool: Drawn, rule: Rule, wave: int, limit: int, num_orders: int, random: np.random.Generator
) -> Curve:
    """What budgets buy by a rule, in the mean over orders."""
    spreads = pool.rewards.std(1)
    per_candidate = pool.lengths.mean(1).sum()
    points = []
    for _ in range(num_orders):
        order = random.permuted(
            np.tile(np.arange(pool.rewards.shape[1]), (len(spreads), 1)), axis=1
        )
        drawn = Drawn(*(np.take_along_axis(values, order, 1) for values in pool))
        for n in np.geomspace(wave, 1.3 * max(SIZES), 14):
            seen = spend(drawn, rule, n * per_candidate, wave, limit)
            points.append((seen.tokens.sum(), seen.best.mean(), (seen.best / spreads).mean()))
    means = np.array(points).reshape(num_orders, -1, 3).mean(0)
    return Curve(*np.maximum.accumulate(means).T)


def saves(ours: Curve, even: Curve, n: int, unit: str) -> float | None:
    """The share of n's tokens that a rule needs less for n's reward; None where its first wave
    has more, or all its budgets less.
    """
    reward, rewards = getattr(even, unit)[n - 1], getattr(ours, unit)
    if not rewards[0] <= reward <= rewards[-1]:
        return None
    return float(1 - np.interp(reward, rewards, ours.tokens) / even.tokens[n - 1])


def judge(
    pool: Drawn, rule: Rule, wave: int, limit: int, orders: int, random: np.random.Generator
) -> dict[str, dict[int, float | None]]:
    """What a rule saves, by unit and n."""
    spread = pool.rewards.std(1)
    ours, even = curve(pool, rule, wave, limit, orders, random), uniform(pool, spread)
    return {unit: {n: saves(ours, even, n, unit) for n in SIZES} for unit in ("raw", "spreads")}


def intervals(
    pool: Drawn, wave: int, limit: int, resamples: int, random: np.random.Generator
) -> dict[str, dict[int, list[float]]]:
    """Of what `room` saves."""
    found = []
    for _ in range(resamples):
        which = random.integers(0, len(pool.rewards), len(pool.rewards))
        again = Drawn(pool.rewards[which], pool.lengths[which])
        found.append(judge(again, room, wave, limit, 10, random))
    return {
        unit: {
            n: [round(float(at), 3) for at in np.percentile(values, (2.5, 97.5))]
            for n in SIZES
            if (values := [saved for one in found if (saved := one[unit][n]) is not None])
        }
        for unit in ("raw", "spreads")
    }


def print_row(name: str, figures: dict[int, Any]) -> None:
    cells = (
        "-"
        if (value := figures.get(n)) is None
        else f"{value:+.1%}"
        if isinstance(value, float)
        else "{:+.0%} to {:+.0%}".format(*value)
        for n in SIZES
    )
    print(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, help="a folder of traces")
    parser.add_argument("--limit", type=int, help="tokens of an answer: one of the checkpoints")
    parser.add_argument("--wave", type=int, default=4, help="candidates of a wave (default: 4)")
    parser.add_argument("--reward", choices=("recorded", "logprob"), default="recorded")
    parser.add_argument(
        "--offset", type=float, default=0.0, help="standard deviation of what is added to prompts"
    )
    parser.add_argument("--orders", type=int, default=40, help="of the candidates (default: 40)")
    parser.add_argument("--resamples", type=int, default=40, help="for intervals (default: 40)")
    given = parser.parse_args()
    traces = list(load(given.traces))
    limit = given.limit or traces[0].max_new_tokens
    random = np.random.default_rng(SEED)
    pairs = [rewards_of(trace, limit, given.reward) for trace in traces]
    offsets = given.offset * random.standard_normal((len(traces), 1))
    pool = Drawn(
        np.array([rewards for rewards, _ in pairs]) + offsets, np.array([own for _, own in pairs])
    )
    print(f"{'saves, at the reward of':<24}" + "".join(f"{f'n={n}':>16}" for n in SIZES))
    figures: dict[str, Any] = {}
    for name, rule in RULES.items():
        figures[name] = judge(pool, rule, given.wave, limit, given.orders, random)
        for unit, row in figures[name].items():
            print_row(f"{name}, {unit}", row)
        sys.stdout.flush()
    around = intervals(pool, given.wave, limit, given.resamples, random)
    for unit, row in around.items():
        print_row(f"room, {unit}, 95%", row)
    rounded = {
        name: {
            unit: {n: None if value is None else round(value, 3) for n, value in row.items()}
            for unit, row in units.items()
        }
        for name, units in figures.items()
    }
    about = {
        "prompts": len(traces),
        "candidates": pool.rewards.shape[1],
        "limit": limit,
        "mean_length": round(float(pool.lengths.mean()), 1),
        "reward": traces[0].settings["reward"] if given.reward == "recorded" else given.reward,
        "offset": given.offset,
        "wave": given.wave,
        "orders": given.orders,
        "seed": SEED,
        "versions": {"specrej": specrej.__version__, "python": platform.python_version()},
    }
    print(json.dumps({"benchmark": "budget", **about, "saves": rounded, "room_95": around}))


if __name__ == "__main__":
    main()
