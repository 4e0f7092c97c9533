r"""Several rewards as one, with penalties and a hard filter.

    EnsembleReward(["relevance", "logprob"], [0.7, 0.3])
    EnsembleReward([one, another], combine="worst", scale="z")
    EnsembleReward(["relevance"], truncated=-2, filter="regex:^[A-Z]")

Scores as different as logits and log-probabilities need weights that make up for it, or scale="z":
each member's scores in standard deviations over the candidates of the prompt. Center and spread are
found when candidates are first scored and stay for the whole prompt (see `combining.Scale`), since
the winner is chosen among candidates that were scored at different decisions. Such a reward says
who is better among the candidates of one run; it cannot be compared between prompts, methods or
runs, and spreads found on short texts may differ from those of whole answers.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from specrej.errors import UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import (
    Reward,
    RewardSession,
    Scores,
    check_absolute,
    is_relative,
    open_session,
)
from specrej.rewards.combining import Scale, combiner
from specrej.rewards.ensemble_spec import FORM, EnsembleSpec, read_spec, written
from specrej.rewards.scores import checked_scores, failing_as
from specrej.rewards.together import score_together
from specrej.types import Candidate, Message, Reuse

SCALES = ("none", "z")
MOMENTS = ("complete", "always")
_REUSES: tuple[Reuse, ...] = ("none", "prompt", "answers")
_DEFAULTS: Mapping[str, Any] = {
    "combine": "sum",
    "risk": None,
    "share": None,
    "scale": "none",
    "length_penalty": 0.0,
    "truncated": 0.0,
    "filter_when": "complete",
}


class EnsembleReward:
    """Scores with several rewards.

    Attributes:
        name: a spec that gives the ensemble again, where the names of its members do.
        flops_per_token: that of the members, where all that read tokens have the same: `num_tokens`
            is the sum over members, so it is None where they differ or one does not say.
        members: in the order given.
        judges: the members, and behind them the filter if there is one.
    """

    def __init__(
        self,
        members: Sequence[Any],
        weights: Sequence[float] | None = None,
        *,
        combine: str = "sum",
        risk: float | None = None,
        share: float | None = None,
        scale: str = "none",
        length_penalty: float = 0.0,
        truncated: float = 0.0,
        filter: Any = None,
        filter_when: str = "complete",
    ) -> None:
        """Take members, and say how their scores become one.

        Args:
            members: rewards, or what `as_reward` makes one of.
            weights: one for each member; all 1 by default.
            combine: "sum", "mean_minus_std", "worst" or "cvar".
            risk: standard deviations over members that "mean_minus_std" takes off; 1 by default.
            share: of the members, by weight, whose worst scores "cvar" averages; 0.5 by default.
            scale: "none", or "z" for each member's standard deviations over the candidates of the
                prompt.
            length_penalty: taken off for each token of the answer, after combining.
            truncated: added, after combining, to an answer that the length limit ended; 0 or below.
            filter: a reward; a candidate that it does not score above 0 is rejected at once, and
                members do not see it.
            filter_when: what the filter judges: "complete" candidates only, or "always" the
                unfinished ones as well.

        Raises:
            UnknownNameError: a name that nobody knows.
            UsageError: no members, a number outside its range, or a filter that is relative.
        """
        self.weights = list(weights) if weights is not None else [1.0] * len(members)
        self.scale, self.filter_when = scale, filter_when
        self.length_penalty, self.truncated = length_penalty, truncated
        self._check(len(members))
        self.combine = combiner(combine, self.weights, risk=risk, share=share)
        # Last, since a member's model may take long to open.
        self._opened: list[Reward] = []
        try:
            self.members = [self._open(member) for member in members]
            self.filter: Reward | None = None if filter is None else self._open_filter(filter)
        except BaseException:
            self.close()
            raise
        self.judges = [*self.members, *([self.filter] if self.filter else [])]
        options = {
            "combine": combine,
            "risk": risk,
            "share": share,
            "scale": scale,
            "length_penalty": length_penalty,
            "truncated": truncated,
            "filter_when": filter_when,
        }
        self.name = self._spec(options)
        self.flops_per_token = _flops_per_token(self.judges)

    @property
    def is_relative(self) -> bool:
        """Whether a member is, see `specrej.rewards.base.RelativeReward`."""
        return any(map(is_relative, self.members))

    def _spec(self, options: Mapping[str, Any]) -> str:
        """What gives this ensemble again; what is as usual is left out."""
        given = {key: value for key, value in options.items() if value != _DEFAULTS[key]}
        names = [member.name for member in self.members]
        filtered_by = self.filter.name if self.filter else None
        return written(EnsembleSpec(names, self.weights, given, filtered_by))

    def _open(self, spec: Any) -> Reward:
        reward = as_reward(spec)
        if reward is not spec:
            self._opened.append(reward)
        return reward

    def _open_filter(self, spec: Any) -> Reward:
        reward = self._open(spec)
        check_absolute(reward, "the filter of an ensemble")
        return reward

    def close(self) -> None:
        """Close the members that were given by name; one that was given as an object is its
        owner's to close.
        """
        opened, self._opened = self._opened, []
        with ExitStack() as closing:
            for reward in opened:
                closing.callback(reward.close)

    def _check(self, num_members: int) -> None:
        if num_members == 0:
            raise UsageError("an ensemble needs members", hint=FORM)
        if len(self.weights) != num_members:
            raise UsageError(
                f"an ensemble of {num_members} members got {len(self.weights)} weights"
            )
        for weight in self.weights:
            if not math.isfinite(weight) or weight == 0:
                raise UsageError(f"a member's weight must be finite and not 0, got {weight}")
        if self.scale not in SCALES:
            raise UnknownNameError("scale of an ensemble", self.scale, SCALES)
        if self.filter_when not in MOMENTS:
            raise UnknownNameError("filter_when of an ensemble", self.filter_when, MOMENTS)
        if not math.isfinite(self.length_penalty):
            raise UsageError(f"length_penalty must be finite, got {self.length_penalty}")
        if not -math.inf < self.truncated <= 0:
            raise UsageError(
                f"truncated must be 0 or below, got {self.truncated}",
                hint="it is added to an answer that the length limit ended",
            )

    def open(self, messages: Sequence[Message]) -> "EnsembleSession":
        """Begin with a prompt, in all members.

        Raises:
            RewardError: a member failed; those already begun are closed.
        """
        return EnsembleSession(self, messages)

    def score_together(
        self, asked: Sequence[tuple["EnsembleSession", Sequence[Candidate]]]
    ) -> list[Scores]:
        """Answers to several prompts, in each member and the filter together. A prompt that
        fails has its error.
        """
        failed: dict[EnsembleSession, Exception] = {}
        passing = self._passing(asked, failed)
        columns: dict[EnsembleSession, list[list[float]]] = {session: [] for session in passing}
        for number in range(len(self.members)):
            given = self._ask(number, passing, failed)
            passing = {session: passing[session] for session in given}
            for session, scores in given.items():
                columns[session].append(scores)
        return [
            failed[session]
            if session in failed
            else session.combine(candidates, passing[session], columns[session])
            for session, candidates in asked
        ]

    def _passing(
        self,
        asked: Sequence[tuple["EnsembleSession", Sequence[Candidate]]],
        failed: dict["EnsembleSession", Exception],
    ) -> dict["EnsembleSession", Sequence[Candidate]]:
        """Candidates of each prompt that the filter does not reject."""
        if self.filter is None:
            return dict(asked)
        is_open = self.filter_when == "always"
        judged = {
            session: [c for c in candidates if is_open or c.state == "complete"]
            for session, candidates in asked
        }
        verdicts = self._ask(-1, judged, failed)
        passing: dict[EnsembleSession, Sequence[Candidate]] = {}
        for session, candidates in asked:
            if session in verdicts:
                pairs = zip(judged[session], verdicts[session], strict=True)
                rejected = {candidate.index for candidate, verdict in pairs if verdict <= 0}
                passing[session] = [
                    candidate for candidate in candidates if candidate.index not in rejected
                ]
        return passing

    def _ask(
        self,
        number: int,
        shown: Mapping["EnsembleSession", Sequence[Candidate]],
        failed: dict["EnsembleSession", Exception],
    ) -> dict["EnsembleSession", list[float]]:
        """What one judge gives for the candidates of each prompt, but of those on which it
        fails: they are noted.
        """
        judge = self.judges[number]
        found: dict[EnsembleSession, list[float]] = {session: [] for session in shown}
        asked = [(session, candidates) for session, candidates in shown.items() if candidates]
        given = score_together(
            judge, [(session.sessions[number], candidates) for session, candidates in asked]
        )
        for (session, candidates), scores in zip(asked, given, strict=True):
            try:
                found[session] = _checked(judge.name, candidates, scores)
            except Exception as error:
                failed[session] = error
                del found[session]
        return found

    def penalty(self, candidate: Candidate) -> float:
        """What length and truncation add to the combined score: nothing, or usually something
        below 0.
        """
        cut_off = self.truncated if candidate.finish_reason == "length" else 0.0
        return cut_off - self.length_penalty * len(candidate.token_ids)


class EnsembleSession:
    """The scoring of one prompt's candidates by all members.

    Attributes:
        sessions: of the reward's judges, in their order.
        num_tokens: tokens that all of them have read.
        num_comparisons: of those that compare.
        reuse: the least that those keep which read tokens.
        peak_kv_bytes: sum of the most that each held.
        member_scores: each member's latest score by the candidate's index, before weights, scale
            and penalties; rejected candidates stay in it.
    """

    def __init__(self, reward: EnsembleReward, messages: Sequence[Message]) -> None:
        self._reward = reward
        self.sessions: list[RewardSession] = []
        with ExitStack() as opening:
            for judge in reward.judges:
                with _naming(judge.name, "the prompt"):
                    session = open_session(judge, messages)
                opening.callback(session.close)
                self.sessions.append(session)
            self._scales = [Scale() for _ in reward.members]
            self.member_scores: dict[int, tuple[float, ...]] = {}
            self.num_tokens = self.num_comparisons = self.peak_kv_bytes = 0
            self.reuse: Reuse = "none"
            self._count()
            self._closing = opening.pop_all()

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One score for each candidate; minus infinity for those that the filter, or a member,
        rejects.

        Raises:
            RewardError: a member failed; names it and the candidate.
        """
        [scores] = self._reward.score_together([(self, candidates)])
        if isinstance(scores, BaseException):
            raise scores
        return list(scores)

    def combine(
        self,
        candidates: Sequence[Candidate],
        passing: Sequence[Candidate],
        columns: Sequence[Sequence[float]],
    ) -> list[float]:
        """One score for each candidate, from those of the members for the candidates that passed
        the filter.
        """
        self._count()
        rows = {
            candidate.index: row
            for candidate, row in zip(passing, zip(*columns, strict=True), strict=True)
        }
        rows = {index: row for index, row in rows.items() if -math.inf not in row}
        self.member_scores |= rows
        if self._reward.scale == "z" and rows:
            rows = self._scaled(rows)
        return [
            self._reward.combine(rows[c.index]) + self._reward.penalty(c)
            if c.index in rows
            else -math.inf
            for c in candidates
        ]

    def drop(self, indices: Sequence[int]) -> None:
        """Forget these candidates, in all members."""
        for judge, session in zip(self._reward.judges, self.sessions, strict=True):
            with _naming(judge.name, f"the dropped candidates {list(indices)}"):
                session.drop(indices)

    def close(self) -> None:
        """Free what members hold, all of them even if one fails."""
        self._closing.close()

    def _scaled(self, rows: Mapping[int, tuple[float, ...]]) -> dict[int, tuple[float, ...]]:
        for scale, latest in zip(
            self._scales, zip(*self.member_scores.values(), strict=True), strict=True
        ):
            scale.fit(latest)
        return {
            index: tuple(scale.apply(score) for scale, score in zip(self._scales, row, strict=True))
            for index, row in rows.items()
        }

    def _count(self) -> None:
        self.num_tokens = sum(session.num_tokens for session in self.sessions)
        self.num_comparisons = sum(getattr(one, "num_comparisons", 0) for one in self.sessions)
        self.peak_kv_bytes = sum(session.peak_kv_bytes for session in self.sessions)
        kept: list[Reuse] = [session.reuse for session in self.sessions if session.num_tokens]
        self.reuse = min(kept, key=_REUSES.index, default="none")


def _flops_per_token(judges: Sequence[Reward]) -> float | None:
    """Of all that read tokens, where they have the same; who costs nothing reads none."""
    figures = {judge.flops_per_token for judge in judges} - {0.0}
    return None if len(figures) > 1 else next(iter(figures), 0.0)


def _checked(name: str, candidates: Sequence[Candidate], scores: Scores) -> list[float]:
    """What a judge gave, if it can be used; raises what it failed with."""
    with _naming(name, f"candidates {candidates[0].index} to {candidates[-1].index}"):
        if isinstance(scores, BaseException):
            raise scores
        return checked_scores(name, candidates, scores)


def _naming(name: str, subject: str) -> AbstractContextManager[None]:
    """Say which member failed, on what."""
    return failing_as(f"the member {name!r} of the ensemble failed on {subject}")


def parse_ensemble(argument: str = "") -> EnsembleReward:
    """The ensemble that `ensemble:ARGUMENT` means.

    Raises:
        UsageError: malformed members or options; says what is expected.
        UnknownNameError: a member or an option that nobody knows.
    """
    spec = read_spec(argument)
    return EnsembleReward(spec.members, spec.weights, **spec.options, filter=spec.filter)
