"""How much less compute than Best-of-N at its reward: fixed alphas, calibrated policies and an
oracle, on prompts that nobody was tuned on. The last line is one JSON object.

    python benchmarks/headline.py prompts.jsonl --kind long --output out/long  # resumable
    python benchmarks/headline.py --output out/long        # judges again what is recorded

The kinds are short answers (128 tokens), long ones (512) and very long ones (1,024). The first run
records Best-of-N with SmolLM2 and its rewards at checkpoints, prompt by prompt; what is recorded
already is kept. Everything after that is replay, which takes the decisions of a live run.

Prompts are divided into halves, many times. One half chooses: of each family the policy that costs
least at no more than a target regret there. The other half judges. This for a row of targets: what
unseen prompts lose and save makes a curve, which is read off at a few regrets (log-linear between
its points). So every family is compared at the same regret on prompts that it has not seen. Fewer
than 16 prompts judge what they chose themselves, and "unseen" is false.

Best-of-n with fewer than all recorded candidates is the mean over all choices of n. Policies may
begin with all. FLOPs include prefill, the rejected candidates and the reward. Regret is in standard
deviations of a prompt's rewards (spreads). The oracle knows the best of n candidates after so many
tokens, pays all of them up to there and then that one alone, and asks no reward.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import headline_rules as rules
import specrej
from specrej.calibration.calibrate import calibrate
from specrej.calibration.forecasting import forecasts_of
from specrej.calibration.path import lay_path
from specrej.calibration.replays import Judged, Replays
from specrej.evaluation.prompts import load_prompts
from specrej.evaluation.recording import record
from specrej.evaluation.replay import Replayer
from specrej.evaluation.trace import Trace, load
from specrej.search.calibrated import CalibratedPolicy
from specrej.settings import Settings

SEED = 16
FEW = 16
"""Prompts: with fewer, policies are judged on the prompts that chose them, and the figures say
so."""
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
TARGETS = (-0.1, -0.05, 0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
"""Regrets to choose at, in spreads."""
REGRETS = (0.05, 0.1, 0.2)
"""Regrets on unseen prompts to compare at."""
FAMILIES = ("alpha, memory", "alpha, lengths", "counts", "gaps", "calibrated")
"""See `headline_rules`."""


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


def truncated(trace: Trace, limit: int) -> Trace:
    """The same candidates, ended at a checkpoint: what a run with this limit would have recorded.

    A candidate is the same whatever the limit is, and its reward there is that of its text so far.
    """
    place = trace.checkpoints.index(limit)
    goes_on = trace.lengths > limit
    cut = replace(
        trace,
        checkpoints=trace.checkpoints[:place],
        rewards=trace.rewards[:, :place],
        lengths=np.minimum(trace.lengths, limit),
        final_rewards=np.where(goes_on, trace.rewards[:, place], trace.final_rewards),
        settings={**trace.settings, "max_new_tokens": limit},
    )
    read, of_cut = (Replayer(one).num_recorded_tokens for one in (trace, cut))
    reads = float(trace.usage["reward_tokens"]) * of_cut / read
    return replace(cut, usage={**trace.usage, "reward_tokens": reads})


class Field:
    """All prompts, with what each policy costs and loses on every one of them."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        self.replays = Replays(traces)
        self.limit = traces[0].max_new_tokens
        self.checkpoints = [at for at in traces[0].checkpoints if at < self.limit]
        sizes = [2**power for power in range(3, self.replays.n.bit_length())]
        self.best_of = {n: Replays(traces, n) for n in sizes}
        everybody = CalibratedPolicy(n=self.replays.n)
        self.ahead = {n: -of.judge(everybody).regret for n, of in self.best_of.items()}
        """By n, what all candidates together have above Best-of-n, in spreads, by prompt."""

    def oracle(self, n: int, length: int) -> float:
        """What it saves against Best-of-n who knows the best of n after so many tokens."""
        cost = 0.0
        for trace in self.traces:
            best = trace.final_rewards[:n].argmax()
            lengths = np.minimum(trace.lengths[:n], length)
            lengths[best] = trace.lengths[best]
            if self.replays.unit == "tokens" or trace.flops is None:
                cost += float(lengths.sum())
            else:
                prompt = trace.num_prompt_tokens
                cost += trace.flops.prefill(prompt) + trace.flops.decode(prompt, lengths)
        return float(self.best_of[n].baseline.sum() / cost)


def divisions(num_prompts: int, count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Who chooses, and who judges: halves, or where prompts are few all of them twice."""
    random = np.random.default_rng(SEED)
    if num_prompts < FEW:
        yield np.arange(num_prompts), np.arange(num_prompts)
        return
    for _ in range(count):
        order = random.permutation(num_prompts)
        yield np.sort(order[: num_prompts // 2]), np.sort(order[num_prompts // 2 :])


class Curves:
    """What families of policies save and lose on prompts that did not choose."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.points: dict[tuple[str, int, float], list[tuple[float, float]]] = {}
        """By family, n of Best-of-n, and target: (saves, regret), one a division."""

    def add(
        self, family: str, judged: Sequence[Judged], chooses: NDArray[Any], judges: NDArray[Any]
    ) -> None:
        """One division: for each target, the policy that costs least among those who choose."""
        costs = np.stack([one.cost for one in judged])
        losses = np.stack([one.regret for one in judged])
        of_choosing = costs[:, chooses].sum(axis=1)
        for n, ahead in self.field.ahead.items():
            regrets = losses - ahead
            baseline = self.field.best_of[n].baseline[judges].sum()
            for target in TARGETS:
                fits = regrets[:, chooses].mean(axis=1) <= target
                if not fits.any():
                    continue
                place = np.where(fits, of_choosing, np.inf).argmin()
                saves = baseline / costs[place, judges].sum()
                regret = regrets[place, judges].mean()
                key = (family, n, target)
                self.points.setdefault(key, []).append((float(saves), float(regret)))

    def read(self, family: str, n: int, num_divisions: int) -> list[tuple[float, float]]:
        """Of a family: mean regret on unseen prompts, rising, and what it saves there."""
        curve = []
        for target in TARGETS:
            found = self.points.get((family, n, target), [])
            if len(found) == num_divisions:  # means over the same divisions
                saves, regrets = np.array(found).T
                curve.append((float(regrets.mean()), float(np.exp(np.log(saves).mean()))))
        return sorted(curve)


def savings_at(curve: Sequence[tuple[float, float]], regret: float) -> float | None:
    """Log-linear between its points; None outside."""
    if not curve or not curve[0][0] <= regret <= curve[-1][0]:
        return None
    regrets, saves = np.array(curve).T
    return round(float(np.exp(np.interp(regret, regrets, np.log(saves)))), 2)


def survival(field: Field) -> dict[int, dict[int, float]]:
    """By length and k, the share of prompts whose best candidate is then among the best k."""
    places: dict[int, list[int]] = {length: [] for length in field.checkpoints}
    for trace in field.traces:
        best = trace.final_rewards.argmax()
        for length in field.checkpoints:
            scores = trace.rewards[:, trace.checkpoints.index(length)]
            places[length].append(int((scores > scores[best]).sum()))
    sizes = [2**power for power in range(field.replays.n.bit_length())]
    return {
        length: {k: round(float(np.mean(np.array(found) < k)), 3) for k in sizes}
        for length, found in places.items()
    }


def judge_all(field: Field, count: int) -> dict[str, Any]:
    """All figures of a folder of traces, by n of Best-of-n."""
    curves = Curves(field)
    n, checkpoints = field.replays.n, field.checkpoints
    others = {
        "alpha, memory": rules.by_memory(field.traces, n, checkpoints),
        "alpha, lengths": rules.fixed_alphas(n, checkpoints),
        "counts": rules.counts(n, checkpoints),
        "gaps": rules.gaps(n, checkpoints),
    }
    judged = {name: list(map(field.replays.replay, family)) for name, family in others.items()}
    parts = list(divisions(len(field.traces), count))
    for number, (chooses, judges) in enumerate(parts):
        for name, family in judged.items():
            curves.add(name, family, chooses, judges)
        seen = [field.traces[place] for place in chooses]
        path = lay_path(Replays(seen), forecasts_of(seen, field.checkpoints))
        curves.add("calibrated", list(map(field.replays.judge, path)), chooses, judges)
        say(f"division {number + 1} of {len(parts)}")
    figures: dict[str, Any] = {}
    for n in field.best_of:
        found = {family: curves.read(family, n, len(parts)) for family in FAMILIES}
        saves = {
            family: {str(regret): savings_at(curve, regret) for regret in REGRETS}
            for family, curve in found.items()
        }
        oracle = {at: round(field.oracle(n, at), 2) for at in field.checkpoints}
        best = saves["calibrated"][str(REGRETS[0])]
        figures[str(n)] = {
            "saves": saves,
            "oracle": oracle,
            "share_of_oracle_at_16": best and round(best / oracle[16], 3),
            "curves": {
                family: [(round(lost, 4), round(saved, 3)) for lost, saved in curve]
                for family, curve in found.items()
            },
        }
    return figures


def promises(field: Field, targets: Sequence[float], against: int | None) -> dict[str, Any]:
    """What `specrej calibrate` promises from all prompts."""
    found: dict[str, Any] = {}
    for target in targets:
        made = calibrate(
            field.traces, target=target, confidence=CONFIDENCE, seed=SEED, against=against
        )
        found[str(target)] = (
            {"needed": made.needed, "could_be": made.trials[0].bound}
            if made.chosen is None
            else {"saves": round(1 / made.chosen.cost[1], 3), "regret": made.chosen.regret[1]}
        )
    return found


def splits(field: Field, target: float, count: int, against: int | None) -> dict[str, Any]:
    """How often a promise holds: calibrated on two thirds of the prompts, judged on the others."""
    random, found = np.random.default_rng(SEED), []
    judging = Replays(field.traces, against)
    for number in range(count):
        order = random.permutation(len(field.traces))
        num_judging = len(order) // 3
        made = calibrate(
            [field.traces[place] for place in order[num_judging:]],
            target=target, confidence=CONFIDENCE, seed=number, against=against,
        )  # fmt: skip
        if made.chosen is not None:
            judged, judges = judging.judge(made.chosen.policy), order[:num_judging]
            saves = judging.baseline[judges].sum() / judged.cost[judges].sum()
            found.append((saves, judged.regret[judges].mean()))
    saved, lost = np.array(found).T if found else (np.array([]), np.array([]))
    return {
        "splits": count,
        "promised": len(found),
        "held": int((lost <= target).sum()),
        "saves": round(float(saved.mean()), 2) if found else None,
        "regret": round(float(lost.mean()), 4) if found else None,
    }


def print_table(figures: dict[str, Any]) -> None:
    """In Markdown, as docs/results.md has it."""
    heads = [*(f"{regret:g} below" for regret in REGRETS), "oracle at 16"]
    print(f"| reward of | policy | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(heads))
    for n, row in figures.items():
        for family, saves in row["saves"].items():
            cells = ["–" if one is None else f"{one:.1f}" for one in saves.values()]
            print(f"| Best-of-{n} | {family} | {' | '.join(cells)} | {row['oracle'][16]:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", nargs="?", help="a JSONL file, or a named set")
    parser.add_argument("--kind", choices=KINDS, default="long", help="of answers (default: long)")
    parser.add_argument("--output", type=Path, required=True, help="the folder of traces")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--reward", default="relevance", help="reward (default: relevance)")
    parser.add_argument("--targets", default="0.1,0.3", help="regrets to promise, with commas")
    parser.add_argument("--against", type=int, help="n of the Best-of-n of promises (default: all)")
    parser.add_argument("--divisions", type=int, default=20, help="of prompts into halves")
    parser.add_argument("--splits", type=int, default=0, help="to try promises on (default: none)")
    parser.add_argument("--truncate", type=int, help="to a checkpoint: answers of this limit")
    given = parser.parse_args()
    if given.prompts:
        record_kind(given.prompts, KINDS[given.kind], given.output, given.limit, given.reward)
    traces = list(load(given.output))
    if given.truncate:
        traces = [truncated(trace, given.truncate) for trace in traces]
    field = Field(traces)
    figures = judge_all(field, given.divisions)
    print_table(figures)
    targets = [float(word) for word in given.targets.split(",")]
    about = {
        "prompts": len(traces),
        "n": field.replays.n,
        "limit": field.limit,
        "mean_length": round(float(np.mean([trace.lengths.mean() for trace in traces])), 1),
        "unit": field.replays.unit,
        "reward": traces[0].settings["reward"],
        "divisions": given.divisions,
        "unseen": len(traces) >= FEW,
        "survival": survival(field),
        "promises": promises(field, targets, given.against),
        "splits": {
            str(target): splits(field, target, given.splits, given.against)
            for target in targets
            if given.splits
        },
        "seed": SEED,
        "versions": {"specrej": specrej.__version__, "python": platform.python_version()},
    }
    print(json.dumps({"benchmark": "headline", **about, "best_of": figures}))


if __name__ == "__main__":
    main()
