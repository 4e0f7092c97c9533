"""Algorithms that judge unfinished answers step by step, and go on from copies of the best.

Each takes the process reward's score of an answer so far for the score of its last step. Who is
complete can win, and takes no memory. The policy of a run is not used: who stays follows from the
scores.

    specrej.generate(prompt, algorithm="beam_search", n=16, reward="process:org/prm")
"""

import math
from collections import Counter
from collections.abc import Sequence
from random import Random

from specrej.search.algorithms import Steps
from specrej.search.choosing import rank
from specrej.search.policies import at, never
from specrej.search.steps import PARAGRAPH, separated
from specrej.search.view import SearchView, ignores_policy
from specrej.types import Candidate, Policy, Schedule, StepRule

STEP = separated(PARAGRAPH, most_tokens=128)
"""A step of an answer: a paragraph, or so many tokens."""


@ignores_policy
def beam_search(
    search: SearchView, n: int | None, policy: Policy, *, width: int = 4, ends: StepRule = STEP
) -> Steps:
    """Beam search over steps (Snell et al. 2024, arXiv 2408.03314; as Hugging Face's
    search-and-learn does it).

    Of n beams, the best n / width that are live go on after each step, and are copied until there
    are n again.
    """
    search.wait_after(ends)
    yield from _branching(search, n, width, never)


@ignores_policy
def tree_bon(
    search: SearchView, n: int | None, policy: Policy, *, children: int = 4, layers: int = 4
) -> Steps:
    """TreeBoN (Qiu et al. 2024, arXiv 2410.16033): prune and branch again.

    The length limit is divided into layers. After each but the last, the best n / children that are
    live go on, and are copied until there are n again.
    """
    limit = search.sampling.max_new_tokens
    bounds = [limit * layer // layers for layer in range(1, layers)]
    yield from _branching(search, n, children, at(bounds))


def _branching(search: SearchView, n: int | None, width: int, when: Schedule) -> Steps:
    for wave in search.waves(n, None):
        search.start(wave, most=wave)
        while search.live:
            scores = yield when
            best = _best_live(search.batch, scores, max(wave // width, 1))
            batch = search.batch
            search.keep([one.state == "complete" or one.index in best for one in batch])
            if live := search.live:
                search.fork([live[place % len(live)] for place in range(len(live), wave)])


def _best_live(batch: Sequence[Candidate], scores: Sequence[float], k: int) -> set[int]:
    """Indices of the k live candidates with the highest scores; of equals, the lowest indices."""
    live = [
        (rank(score, candidate.index), candidate.index)
        for candidate, score in zip(batch, scores, strict=True)
        if candidate.state == "live"
    ]
    return {index for _, index in sorted(live)[:k]}


@ignores_policy
def dvts(
    search: SearchView, n: int | None, policy: Policy, *, width: int = 4, ends: StepRule = STEP
) -> Steps:
    """Diverse Verifier Tree Search (Beeching, Tunstall and Rush 2024, "Scaling test-time compute
    with open models").

    The n candidates are n / width trees. After each step the best of each tree goes on, and is
    copied `width` - 1 times. A tree whose best is complete has ended.
    """
    search.wait_after(ends)
    for wave in search.waves(n, None):
        search.start(wave, most=wave)
        tree_of = {one.index: place // width for place, one in enumerate(search.batch)}
        size_of = Counter(tree_of.values())
        while search.live:
            scores = yield never
            best: dict[int, int] = {}
            ordered = sorted(
                zip(scores, search.batch, strict=True), key=lambda one: rank(one[0], one[1].index)
            )
            for _, candidate in ordered:
                best.setdefault(tree_of[candidate.index], candidate.index)
            search.keep([one.index in best.values() for one in search.batch])
            for leader in search.live:
                tree = tree_of[leader.index]
                forks = search.fork([leader] * (size_of[tree] - 1))
                tree_of.update(dict.fromkeys((fork.index for fork in forks), tree))


@ignores_policy
def particle_filtering(
    search: SearchView,
    n: int | None,
    policy: Policy,
    *,
    resampling_temperature: float = 1.0,
    ends: StepRule = STEP,
) -> Steps:
    """Particle filtering (Puri et al. 2025, arXiv 2502.01618; as its_hub does it).

    After each step, n particles are drawn from the n that there are, with replacement, by the
    softmax of their rewards over `resampling_temperature`. Who is drawn k times goes on as itself
    and k - 1 copies, who is not drawn is rejected. Complete ones take part with the reward they
    ended with.
    """
    search.wait_after(ends)
    random = Random(search.sampling.seed)
    for wave in search.waves(n, None):
        search.start(wave, most=wave)
        particles = list(search.batch)
        while search.live:
            yield never
            particles = [one for one in particles if one.state != "rejected"]
            weights = softmax([(one.reward or 0.0) / resampling_temperature for one in particles])
            drawn = random.choices(particles, weights, k=wave) if particles else []
            counts = Counter(one.index for one in drawn)
            batch = search.batch
            search.keep([one.state == "complete" or one.index in counts for one in batch])
            particles = []
            for index, count in sorted(counts.items()):
                one = search.candidates[index]
                copies = search.fork([one] * (count - 1)) if one.state == "live" else ()
                particles += [one, *(copies or [one] * (count - 1))]


def softmax(scores: Sequence[float]) -> list[float]:
    """Numbers in [0, 1] in the proportions of their exponentials; the highest is 1."""
    return [math.exp(score - max(scores)) for score in scores]
