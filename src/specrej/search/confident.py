"""Algorithms that go by the model's own confidence; they need no reward, but for equal votes.

Confidence is read off the log-probabilities of the 20 likeliest tokens in each place. An engine
that does not give them is refused before anything is decoded.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from specrej.rewards.answers import Extract, extractor_of
from specrej.search.algorithms import Steps, best_of_n
from specrej.search.policies import everyone
from specrej.search.view import SearchView, ignores_policy, reads_top_logprobs
from specrej.search.voting import Weight, borda, consensus, finished, vote
from specrej.types import Candidate, Policy, Schedule, Standing, TopLogprobs

NUM_TOP = 20
"""Likeliest tokens that confidence is read off: as many as engines give."""
BORDA_POWER = 1.2
"""The p of Kang et al.; 0 would be a majority vote."""
CONSENSUS = 0.95
"""Share of the votes at which DeepConf asks for no more candidates."""


@ignores_policy
@reads_top_logprobs(NUM_TOP)
def self_certainty(
    search: SearchView, n: int | None, policy: Policy, *, extract: str | Extract
) -> Steps:
    """Borda voting by self-certainty (Kang et al., 2025, arXiv 2502.18581).

    Self-certainty is the mean divergence of the token distributions from the uniform one. Here it
    is that over the likeliest tokens, since engines give no more.
    """
    yield from best_of_n(search, n, policy)
    voters = finished(search.candidates)
    return vote(search, voters, extractor_of(extract), borda(voters, confidence, BORDA_POWER))


@reads_top_logprobs(NUM_TOP)
def deepconf(
    search: SearchView, n: int | None, policy: Policy, *, extract: str | Extract, window: int
) -> Steps:
    """Offline DeepConf (Fu et al., 2025, arXiv 2508.15260): of n candidates those that the policy
    keeps by their confidence vote, each with its confidence.

    Confidence is that of the least confident group: tokens within a window.
    """
    yield from best_of_n(search, n, policy)
    voters, weight = finished(search.candidates), lowest_in(window)
    confident = _confident(voters, weight, policy)
    return vote(search, confident, extractor_of(extract), weight)


@reads_top_logprobs(NUM_TOP)
def deepconf_online(
    search: SearchView,
    n: int | None,
    policy: Policy,
    *,
    extract: str | Extract,
    window: int,
    warm_up: int,
) -> Steps:
    """Online DeepConf: the first `warm_up` candidates set the bar, and later ones are stopped in
    the group that falls below it.

    The bar is the lowest confidence that the policy keeps of the first ones. When one answer has
    CONSENSUS of the votes, no further wave begins. Where no more than the first begin, the result
    has a note of it.
    """
    weight, answer, bar, num_begun = lowest_in(window), extractor_of(extract), -math.inf, 0
    for size in _split(search.waves(n, None), warm_up):
        num_begun += size
        search.start(size)
        while search.live:
            scores = yield _below(search, window, bar)
            kept = everyone(search.standing(scores))
            search.keep(
                [
                    keep and not (one.state == "live" and _newest(one, window) < bar)
                    for keep, one in zip(kept, search.batch, strict=True)
                ]
            )
        done = finished(search.candidates)
        if bar == -math.inf and len(done) >= warm_up:
            bar = min(map(weight, _confident(done, weight, policy)), default=bar)
        voters = [one for one in done if weight(one) >= bar]
        if bar > -math.inf and consensus(voters, answer, weight) >= CONSENSUS:
            break
    if num_begun <= warm_up and (n is None or n <= warm_up):
        search.notes.append(
            f"the algorithm 'deepconf_online' stopped nobody: it decodes the first {warm_up} "
            f"candidates (warm_up) to their end, and {num_begun} began"
        )
    return vote(search, voters, answer, weight)


def confidence(candidate: Candidate) -> float:
    """The mean of its tokens' confidences: of each, minus the mean log-probability (nats) of the
    likeliest tokens in its place.
    """
    return _mean(_of_tokens(candidate))


def lowest_in(window: int) -> Weight:
    """The confidence of a candidate's least confident `window` tokens in a row; of all where it has
    no more.
    """

    def lowest(candidate: Candidate) -> float:
        tokens = _of_tokens(candidate)
        groups = range(max(len(tokens) - window, 0) + 1)
        return min(_mean(tokens[start : start + window]) for start in groups)

    return lowest


def _newest(candidate: Candidate, window: int) -> float:
    """The confidence of its last `window` tokens; infinite before there are so many."""
    if len(candidate.top_logprobs) < window:
        return math.inf
    return _mean([_of_token(top) for top in candidate.top_logprobs[-window:]])


def _below(search: SearchView, window: int, bar: float) -> Schedule:
    """Decide when a live candidate's newest tokens are below the bar."""
    return lambda _length, _last: any(_newest(one, window) < bar for one in search.live)


def _confident(voters: Sequence[Candidate], weight: Weight, policy: Policy) -> list[Candidate]:
    """Those that the policy keeps by these scores."""
    scores, is_live = [weight(one) for one in voters], [False] * len(voters)
    length = max((len(one.token_ids) for one in voters), default=0)
    kept = policy.keep(Standing(length, scores, is_live))
    return [one for one, keep in zip(voters, kept, strict=True) if keep]


def _split(waves: Iterable[int], first: int) -> Iterator[int]:
    """The sizes of waves, divided where `first` candidates have begun."""
    for wave in waves:
        head = min(first, wave)
        first -= head
        yield from (size for size in (head, wave - head) if size)


def _of_tokens(candidate: Candidate) -> list[float]:
    return [_of_token(top) for top in candidate.top_logprobs]


def _of_token(top: TopLogprobs) -> float:
    return -_mean([logprob for _, logprob in top])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
