"""Which candidate is the answer, and what to say when none is left.

best = choose(candidates, decisions, "relevance")
"""

import math
from collections.abc import Sequence

from specrej.errors import EngineError, RewardError, SpecrejError
from specrej.types import Candidate, Decision


def choose(candidates: Sequence[Candidate], decisions: Sequence[Decision], reward: str, lost: str = "") -> Candidate:
    """The best complete candidate that was not rejected; of equals the first.

    Of an interrupted run the best there is: complete before live, then by reward, then by length.

    Args:
        candidates: all of the prompt.
        decisions: what became of them.
        reward: name of the reward.
        lost: why the engine lost the last one that it lost.

    Raises:
        RewardError: the reward's filter left nobody.
        EngineError: the engine lost everybody.
    """
    left = [candidate for candidate in candidates if candidate.state != "rejected"]
    if not left:
        raise _nobody_left(candidates, decisions, reward, lost)
    return max(
        left,
        key=lambda c: (
            c.state == "complete",
            -math.inf if c.reward is None else c.reward,
            len(c.token_ids) if c.state == "live" else 0,
            -c.index,
        ),
    )


def _nobody_left(
    candidates: Sequence[Candidate], decisions: Sequence[Decision], reward: str, lost: str
) -> SpecrejError:
    num_lost = sum(candidate.finish_reason == "lost" for candidate in candidates)
    if num_lost:
        return EngineError(
            f"no candidate is left: the engine lost {num_lost} of {len(candidates)}, the last one because {lost}",
            hint="see that what decodes answers, and run it again",
        )
    num_filtered = sum(len(decision.rejected) for decision in decisions if decision.cause == "filter")
    others = ", decisions rejected the others" if num_filtered < len(candidates) else ""
    return RewardError(
        f"no candidate is left: {num_filtered} of {len(candidates)} did not pass the filter of the reward "
        f"{reward!r}{others}",
        hint="loosen the filter, begin with more candidates, or reject a smaller share at each decision",
    )
