"""Best-of-N and Speculative Rejection, as generator functions over a search.

Each yields the schedule it waits by. When that says so, when the next step would not fit in the
search's budget, or when no candidate is live, the scheduler resumes it with the scores of the
batch.
"""

from collections.abc import Generator, Sequence
from typing import Any

from specrej.search.choosing import rank
from specrej.search.policies import everyone, never
from specrej.search.view import SearchView, ignores_policy
from specrej.types import Candidate, Policy, Schedule

Steps = Generator[Schedule, list[float], Any]
"""An algorithm at work on a search: takes scores, gives the schedule of its next decision. It may
return the candidate that is the answer; else that is the complete one of highest reward."""


@ignores_policy
def best_of_n(search: SearchView, n: int | None, policy: Policy) -> Steps:
    """Sample n candidates to their end, in as many waves as memory asks for, and score each once.

    With n None, as many as the budget carries at full length. The policy is not used: nobody is
    rejected.
    """
    for wave in search.waves(n, None):
        search.start(wave)
        scores = yield never
        search.keep(everyone(search.standing(scores)))


def speculative_rejection(
    search: SearchView, n: int | None, policy: Policy, *, refill: str = "none"
) -> Steps:
    """Algorithm 1 of Sun et al. (NeurIPS 2024, arXiv 2410.20290).

    Begin with n candidates (None: as many as the budget carries to the first decision), score them
    whenever memory is about to run out, keep the best, and go on until all have ended. An n that
    the budget does not carry to the first decision is split into waves, one run of the algorithm
    each. Memory that rejection frees can be used again, which is none of the paper's: by "forks" of
    the leaders, or by "fresh" candidates.
    """
    for wave in search.waves(n, policy.first_tokens):
        search.start(wave, most=None if refill == "none" else wave)
        first, refilled_at = list(search.batch), 0
        while search.live:
            scores = yield policy.when
            search.keep(policy.keep(search.standing(scores)))
            longest = max((len(one.token_ids) for one in search.live), default=0)
            if refill != "none" and longest > refilled_at:  # once a length, so that it ends
                refilled_at = longest
                _refill(search, policy, refill, longest, first)


def _refill(
    search: SearchView, policy: Policy, refill: str, longest: int, first: Sequence[Candidate]
) -> None:
    """Begin candidates in the place of those whom the last decision rejected: as many as the budget
    carries as far again as it carries the first ones before they are judged.
    """
    ahead = policy.first_tokens or search.sampling.max_new_tokens
    num_new = min(len(search.decisions[-1].rejected), search.room(longest + ahead))
    if refill == "forks":
        leaders = sorted(search.live, key=lambda one: rank(one.reward, one.index))
        search.fork([leaders[place % len(leaders)] for place in range(num_new)])
    elif num_new and any(one.state == "live" for one in first):  # so it ends
        search.start(num_new)
