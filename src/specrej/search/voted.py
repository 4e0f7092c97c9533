"""Algorithms that choose by votes, or stop early: see docs/algorithms.md for which one when.

Each is a generator function as those of `algorithms` are, and returns its answer. A parameter
behind the * is the setting of that name. Of equal votes the reward decides.
"""

from specrej.rewards.answers import Extract, extractor_of
from specrej.search.algorithms import Steps, best_of_n
from specrej.search.policies import everyone
from specrej.search.view import SearchView, ignores_policy, needs_absolute_rewards
from specrej.search.voting import by_reward, finished, vote
from specrej.types import Policy


@ignores_policy
def majority_vote(
    search: SearchView, n: int | None, policy: Policy, *, extract: str | Extract
) -> Steps:
    """Self-consistency (Wang et al., ICLR 2023, arXiv 2203.11171): the answer that most of n
    candidates give.
    """
    yield from best_of_n(search, n, policy)
    return vote(search, finished(search.candidates), extractor_of(extract), lambda _: 1.0)


@ignores_policy
def weighted_best_of_n(
    search: SearchView, n: int | None, policy: Policy, *, extract: str | Extract
) -> Steps:
    """The answer whose candidates' rewards sum to most (Li et al., ACL 2023, arXiv 2206.02336).

    Where some are below 0, see `voting.by_reward`.
    """
    yield from best_of_n(search, n, policy)
    voters = finished(search.candidates)
    return vote(search, voters, extractor_of(extract), by_reward(voters))


def voted_rejection(
    search: SearchView, n: int | None, policy: Policy, *, extract: str | Extract
) -> Steps:
    """Speculative Rejection, and `weighted_best_of_n` over those who survive.

    A decision at which nobody is live any more frees no memory, so it rejects nobody: all who came
    that far vote.
    """
    for wave in search.waves(n, policy.first_tokens):
        search.start(wave)
        while search.live:
            scores = yield policy.when
            rule = policy.keep if search.live else everyone
            search.keep(rule(search.standing(scores)))
    voters = finished(search.candidates)
    return vote(search, voters, extractor_of(extract), by_reward(voters))


@needs_absolute_rewards
def threshold(search: SearchView, n: int | None, policy: Policy, *, threshold: float) -> Steps:
    """Best-of-N that ends with the first answer of at least this reward (satisficing, Simon 1956).

    It looks after each wave, and within one when the policy's schedule says so. The result has a
    note of whether there was one.
    """
    for wave in search.waves(n, None):
        search.start(wave)
        while search.live:
            scores = yield policy.when
            search.keep(everyone(search.standing(scores)))
            rewards = (one.reward for one in finished(search.candidates))
            if any(reward is not None and reward >= threshold for reward in rewards):
                search.notes.append(f"the threshold {threshold} was reached")
                return
    search.notes.append(f"no candidate reached the threshold {threshold}")
