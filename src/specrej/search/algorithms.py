"""Best-of-N and Speculative Rejection, as generator functions over a search.

Each yields the schedule it waits by. When that says so, when the next step would not fit in the
search's budget, or when no candidate is live, the scheduler resumes it with the scores of the
batch.
"""

from collections.abc import Generator
from typing import Any

from specrej.search.policies import everyone, never
from specrej.search.view import SearchView
from specrej.types import Policy, Schedule

Steps = Generator[Schedule, list[float], Any]
"""An algorithm at work on a search: takes scores, gives the schedule of its next decision. It may
return the candidate that is the answer; else that is the complete one of highest reward."""


def best_of_n(search: SearchView, n: int | None, policy: Policy) -> Steps:
    """Sample n candidates to their end, in as many waves as memory asks for, and score each once.

    With n None, as many as the budget carries at full length. The policy is not used: nobody is
    rejected.
    """
    for wave in search.waves(n, None):
        search.start(wave)
        scores = yield never
        search.keep(everyone(search.standing(scores)))


def speculative_rejection(search: SearchView, n: int | None, policy: Policy) -> Steps:
    """Algorithm 1 of Sun et al. (NeurIPS 2024, arXiv 2410.20290).

    Begin with n candidates (None: as many as the budget carries to the first decision), score them
    whenever memory is about to run out, keep the best, and go on until all have ended. An n that
    the budget does not carry to the first decision is split into waves, one run of the algorithm
    each.
    """
    for wave in search.waves(n, policy.first_tokens):
        search.start(wave)
        while search.live:
            scores = yield policy.when
            search.keep(policy.keep(search.standing(scores)))
