"""Does a head on the generator's own state know the winner sooner than the reward of the partial
answer does? The last line is one JSON object.

    specrej trace prompts.jsonl --n 64 --checkpoints 8,16,32,64 --output traces
    OMP_NUM_THREADS=1 python benchmarks/value_head.py traces  # under 5 minutes for 50 prompts

A hidden state costs nothing: decoding makes it. A reward has to read the text. Both predict the
final reward of the candidates that are live at a checkpoint, on prompts that no head has seen:
prompts are divided into folds, and each is judged by heads that were fitted on the others. Features
and target are centred and scaled within the prompt, over its live candidates.

`ridge` is linear. Its strength is chosen on inner folds. `mlp` has two layers and a pairwise
logistic loss; of its epochs the best on an inner fold is taken, and heads of several inner folds
are averaged. `cheap` is linear in four figures: the partial reward, the mean log-probability of all
tokens and of the recent quarter, and the share of distinct tokens. Length is no feature: at a
checkpoint all live candidates have the same. `+ cheap` is a head with these beside the state. Its
`cheap` part is hardly penalized, so that a useless state leaves the prediction as it was.

`spearman` is the mean rank correlation with the final reward within a prompt, `gain` the same minus
that of the partial reward on the same prompts. `ahead` is the share of the other live candidates
that stand before the best of them: 0 is perfect, 0.5 is chance.

The filter keeps a share of the live candidates and everyone complete. `lost` is how often it loses
the best candidate of the prompt, `gain` how much rarer than the partial reward. Its regret is in
standard deviations of a prompt's final rewards (spreads). Intervals are the bootstrap's over
prompts, with the heads as they are.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

import specrej
from specrej.evaluation.intervals import Estimate, estimate, mean_of
from specrej.evaluation.trace import Trace, load

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = np.logspace(2, 6.5, 10)  # of ridge; the Gram matrix has about 2,500 on its diagonal
BOOST = 100.0  # of features that ridge shall hardly penalize: 10,000 times less
WIDTH, EPOCHS, BATCH, RATE, DECAY = 32, 15, 8, 2e-3, 0.1  # of the MLP
FILTER_AT, SHARES, CHANCES = (8, 16), (0.75, 0.5), 200
LEAST_LIVE = 3  # through two points there is always a line


class Checkpoint(NamedTuple):
    """All prompts at one length; what is not live is 0."""

    num_tokens: int
    live: Mask
    """`[prompts, n]`"""
    states: Array
    """`[prompts, n, hidden]`, scaled within the prompt."""
    cheap: Array
    """`[prompts, n, 4]`, scaled; the partial reward is the first."""
    finals: Array
    """`[prompts, n]` final rewards, as they are."""


def scale(values: Array, live: Mask) -> Array:
    """Features `[prompts, n, features]` with mean 0 and deviation 1 over the live candidates of
    each prompt; 0 where they do not differ, and where nobody is live.
    """
    weights = live[..., None]
    count = np.maximum(weights.sum(1, keepdims=True), 1)
    centred = (values - (values * weights).sum(1, keepdims=True) / count) * weights
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    least = 1e-9 * np.abs(values).max(1, keepdims=True)
    return np.where(deviation > least, centred / np.where(deviation > 0, deviation, 1), 0.0)


def read_checkpoint(traces: Sequence[Trace], place: int) -> Checkpoint:
    length = traces[0].checkpoints[place]
    live = np.array([trace.lengths > length for trace in traces])
    recent = max(4, length // 4)
    cheap = [
        [
            (partial, logs[:length].mean(), logs[:length][-recent:].mean(), len(set(ids[:length])))
            for partial, logs, ids in zip(
                trace.rewards[:, place],
                trace.logprobs,
                (ids.tolist() for ids in trace.token_ids),
                strict=True,
            )
        ]
        for trace in traces
    ]
    states = np.array([trace.hidden_states()[:, place] for trace in traces], dtype=np.float64)
    return Checkpoint(
        num_tokens=length,
        live=live,
        states=scale(states, live),
        cheap=scale(np.array(cheap, dtype=np.float64), live),
        finals=np.array([trace.final_rewards for trace in traces]),
    )


def divide(num_prompts: int, seed: int) -> NDArray[np.intp]:
    """The fold of each prompt."""
    return np.random.default_rng(seed).permutation(num_prompts) % FOLDS


def rank_correlations(scores: Array, finals: Array, live: Mask) -> Array:
    """Spearman's correlation `[prompts]` over the live candidates; NaN where it is undefined."""
    found = np.full(len(live), np.nan)
    for prompt, is_live in enumerate(live):
        x, y = scores[prompt, is_live], finals[prompt, is_live]
        if len(x) >= LEAST_LIVE and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[prompt] = np.corrcoef(rankdata(x), rankdata(y))[0, 1]
    return found


def quality(scores: Array, finals: Array, live: Mask) -> float:
    """What inner folds choose by; -1 where no prompt has a correlation."""
    found = rank_correlations(scores, finals, live)
    return -1.0 if np.isnan(found).all() else float(np.nanmean(found))


def shares_ahead(scores: Array, finals: Array, live: Mask) -> Array:
    """Share `[prompts]` of the other live candidates before the best live one; equal ones count
    half. NaN where fewer than three are live.
    """
    found = np.full(len(live), np.nan)
    for prompt, is_live in enumerate(live):
        x, y = scores[prompt, is_live], finals[prompt, is_live]
        if len(x) >= LEAST_LIVE:
            best = x[y == y.max()].max()
            ahead = (x > best).sum() + ((x == best).sum() - 1) / 2
            found[prompt] = ahead / (len(x) - 1)
    return found


def ridge_scores(features: Array, finals: Array, live: Mask, folds: NDArray[np.intp]) -> Array:
    """Predictions `[prompts, n]`, each prompt's by a head that has not seen its fold."""
    targets = scale(finals[..., None], live)[..., 0]
    rows = [features[folds == fold].reshape(-1, features.shape[-1]) for fold in range(FOLDS)]
    grams = np.array([part.T @ part for part in rows])
    moments = np.array([part.T @ targets[folds == fold].ravel() for fold, part in enumerate(rows)])

    def fit(left_out: Sequence[int]) -> Array:
        """Weights `[strengths, features]`."""
        seen = [fold for fold in range(FOLDS) if fold not in left_out]
        gram, moment = grams[seen].sum(0), moments[seen].sum(0)
        penalty = np.eye(len(gram))
        return np.stack([np.linalg.solve(gram + s * penalty, moment) for s in STRENGTHS])

    # Who is chosen for a fold has not seen it; so each pair left out serves two folds.
    chosen_by = np.zeros((FOLDS, len(STRENGTHS)))
    for pair in combinations(range(FOLDS), 2):
        weights = fit(pair)
        for judged, inner in (pair, pair[::-1]):
            at = folds == inner
            chosen_by[judged] += [quality(features[at] @ w, finals[at], live[at]) for w in weights]
    scores = np.zeros(live.shape)
    for fold in range(FOLDS):
        at = folds == fold
        scores[at] = features[at] @ fit([fold])[chosen_by[fold].argmax()]
    return scores


class Head(torch.nn.Module):
    """Two layers, beside what is linear in the cheap features. Before the first step it is the
    latter alone.
    """

    def __init__(self, num_states: int, weights: torch.Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Parameter(weights)
        self.first = torch.nn.Linear(num_states + len(weights), WIDTH)
        self.second = torch.nn.Linear(WIDTH, 1, bias=False)
        torch.nn.init.zeros_(self.second.weight)

    def forward(self, states: torch.Tensor, cheap: torch.Tensor) -> torch.Tensor:
        """`[prompts, n]` scores."""
        inner = torch.relu(self.first(torch.cat([states, cheap], -1)))
        scores: torch.Tensor = self.second(inner)[..., 0] + cheap @ self.linear
        return scores


def pair_loss(scores: torch.Tensor, finals: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Logistic loss of every pair of live candidates of a prompt whose final rewards differ."""
    better = finals[:, :, None] > finals[:, None, :]
    counted = better & live[:, :, None] & live[:, None, :]
    losses = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])
    per_prompt = (losses * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
    return per_prompt.mean()


def train(
    states: Array, cheap: Array, finals: Array, live: Mask, parts: tuple[Mask, Mask, Mask]
) -> Array:
    """Fit on the first part of the prompts, stop by the second, predict `[prompts, n]` of the
    third.
    """
    fitted, inner, judged = parts
    targets = scale(finals[..., None], live)[..., 0]
    rows = live & fitted[:, None]
    start = np.linalg.lstsq(cheap[rows], targets[rows], rcond=None)[0]
    head = Head(states.shape[-1], torch.tensor(start, dtype=torch.float32))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    given = torch.tensor(states, dtype=torch.float32), torch.tensor(cheap, dtype=torch.float32)
    ends, alive = torch.tensor(finals), torch.tensor(live)
    best, scores = -2.0, np.zeros(live.shape)
    for _ in range(EPOCHS + 1):
        with torch.no_grad():
            now = head(*given).double().numpy()
        if (reached := quality(now[inner], finals[inner], live[inner])) > best:
            best, scores = reached, now
        order = torch.tensor(np.flatnonzero(fitted))[torch.randperm(int(fitted.sum()))]
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            optimizer.zero_grad()
            loss = pair_loss(head(*(part[batch] for part in given)), ends[batch], alive[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return scores[judged]


def mlp_scores(
    states: Array, cheap: Array, finals: Array, live: Mask, folds: NDArray[np.intp]
) -> Array:
    """The same of MLPs: mean over those that were stopped by different inner folds."""
    scores = np.zeros(live.shape)
    for fold in range(FOLDS):
        for step in range(1, INNER_FOLDS + 1):
            judged, inner = folds == fold, folds == (fold + step) % FOLDS
            parts = (~judged & ~inner, inner, judged)
            scores[judged] += train(states, cheap, finals, live, parts) / INNER_FOLDS
    return scores


def predict(at: Checkpoint, folds: NDArray[np.intp]) -> dict[str, Array]:
    """Scores `[prompts, n]` by each method."""
    both = np.concatenate([at.states, at.cheap * BOOST], -1)
    nothing = at.cheap[..., :0]
    known = (at.finals, at.live, folds)
    return {
        "partial reward": at.cheap[..., 0],
        "mean log-probability": at.cheap[..., 1],
        "recent log-probability": at.cheap[..., 2],
        "cheap": ridge_scores(at.cheap * BOOST, *known),
        "ridge": ridge_scores(at.states, *known),
        "mlp": mlp_scores(at.states, nothing, *known),
        "ridge + cheap": ridge_scores(both, *known),
        "mlp + cheap": mlp_scores(at.states, at.cheap, *known),
    }


def filter_prompt(scores: Array, finals: Array, live: Mask, share: float) -> float:
    """Regret in spreads when a share of the live candidates of one prompt stays, `[n]` each. Of
    equals the first stays.
    """
    order = np.argsort(np.where(live, -scores, np.inf), kind="stable")[: live.sum()]
    stays = ~live
    stays[order[: int(np.ceil(share * len(order)))]] = True
    return float((finals.max() - finals[stays].max()) / (finals.std() or 1.0))


def filter_all(scores: Array, at: Checkpoint, share: float) -> Array:
    """Regrets `[prompts]`."""
    prompts = zip(scores, at.finals, at.live, strict=True)
    return np.array([filter_prompt(*prompt, share) for prompt in prompts])


def filters(
    scores: Mapping[str, Array], at: Checkpoint, seed: int
) -> Iterator[tuple[float, str, dict[str, Estimate]]]:
    """Share kept, method and its figures."""
    generator = np.random.default_rng(seed)
    for share in SHARES:
        chances = [filter_all(generator.random(at.live.shape), at, share) for _ in range(CHANCES)]
        regrets = {name: [filter_all(of, at, share)] for name, of in scores.items()}
        lost_by_partial = regrets["partial reward"][0] > 0
        for name, drawn in {"chance": chances, **regrets}.items():
            lost = (np.array(drawn) > 0).mean(0)
            yield (
                share,
                name,
                {
                    "lost": mean_of(lost),
                    "gain": mean_of(lost_by_partial - lost),
                    "regret": mean_of(np.mean(drawn, axis=0)),
                },
            )


def quantile_of(values: Array, share: float) -> Estimate:
    present = values[~np.isnan(values)]
    return estimate(lambda drawn: np.quantile(present[drawn], share, axis=-1), len(present))


def judge(scores: Array, at: Checkpoint) -> dict[str, Estimate]:
    found, partial = (
        rank_correlations(of, at.finals, at.live) for of in (scores, at.cheap[..., 0])
    )
    ahead = shares_ahead(scores, at.finals, at.live)
    return {
        "spearman": mean_of(found),
        "gain": mean_of(found - partial),
        "ahead_median": quantile_of(ahead, 0.5),
        "ahead_90": quantile_of(ahead, 0.9),
    }


def shown(figure: Estimate) -> str:
    if figure["value"] is None or figure["low"] is None or figure["high"] is None:
        return f"{'-':>21}"
    return f"{figure['value']:6.3f} ({figure['low']:5.2f} to {figure['high']:5.2f})"


def line_of(figures: Mapping[str, Estimate]) -> str:
    return "  ".join(f"{name} {shown(figure)}" for name, figure in figures.items())


def measure(at: Checkpoint, seed: int) -> dict[str, Any]:
    """All figures of a checkpoint; prints them."""
    scores = predict(at, divide(len(at.live), seed))
    judged = {name: judge(of, at) for name, of in scores.items()}
    print(f"\n{at.num_tokens} tokens, {at.live.mean():.0%} live")
    for name, figures in judged.items():
        print(f"  {name:22} {line_of(figures)}")
    filtered: dict[str, dict[str, dict[str, Estimate]]] = {}
    if at.num_tokens in FILTER_AT:
        for share, name, figures in filters(scores, at, seed):
            filtered.setdefault(str(share), {})[name] = figures
            print(f"  keep {share:.0%} by {name:22} {line_of(figures)}")
    return {"live_share": float(at.live.mean()), "methods": judged, "filters": filtered}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", help="what `specrej trace` wrote, of the torch engine")
    parser.add_argument("--seed", type=int, default=0, help="of folds and heads")
    given = parser.parse_args()
    traces = list(load(given.traces))
    if len(traces) < (least := 2 * FOLDS):
        parser.error(f"{len(traces)} prompts are too few for {FOLDS} folds: record {least} or more")
    torch.manual_seed(given.seed)
    print(f"{len(traces)} prompts, {traces[0].num_candidates} candidates each")
    checkpoints = {}
    for place, length in enumerate(traces[0].checkpoints):
        print(f"{length} tokens", file=sys.stderr)
        checkpoints[str(length)] = measure(read_checkpoint(traces, place), given.seed)
    figures = {
        "benchmark": "value_head",
        "prompts": len(traces),
        "candidates": traces[0].num_candidates,
        "model": traces[0].settings["model"],
        "reward": traces[0].settings["reward"],
        "checkpoints": checkpoints,
        "folds": FOLDS,
        "seed": given.seed,
        "cores": os.cpu_count(),
        "versions": {
            "specrej": specrej.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
