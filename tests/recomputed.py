"""Every figure of `specrej reproduce` again, from the files of a run, by numpy and nothing of ours.

expected = FIGURES["reward"](Files(directory, "best_of_n:2"))
expected["mean reward", "best_of_n:2"]          # value, low, high
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[tuple[str, str], tuple[float | None, float | None, float | None]]


class Files:
    """The rows of a run, failed ones included; each judgement the last of its kind."""

    def __init__(self, directory: Path, baseline: str) -> None:
        self.baseline = baseline
        self.rows = lines(directory / "results.jsonl")
        self.judged = {
            name: lines(directory / f"{name}.jsonl")
            if (directory / f"{name}.jsonl").exists()
            else []
            for name in ("grades", "judgements", "preferences", "scores")
        }
        self.methods = list(dict.fromkeys(row["method"] for row in self.rows))
        known = {(row["prompt_id"], row["method"]): row for row in self.rows}
        ids = list(dict.fromkeys(row["prompt_id"] for row in self.rows))
        self.ids = [i for i in ids if known[i, baseline]["error"] is None]
        self.known = known

    def rewards(self, method: str) -> Any:
        """The mean over turns, and the lowest of the baseline's where the method failed."""
        found = []
        for name in self.ids:
            row, base = self.known[name, method], self.known[name, self.baseline]
            turns, field = (
                (base["turns"], "lowest_reward") if row["error"] else (row["turns"], "reward")
            )
            found.append(np.mean([turn[field] for turn in turns]))
        return np.array(found)

    def widest(self) -> list[int]:
        """The fifth of prompts with the highest variance of the baseline's complete candidates."""
        spread = []
        for name in self.ids:
            of_turns = [
                np.var(
                    [
                        list(candidate["rewards"].values())[-1]
                        for candidate in turn["candidates"]
                        if candidate["state"] == "complete"
                    ]
                )
                for turn in self.known[name, self.baseline]["turns"]
            ]
            spread.append(np.mean(of_turns))
        order = sorted(range(len(spread)), key=lambda i: -spread[i])[: max(1, len(spread) // 5)]
        return sorted(i for i in order if spread[i] > 0)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def boot(statistic: Callable[[Any], Any], num: int) -> tuple[Any, Any, Any]:
    """The value, and the ends that leave out 2.5% of 2,000 resamples on each side."""
    if num == 0:
        return None, None, None
    value = float(statistic(np.arange(num)))
    if math.isnan(value):
        return None, None, None
    if num == 1:
        return value, None, None
    drawn = np.random.default_rng(0).integers(num, size=(2000, num))
    figures = np.array([statistic(one) for one in drawn])
    figures = np.sort(figures[~np.isnan(figures)])
    tail = int(len(figures) * 0.025)
    return value, float(figures[tail]), float(figures[len(figures) - 1 - tail])


def mean(values: Sequence[float], scale: float = 1.0) -> tuple[Any, Any, Any]:
    array = scale * np.array(values, dtype=float)
    return boot(lambda drawn: array[drawn].mean(), len(array))


def of_values(statistic: Callable[[Any], Any], values: Any) -> Callable[[Any], Any]:
    return lambda drawn: statistic(values[drawn])


def risk(files: Files, places: Sequence[int], of: str = "") -> Figures:
    found: Figures = {}
    for method in files.methods:
        own = files.rewards(method)[list(places)]
        statistics: dict[str, Callable[[Any], Any]] = {
            "mean reward": lambda drawn: drawn.mean(),
            "sigma": lambda drawn: drawn.std(),
            "mean - 1 * sigma": lambda drawn: drawn.mean() - drawn.std(),
            "CVaR10%": lambda drawn: np.sort(drawn)[: max(1, len(drawn) // 10)].mean(),
        }
        for name, statistic in statistics.items():
            found[name + of, method] = boot(of_values(statistic, own), len(own))
    return found


def reward(files: Files) -> Figures:
    return risk(files, range(len(files.ids))) | risk(files, files.widest(), ", high-variance")


def perplexity(files: Files) -> Figures:
    found: Figures = {}
    for method in files.methods:
        found["perplexity", method] = mean(np.exp(-files.rewards(method)))
        for words, parts in (
            ("generation alone", ("prefill_s", "decode_s")),
            ("everything inside", ("total_s",)),
        ):
            pairs = np.array([
                [spent(files.known[i, name], parts) for name in (files.baseline, method)]
                for i in files.ids
            ])  # fmt: skip
            pairs[[files.known[i, method]["error"] is not None for i in files.ids]] = 0.0
            found[f"speedup against {files.baseline}, {words}", method] = boot(
                of_values(lambda drawn: np.divide(*drawn.sum(0)), pairs), len(files.ids)
            )
    return found


def spent(row: Any, parts: Sequence[str]) -> float:
    """Seconds of these parts."""
    return float(sum(turn["usage"][part] for turn in row["turns"] for part in parts))


def preferences(files: Files, baseline: str, ids: Sequence[str]) -> Figures:
    found: Figures = {}
    for method in files.methods:
        if method == baseline:
            continue
        rows = [
            row
            for row in files.judged["preferences"]
            if row["method"] == method and row["baseline"] == baseline and row["prompt_id"] in ids
        ]
        read = [row for row in rows if row["preference"] is not None]
        found["win rate", method] = mean([row["preference"] - 1 for row in read], 100)
        found["length-controlled win rate", method] = (None, None, None)
        found["judgements that failed", method] = (len(rows) - len(read), None, None)
        found |= leanings(method, [(row["preference"] - 1, row) for row in read])
    return found


def leanings(method: str, won: Sequence[tuple[float, Any]]) -> Figures:
    asked = [(share, row) for share, row in won if row["method_first"] is not None]
    more = np.array([row["characters"] - row["other_characters"] for _, row in asked], dtype=float)
    wins = np.array([share for share, _ in asked])

    def pearson(drawn: Any) -> float:
        x, y = wins[drawn], more[drawn]
        return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else np.nan

    return {
        ("win rate, shown first", method): mean(
            [share for share, row in asked if row["method_first"]], 100
        ),
        ("win rate, shown second", method): mean(
            [share for share, row in asked if not row["method_first"]], 100
        ),
        ("correlation of winning with length", method): boot(pearson, len(asked)),
    }


def alpacafarm(files: Files) -> Figures:
    found = preferences(files, files.baseline, files.ids)
    for method in files.methods:
        found["improvement score", method] = mean(improvement(files, method))
    return found


def alpaca_eval(files: Files) -> Figures:
    ids = {row["prompt_id"] for row in files.rows}
    return risk(files, range(len(files.ids))) | preferences(files, "references", list(ids))


def alpaca_eval_hard(files: Files) -> Figures:
    widest = files.widest()
    chosen = [files.ids[place] for place in widest]
    return risk(files, widest) | preferences(files, "references", chosen)


def grades(files: Files, ids: Sequence[str]) -> Figures:
    found: Figures = {}
    for method in files.methods:
        rows = [
            row
            for row in files.judged["grades"]
            if row["method"] == method and row["prompt_id"] in ids
        ]
        read = [row for row in rows if row["grade"] is not None]
        found["judgements that failed", method] = (len(rows) - len(read), None, None)
        found["mean grade", method] = graded(rows)
        found["mean grade, unread ones left out", method] = graded(read)
        for turn in {row["turn"] for row in rows}:
            found[f"mean grade, turn {turn}", method] = graded(
                [row for row in rows if row["turn"] == turn]
            )
        for category in {row["category"] for row in rows if row["category"]}:
            found[f"mean grade, {category}", method] = graded(
                [row for row in rows if row["category"] == category]
            )
    return found


def graded(rows: Sequence[Any]) -> tuple[Any, Any, Any]:
    ids = list(dict.fromkeys(row["prompt_id"] for row in rows))
    by_prompt = [
        [1.0 if r["grade"] is None else r["grade"] for r in rows if r["prompt_id"] == i]
        for i in ids
    ]
    return boot(lambda drawn: np.mean([g for i in drawn for g in by_prompt[i]]), len(ids))


def mt_bench(files: Files) -> Figures:
    return grades(files, [row["prompt_id"] for row in files.rows])


def mt_bench_hard(files: Files) -> Figures:
    widest = files.widest()
    return risk(files, widest) | grades(files, [files.ids[place] for place in widest])


def hh_rlhf(files: Files) -> Figures:
    found: Figures = {}
    for method in files.methods:
        if method == files.baseline:
            continue
        for file, of in (("scores", ""), ("judgements", ", both orders")):
            verdicts = [
                row["verdict"]
                for row in files.judged[file]
                if row["method"] == method and row["prompt_id"] in files.ids
            ]
            for name in ("win", "tie", "loss", "failed"):
                found[f"{name}{of}", method] = mean([v == name for v in verdicts], 100)
            found[f"win-tie{of}", method] = mean([v in ("win", "tie") for v in verdicts], 100)
        won = {"win": 1.0, "tie": 0.5, "loss": 0.0}
        for place in ("first", "second"):
            given = [
                won[row[place]]
                for row in files.judged["judgements"]
                if row["method"] == method and row[place] is not None
            ]
            found[f"win rate, shown {place}, both orders", method] = mean(given, 100)
        found |= leanings(
            method,
            [
                (won[row["verdict"]], row)
                for row in files.judged["scores"]
                if row["method"] == method and row["verdict"] != "failed"
            ],
        )
    return found


def efficiency(files: Files) -> dict[str, Figures]:
    """Figure 3 of the paper: score and relative compute, and the speedup at equal score without
    its interval.
    """
    scored = [
        place
        for place, name in enumerate(files.ids)
        if spread_of(files.known[name, files.baseline])
    ]
    scores = {m: improvement(files, m) for m in files.methods}
    costs = {m: np.array([totals(files.known[i, m]) for i in files.ids]) for m in files.methods}
    relative: Figures = {}
    speedups: Figures = {}
    grid = sorted(
        (m for m in files.methods if m.startswith("best_of_n")), key=lambda m: int(m.split(":")[1])
    )
    for method in files.methods:
        for place, measure in enumerate(("seconds", "tokens", "flops")):
            pairs = np.stack([costs[method][:, place], costs[files.baseline][:, place]], axis=1)
            relative[measure, method] = boot(
                of_values(lambda drawn: np.divide(*drawn.sum(0)), pairs), len(files.ids)
            )
            sums = {m: costs[m][scored, place].sum() for m in files.methods}
            of_grid = sorted((sums[m], scores[m].mean()) for m in grid)
            needed = reaching(of_grid, scores[method].mean())
            speedups[measure, method] = (needed / sums[method], None, None)
    own = {("improvement", method): mean(scores[method]) for method in files.methods}
    return {"improvement": own, "relative": relative, "speedup": speedups}


def reaching(points: Sequence[tuple[float, float]], target: float) -> float:
    """The compute at which a line through (compute, score), straight in log compute, first has
    the score. 0 below the cheapest, infinity above all. Scores a millionth apart are equal.
    """
    for _, score in points:
        if abs(target - score) <= 1e-6 * (1 + abs(score)):
            target = score
    if target < points[0][1]:
        return 0.0
    if target == points[0][1]:
        return points[0][0]
    logs = np.log([compute for compute, _ in points])
    for left in range(len(points) - 1):
        low, high = points[left][1], points[left + 1][1]
        if low < target <= high:
            return float(np.exp(np.interp(target, [low, high], logs[left : left + 2])))
    return math.inf


def improvement(files: Files, method: str) -> Any:
    found = []
    for name in files.ids:
        base = files.known[name, files.baseline]["turns"][0]
        row = files.known[name, method]
        own = base["lowest_reward"] if row["error"] else row["turns"][0]["reward"]
        if spread_of(files.known[name, files.baseline]):
            found.append(
                100 * (1 + (own - base["reward"]) / (base["reward"] - base["lowest_reward"]))
            )
    return np.array(found)


def spread_of(row: Any) -> float:
    return float(row["turns"][0]["reward"] - row["turns"][0]["lowest_reward"])


def totals(row: Any) -> list[float]:
    """Seconds, tokens, FLOPs."""
    turn = row["turns"][0]
    return [
        turn["usage"]["total_s"],
        turn["usage"]["generated_tokens"],
        sum(value for value in turn["flops"].values()),
    ]


def coefficients(partial: Any, final: Any) -> dict[str, float]:
    """Pearson's r, Spearman's rho (that of ranks) and Kendall's tau-b, pair by pair."""

    def ranks(values: Any) -> Any:
        below = (values[:, None] > values).sum(1)
        return below + ((values[:, None] == values).sum(1) + 1) / 2

    def kendall() -> float:
        x = np.sign(partial[:, None] - partial)[np.triu_indices(len(partial), 1)]
        y = np.sign(final[:, None] - final)[np.triu_indices(len(final), 1)]
        return float((x * y).sum() / np.sqrt((x != 0).sum() * (y != 0).sum()))

    return {
        "pearson": float(np.corrcoef(partial, final)[0, 1]),
        "spearman": float(np.corrcoef(ranks(partial), ranks(final))[0, 1]),
        "kendall": kendall(),
    }


FIGURES: dict[str, Callable[[Files], Figures]] = {
    "reward": reward,
    "perplexity": perplexity,
    "alpacafarm": alpacafarm,
    "hh-rlhf": hh_rlhf,
    "mt-bench": mt_bench,
    "alpaca-eval": alpaca_eval,
    "mt-bench-high-variance": mt_bench_hard,
    "alpaca-eval-high-variance": alpaca_eval_hard,
}
