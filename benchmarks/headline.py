"""How much less compute than Best-of-N, at what regret: fixed alphas, calibrated policies and an
oracle, on prompts that nobody was tuned on. The last line is one JSON object.

    python benchmarks/headline.py prompts.jsonl --kind long --output out/long  # resumable
    python benchmarks/headline.py --output out/long        # judges again what is recorded

The kinds are short answers (128 tokens), long ones (512) and very long ones (1,024). The first run
records Best-of-N with SmolLM2 and its rewards at checkpoints, prompt by prompt; what is recorded
already is kept. Everything after that is replay, which takes the decisions of a live run.

Prompts are divided into halves, many times. One half chooses: the fixed alpha and the policy of the
calibrated path that cost least at no more than the target regret there, and the policy that
`specrej calibrate` certifies. The other half judges. Figures are means over divisions of the means
over unseen prompts. FLOPs include prefill, the rejected candidates and the reward. Regret is in
standard deviations of a prompt's rewards (spreads). The oracle knows the best candidate after so
many tokens, pays all of them up to there and then that one alone, and asks no reward.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import specrej
from specrej.calibration.calibrate import calibrate
from specrej.calibration.path import lay_path
from specrej.calibration.replays import ROOMY, Judged, Replays
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.prompts import load_prompts
from specrej.evaluation.recording import record
from specrej.evaluation.trace import Trace, load
from specrej.settings import Settings

SEED = 16
CONFIDENCE = 0.95


class Kind(NamedTuple):
    """What is recorded of a kind of answers."""

    limit: int
    n: int
    checkpoints: tuple[int, ...]
    memory: str


KINDS = {
    "short": Kind(128, 64, (8, 16, 32, 64), "4GiB"),
    "long": Kind(512, 64, (8, 16, 32, 64, 128, 256), "6GiB"),
    "very-long": Kind(1024, 128, (8, 16, 32, 64, 128, 256, 512), "12GiB"),
}
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def record_kind(prompts: str, kind: Kind, output: Path, limit: int | None, reward: str) -> None:
    """Best-of-N of every prompt that the folder does not hold yet."""
    engine, judge = specrej.open_engine("smollm2"), specrej.as_reward(reward)
    settings = Settings(n=kind.n, memory=kind.memory, max_new_tokens=kind.limit, seed=SEED)
    loaded = load_prompts(prompts, limit)
    steps = record(
        loaded,
        engine,
        judge,
        output,
        settings=settings,
        checkpoints=kind.checkpoints,
        resume=(output / "run.json").exists(),
    )
    for step in steps:
        say(f"{step.num_done} of {step.num_tasks} prompts{f': {step.error}' * bool(step.error)}")


class Field:
    """All prompts, with what each policy costs and loses on every one of them."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        self.replays = Replays(traces)
        self.limit = traces[0].max_new_tokens
        self.checkpoints = [at for at in traces[0].checkpoints if at < self.limit]

    def oracle(self, length: int) -> Judged:
        """Who knows the best candidate after so many tokens."""
        costs = []
        for trace in self.traces:
            lengths = np.minimum(trace.lengths, length)
            lengths[trace.final_rewards.argmax()] = trace.lengths[trace.final_rewards.argmax()]
            if self.replays.unit == "tokens" or trace.flops is None:
                costs.append(float(lengths.sum()))
            else:
                prompt = trace.num_prompt_tokens
                costs.append(trace.flops.prefill(prompt) + trace.flops.decode(prompt, lengths))
        return Judged(np.array(costs), np.zeros(len(costs)))


def fixed_policies(field: Field) -> Iterator[tuple[str, ReplayPolicy]]:
    """Fixed alphas at fixed lengths: all that somebody would try by hand."""
    n, checkpoints = field.replays.n, field.checkpoints
    choices = {tuple(checkpoints[at::by]) for at in range(len(checkpoints)) for by in (1, 2)}
    for lengths in sorted(choices):
        decide = "at:" + ",".join(map(str, lengths))
        for alpha in ALPHAS:
            policy = ReplayPolicy(alpha=alpha, decide=decide, n=n, memory=ROOMY)
            yield f"alpha {alpha} {decide}", policy


def cheapest(judged: Sequence[Judged], among: NDArray[np.intp], target: float) -> int | None:
    """The place of the one that costs least with a mean regret of at most the target."""
    fitting = [
        (one.cost[among].sum(), place)
        for place, one in enumerate(judged)
        if one.regret[among].mean() <= target
    ]
    return min(fitting)[1] if fitting else None


def divisions(num_prompts: int, count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Halves: who chooses, and who judges."""
    random = np.random.default_rng(SEED)
    for _ in range(count):
        order = random.permutation(num_prompts)
        yield np.sort(order[: num_prompts // 2]), np.sort(order[num_prompts // 2 :])


def compare(field: Field, target: float, count: int) -> dict[str, Any]:
    """What each way of choosing a policy saves and loses on the half that it has not seen."""
    fixed = [field.replays.replay(policy) for _, policy in fixed_policies(field)]
    found: dict[str, list[tuple[float, float]]] = {"fixed alpha": [], "calibrated": []}
    for chooses, judges in divisions(len(field.traces), count):
        mine = Replays([field.traces[place] for place in chooses])
        path = lay_path(mine, field.checkpoints)
        on_path = [mine.judge(policy) for policy in path]
        everyone = np.arange(len(chooses))
        ways = {
            "fixed alpha": (fixed, cheapest(fixed, chooses, target)),
            "calibrated": (
                [field.replays.judge(policy) for policy in path],
                cheapest(on_path, everyone, target),
            ),
        }
        for name, (judged, place) in ways.items():
            if place is not None:
                saved = field.replays.baseline[judges].sum() / judged[place].cost[judges].sum()
                found[name].append((float(saved), float(judged[place].regret[judges].mean())))
    return {
        name: {
            "saves": round(float(np.mean([saved for saved, _ in figures])), 3),
            "regret": round(float(np.mean([lost for _, lost in figures])), 4),
            "held": round(float(np.mean([lost <= target for _, lost in figures])), 3),
            "divisions": len(figures),
        }
        for name, figures in found.items()
        if figures
    }


def judge_all(field: Field, targets: Sequence[float], count: int) -> dict[str, Any]:
    """All figures of a folder of traces."""
    whole = field.replays.baseline.sum()
    sizes = [2**power for power in range(3, field.replays.n.bit_length())]
    figures: dict[str, Any] = {"best_of_n": {}, "oracle": {}, "unseen": {}, "certified": {}}
    for n in sizes:
        judged = field.replays.replay(ReplayPolicy(alpha=0.0, n=n, memory=ROOMY))
        saved, lost = whole / judged.cost.sum(), judged.regret.mean()
        figures["best_of_n"][n] = {"saves": round(saved, 3), "regret": round(lost, 4)}
    for length in field.checkpoints:
        saved = whole / field.oracle(length).cost.sum()
        figures["oracle"][length] = {"saves": round(saved, 3), "regret": 0.0}
    for target in targets:
        figures["unseen"][target] = compare(field, target, count)
        made = calibrate(field.traces, target=target, confidence=CONFIDENCE, seed=SEED)
        figures["certified"][target] = (
            {"needed": 2 * made.needed}
            if made.chosen is None
            else {"saves": round(1 / made.chosen.cost[1], 3), "regret": made.chosen.regret[1]}
        )
    return figures


def print_table(figures: dict[str, Any]) -> None:
    print(f"{'':<34}{'saves':>8}{'regret':>9}{'held':>7}")
    for kind in ("best_of_n", "oracle"):
        for name, row in figures[kind].items():
            print(f"{f'{kind} {name}':<34}{row['saves']:>7.2f}x{row['regret']:>9.3f}")
    for target, ways in figures["unseen"].items():
        for name, row in ways.items():
            words = f"{name}, target {target}"
            print(f"{words:<34}{row['saves']:>7.2f}x{row['regret']:>9.3f}{row['held']:>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", nargs="?", help="a JSONL file, or a named set")
    parser.add_argument("--kind", choices=KINDS, default="long", help="of answers (default: long)")
    parser.add_argument("--output", type=Path, required=True, help="the folder of traces")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--reward", default="relevance", help="reward (default: relevance)")
    parser.add_argument("--targets", default="0.05,0.1,0.2", help="regrets, with commas")
    parser.add_argument("--divisions", type=int, default=50, help="of prompts into halves")
    given = parser.parse_args()
    if given.prompts:
        record_kind(given.prompts, KINDS[given.kind], given.output, given.limit, given.reward)
    traces = list(load(given.output))
    field = Field(traces)
    figures = judge_all(field, [float(word) for word in given.targets.split(",")], given.divisions)
    print_table(figures)
    about = {
        "prompts": len(traces),
        "n": field.replays.n,
        "limit": field.limit,
        "mean_length": round(float(np.mean([trace.lengths.mean() for trace in traces])), 1),
        "unit": field.replays.unit,
        "reward": traces[0].settings["reward"],
        "seed": SEED,
        "versions": {"specrej": specrej.__version__, "python": platform.python_version()},
    }
    print(json.dumps({"benchmark": "headline", **about, **figures}))


if __name__ == "__main__":
    main()
