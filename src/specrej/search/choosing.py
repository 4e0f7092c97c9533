"""Which candidate is better, which is the answer, and what to say when none is left.

best = choose(candidates, decisions, "relevance")
first, *others = ranked(candidates)  # all that can be the answer, the best first
order = sorted(range(len(scores)), key=lambda place: rank(scores[place], place))

Whoever puts candidates in order, or their rewards, sorts by `rank`: nothing else says which of two
is better.
"""

from collections.abc import Iterable, Sequence

from specrej.engines.base import Token
from specrej.errors import EngineError, RewardError, SamplingError, SpecrejError, UsageError
from specrej.types import Candidate, Decision, Standing


def rank(reward: float | None, index: int) -> tuple[bool, float, int]:
    """What sorts rewards, the best first: no reward is below every reward, and of equals the
    lower index is better.
    """
    return (True, 0.0, index) if reward is None else (False, -reward, index)


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """All that can be the answer, the best first: complete before live, then by `rank`.

    Live ones of equal reward go by length, the longest first. The rejected are left out, and with
    them who was lost or did not pass a filter.
    """

    def place(candidate: Candidate) -> tuple[bool, bool, float, int, int]:
        is_unscored, reward, index = rank(candidate.reward, candidate.index)
        is_live = candidate.state == "live"
        return is_live, is_unscored, reward, -len(candidate.token_ids) if is_live else 0, index

    return sorted(
        (candidate for candidate in candidates if candidate.state != "rejected"), key=place
    )


def only(candidates: Iterable[Candidate], batch: Sequence[Candidate]) -> Candidate | None:
    """The only one of all that is not rejected, if the batch is this one; else None."""
    if len(batch) != 1:
        return None
    left = [candidate for candidate in candidates if candidate.state != "rejected"]
    return left[0] if len(left) == 1 else None


def lowest(
    candidates: Iterable[Candidate], decisions: Sequence[Decision], *, is_relative: bool = False
) -> Candidate | None:
    """The worst of those that came to their end and were scored, rejected or not; of equals the
    last.

    Who was lost or did not pass a filter has no reward for its finished text: it does not count.
    Of a relative reward those count alone that were compared last, with the answer.
    None if only one does.
    """
    filtered = {
        index for decision in decisions if decision.cause == "filter" for index in decision.rejected
    }
    ended = [
        candidate
        for candidate in candidates
        if candidate.finish_reason not in (None, "lost")
        and candidate.reward is not None
        and candidate.index not in filtered
    ]
    if is_relative:
        latest = max((max(candidate.rewards) for candidate in ended), default=0)
        ended = [candidate for candidate in ended if latest in candidate.rewards]
    return (
        max(ended, key=lambda candidate: rank(candidate.reward, candidate.index))
        if len(ended) > 1
        else None
    )


def earlier(candidates: Iterable[Candidate], batch: Sequence[Candidate]) -> list[Candidate]:
    """The complete ones outside the batch, which can still be the answer."""
    here = {candidate.index for candidate in batch}
    return [one for one in candidates if one.state == "complete" and one.index not in here]


def standing(
    candidates: Iterable[Candidate], batch: Sequence[Candidate], scores: Sequence[float]
) -> Standing:
    """How a batch stands with its scores, beside the complete ones of earlier waves.

    Args:
        candidates: all of the prompt.
        batch: those of them that were scored.
        scores: of the batch, in its order.
    """
    before = [one.reward for one in earlier(candidates, batch) if one.reward is not None]
    return Standing(
        num_tokens=max((len(candidate.token_ids) for candidate in batch), default=0),
        scores=scores,
        is_live=[candidate.state == "live" for candidate in batch],
        best=max(before, default=None),
    )


def choose(
    candidates: Sequence[Candidate],
    decisions: Sequence[Decision],
    reward: str,
    lost: Token | None = None,
) -> Candidate:
    """The best complete candidate that was not rejected; of equals the first.

    Of an interrupted run the best there is, see `ranked`.

    Args:
        candidates: all of the prompt.
        decisions: what became of them.
        reward: name of the reward.
        lost: the last one that the engine lost, and why.

    Raises:
        RewardError: the reward's filter left nobody.
        EngineError: the engine lost everybody.
        SamplingError: it did, since nothing more can obey their constraint.
        UsageError: the policy or the algorithm rejected everybody.
    """
    left = ranked(candidates)
    if not left:
        raise _nobody_left(candidates, decisions, reward, lost)
    return left[0]


def all_rejected(num_candidates: int) -> UsageError:
    """What is wrong with a policy that rejects everybody before one is complete."""
    return UsageError(
        f"no candidate is left: all {num_candidates} were rejected",
        hint="a policy or an algorithm must keep one at least until one is complete",
    )


def _nobody_left(
    candidates: Sequence[Candidate],
    decisions: Sequence[Decision],
    reward: str,
    lost: Token | None,
) -> SpecrejError:
    if lost is not None:
        if isinstance(lost.cause, SamplingError):  # what was asked for cannot be drawn
            return lost.cause
        num_lost = sum(candidate.finish_reason == "lost" for candidate in candidates)
        error = EngineError(
            f"no candidate is left: the engine lost {num_lost} of {len(candidates)}, the last one "
            f"because {lost.reason}",
            hint="see that what decodes answers, and run it again",
        )
        error.__cause__ = lost.cause
        return error
    num_filtered = sum(
        len(decision.rejected) for decision in decisions if decision.cause == "filter"
    )
    if num_filtered == 0:
        return all_rejected(len(candidates))
    others = ", decisions rejected the others" if num_filtered < len(candidates) else ""
    return RewardError(
        f"no candidate is left: {num_filtered} of {len(candidates)} did not pass the filter of the "
        "reward "
        f"{reward!r}{others}",
        hint="loosen the filter, begin with more candidates, or reject a smaller share at each "
        "decision",
    )
