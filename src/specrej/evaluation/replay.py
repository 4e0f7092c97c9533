"""What Speculative Rejection would have done on a trace: the same decisions, tokens and winner as a
live run.

    replayer = Replayer(trace, rescore)  # rescore: for lengths that are no checkpoints; may be None
    outcome = replayer.run(ReplayPolicy(alpha=0.5, decide="at:16,32", n=64, memory="64MiB"))
    outcome.reward, outcome.num_generated_tokens, outcome.decisions

Rejecting candidates never changes the others, so a trace of Best-of-N holds what any policy on its
first n candidates would have seen. A replay goes from event to event, these being: the block of KV
is full, the schedule asks, the last candidate ends. It follows `search`, `policies` and the growth
rule of `KvLayout`; the rules of rejection are theirs. What it does not follow is a device that runs
out of memory within the budget.
"""

import math
import reprlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from specrej.errors import BudgetError, RewardError, UsageError
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.trace import Trace
from specrej.memory import format_bytes
from specrej.messages import as_messages
from specrej.rewards.base import Reward, open_session
from specrej.rewards.scores import failing_as
from specrej.search.choosing import all_rejected, rank
from specrej.types import Candidate, Cause, Standing


class ReplayedDecision(NamedTuple):
    """See `specrej.types.Decision`."""

    cause: Cause
    num_tokens: int
    scored: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedRun:
    """One policy on one prompt.

    Attributes:
        best: index of the winner.
        reward: its reward.
        num_tokens: tokens that each candidate generated.
        is_rejected: whether each candidate was rejected; the others are complete.
        decisions: oldest first.
        num_scored_tokens: tokens of the texts that the reward read, the prompt with each, as the
            generator counts them.
        num_stale: rewards that were older than the decision they served; 0 means that the replay is
            exact.
        flops: prefill, decoding and reward; None where the reward does not say what a token costs
            it. What the reward reads is taken to grow with num_scored_tokens as it did in the
            recorded run.
        regret: what the best candidate of the whole trace has above the winner; 0 where it was not
            lost.
    """

    best: int
    reward: float
    num_tokens: tuple[int, ...]
    is_rejected: tuple[bool, ...]
    decisions: tuple[ReplayedDecision, ...]
    num_scored_tokens: int
    num_stale: int
    flops: float | None
    regret: float

    @property
    def num_generated_tokens(self) -> int:
        """Rejected ones included."""
        return sum(self.num_tokens)


Rescore = Callable[[Trace, Sequence[int], int], list[float]]
"""Rewards that a trace does not hold: of these candidates, all live at that length, on so many
first tokens."""


class Rescorer:
    """Scores prefixes of a trace's candidates with the reward it was recorded with, each of them
    once.

    Args:
        reward: the reward of the trace.
        decode: text of token ids, as the engine of the trace gives it.
    """

    def __init__(self, reward: Reward, decode: Callable[[Sequence[int]], str]) -> None:
        self._reward = reward
        self._decode = decode
        self._known: dict[tuple[str, int, int], float] = {}

    def __call__(self, trace: Trace, indices: Sequence[int], num_tokens: int) -> list[float]:
        """See `Rescore`.

        Raises:
            RewardError: the reward is not the trace's, or failed.
        """
        if self._reward.name != trace.settings["reward"]:
            raise RewardError(
                f"the trace was recorded with the reward {trace.settings['reward']!r}, not "
                f"{self._reward.name!r}",
                hint="give the reward of the trace, or none",
            )
        places = [(trace.prompt_id, index, num_tokens) for index in indices]
        missing = [place for place in places if place not in self._known]
        if missing:
            prefixes = [self._prefix(trace, index, num_tokens) for _, index, _ in missing]
            self._known.update(zip(missing, self._score(trace, prefixes), strict=True))
        return [self._known[place] for place in places]

    def _prefix(self, trace: Trace, index: int, num_tokens: int) -> Candidate:
        ids = trace.token_ids[index][:num_tokens].tolist()
        logprobs = trace.logprobs[index][:num_tokens].tolist()
        # A candidate that goes on has met no stop string, so nothing is to be cut off its text.
        return Candidate(index, ids, logprobs, self._decode(ids))

    def _score(self, trace: Trace, prefixes: Sequence[Candidate]) -> list[float]:
        session = open_session(self._reward, as_messages(trace.messages))
        try:
            with failing_as(
                f"the reward {self._reward.name!r} failed on partial answers to {trace.prompt_id!r}"
            ):
                scores = [float(score) for score in session.score(prefixes)]
        finally:
            session.close()
        if len(scores) != len(prefixes) or not all(map(math.isfinite, scores)):
            raise RewardError(
                f"the reward {self._reward.name!r} must give {len(prefixes)} finite numbers, got "
                f"{reprlib.repr(scores)}"
            )
        return scores


class Replayer:
    """Replays policies on one trace; what they have in common is worked out once.

    Args:
        trace: of one prompt.
        rescore: gives rewards at lengths that are no checkpoints, and makes the replay exact.
            Without it the reward at the last checkpoint before is taken, and the outcome says how
            often.
    """

    def __init__(self, trace: Trace, rescore: Rescore | None = None) -> None:
        self._trace = trace
        self._rescore = rescore
        self._lengths: list[int] = trace.lengths.tolist()
        self._finals: list[float] = trace.final_rewards.tolist()
        self._by_checkpoint: list[list[float]] = trace.rewards.T.tolist()

    def run(self, policy: ReplayPolicy) -> ReplayedRun:
        """What this policy would have done.

        Raises:
            UsageError: the policy begins more candidates than the trace has, decides before its
                first checkpoint and nothing rescores, or rejects everybody.
            BudgetError: the policy's memory does not hold one candidate.
            RewardError: rescoring failed.
        """
        log = self._play(policy)
        num_begun = log.num_begun
        left = [index for index in range(num_begun) if not log.is_rejected[index]]
        if not left:
            raise all_rejected(num_begun)
        best = min(left, key=lambda index: rank(self._finals[index], index))
        return ReplayedRun(
            best=best,
            reward=self._finals[best],
            num_tokens=tuple(log.num_tokens[:num_begun]),
            is_rejected=tuple(log.is_rejected[:num_begun]),
            decisions=tuple(log.decisions),
            num_scored_tokens=log.num_scored_tokens,
            num_stale=log.num_stale,
            flops=self._flops(log),
            regret=max(self._finals) - self._finals[best],
        )

    def recorded(self) -> tuple[ReplayedDecision, ...]:
        """The decisions of the run that was recorded: who was scored together, and when."""
        return tuple(self._recorded.decisions)

    @property
    def num_recorded_tokens(self) -> int:
        """Tokens that the reward of that run read; see `ReplayedRun.num_scored_tokens`."""
        return self._recorded.num_scored_tokens

    @cached_property
    def _recorded(self) -> "_Log":
        checkpoints = ",".join(map(str, self._trace.checkpoints))
        return self._play(
            ReplayPolicy(alpha=0.0, decide=f"at:{checkpoints}", n=self._trace.num_candidates)
        )

    def _play(self, policy: ReplayPolicy) -> "_Log":
        log = _Log(self._trace.num_prompt_tokens, self._lengths)
        budget = self._budget(policy)
        for wave in self._waves(policy, budget):
            first, log.num_begun = log.num_begun, log.num_begun + wave
            self._run_wave(range(first, log.num_begun), policy, budget, log)
        return log

    def _flops(self, log: "_Log") -> float | None:
        if self._reward_flops is None or self._model_flops is None:
            return None
        prefill, by_length = self._model_flops
        decode = sum(by_length[length] for length in log.num_tokens[: log.num_begun])
        return prefill + decode + self._reward_flops * log.num_scored_tokens

    @cached_property
    def _model_flops(self) -> tuple[float, list[float]] | None:
        """Of prefilling, and of answers by their length in tokens."""
        trace = self._trace
        if trace.flops is None:
            return None
        lengths = range(trace.max_new_tokens + 1)
        by_length = trace.flops.decode_each(trace.num_prompt_tokens, lengths).tolist()
        return trace.flops.prefill(trace.num_prompt_tokens), by_length

    @cached_property
    def _reward_flops(self) -> float | None:
        """Of a token that was scored, from the recorded run."""
        trace = self._trace
        if trace.reward_flops_per_token is None:
            return None
        return (
            trace.reward_flops_per_token
            * float(trace.usage["reward_tokens"])
            / self.num_recorded_tokens
        )

    def _budget(self, policy: ReplayPolicy) -> int:
        trace = self._trace
        budget = trace.memory_bytes if policy.memory_bytes is None else policy.memory_bytes
        needed = trace.layout.peak_bytes(
            trace.num_prompt_tokens, 1, max(trace.max_new_tokens, 2) - 1
        )
        if needed > budget:
            raise BudgetError(
                f"a memory of {format_bytes(budget)} does not hold one candidate of the prompt "
                f"{trace.prompt_id!r}",
                hint=f"give a memory of at least {format_bytes(needed)}",
            )
        return budget

    def _fitting(self, num_tokens: int, budget: int) -> int:
        """Most candidates that can have num_tokens each within the budget."""
        layout, num_prompt = self._trace.layout, self._trace.num_prompt_tokens
        room = budget - layout.peak_bytes(num_prompt, 0, 0)
        return room // layout.peak_bytes(0, 1, max(num_tokens, 2) - 1)

    def _waves(self, policy: ReplayPolicy, budget: int) -> Iterator[int]:
        full = self._trace.max_new_tokens
        fitting = self._fitting(min(policy.rule.first_tokens or full, full), budget)
        begins = policy.rule.n if policy.n == "auto" else int(policy.n)
        left = fitting if begins is None else begins
        if left > len(self._lengths):
            raise UsageError(
                f"the policy begins {left} candidates; the trace of {self._trace.prompt_id!r} has "
                f"{len(self._lengths)}",
                hint="give a smaller n or memory, or record a larger trace",
            )
        while left > 0:
            yield min(left, fitting)
            left -= fitting

    def _run_wave(self, wave: range, policy: ReplayPolicy, budget: int, log: "_Log") -> None:
        batch, last, slots = list(wave), 0, 0
        while batch:
            ends = sorted(self._lengths[index] for index in batch)
            scheduled = policy.next_scheduled(last, self._trace.max_new_tokens)
            cause, length, slots = self._next_decision(ends, scheduled, slots, budget)
            scores = self._scores(batch, length, log)
            is_live = [self._lengths[index] > length for index in batch]
            stays = policy.rule.keep(Standing(length, scores, is_live, log.best))
            going_on = [place for place, stay in enumerate(stays) if stay and is_live[place]]
            room = self._fitting(length + 1, budget)
            if len(going_on) > room:
                going_on.sort(key=lambda place: rank(scores[place], place))
                for place in going_on[room:]:
                    stays[place] = False
                going_on = sorted(going_on[:room])
            log.decide(cause, length, batch, stays)
            log.complete(
                score
                for score, stay, live in zip(scores, stays, is_live, strict=True)
                if stay and not live
            )
            batch, last = [batch[place] for place in going_on], length

    def _next_decision(
        self, ends: list[int], scheduled: int, slots: int, budget: int
    ) -> tuple[Cause, int, int]:
        """Why and at which length the next decision comes, and the slots of the block by then.

        `ends` are the lengths of the batch's candidates, rising. A block of s slots is full at
        length s + 1, since the newest token has no KV yet.
        """
        trace = self._trace
        layout, num_prompt, max_slots = (
            trace.layout,
            trace.num_prompt_tokens,
            trace.max_new_tokens - 1,
        )
        while True:
            full = slots + 1
            length = min(full, scheduled, ends[-1])
            if length == ends[-1]:
                return "complete", length, slots
            num_live = len(ends) - bisect_right(ends, length)
            if length == full and layout.peak_bytes(num_prompt, num_live, full) > budget:
                return "budget", length, slots
            if length == scheduled:
                return "schedule", length, slots
            slots = layout.grown_slots(num_prompt, num_live, slots, max_slots, budget)

    def _scores(self, batch: Sequence[int], length: int, log: "_Log") -> list[float]:
        """The rewards of the batch on its text at this length."""
        live = [index for index in batch if self._lengths[index] > length]
        place = bisect_right(self._trace.checkpoints, length) - 1
        is_recorded = place >= 0 and self._trace.checkpoints[place] == length
        if live and self._rescore and not is_recorded:
            partial = dict(zip(live, self._rescore(self._trace, live, length), strict=True))
        elif live and place < 0:
            raise UsageError(
                f"the policy decides at {length} tokens of the prompt {self._trace.prompt_id!r}, "
                "and the trace has no "
                f"reward before {self._trace.checkpoints[0]}",
                hint="give the reward, so that it scores what the trace does not hold, or a larger "
                "memory",
            )
        else:
            partial = {index: self._by_checkpoint[place][index] for index in live}
            log.num_stale += 0 if is_recorded else len(live)
        return [partial.get(index, self._finals[index]) for index in batch]


class _Log:
    """What has happened so far."""

    def __init__(self, num_prompt_tokens: int, lengths: Sequence[int]) -> None:
        self.num_begun = 0
        self.num_tokens = list(lengths)
        self.is_rejected = [False] * len(lengths)
        self.decisions: list[ReplayedDecision] = []
        self.num_scored_tokens = self.num_stale = 0
        self.best: float | None = None
        """The highest reward of those that are complete and can win."""
        self._num_prompt_tokens = num_prompt_tokens

    def complete(self, rewards: Iterable[float]) -> None:
        """Take note of candidates that are complete and can win."""
        known = [] if self.best is None else [self.best]
        self.best = max([*known, *rewards], default=None)

    def decide(
        self, cause: Cause, length: int, scored: Sequence[int], stays: Sequence[bool]
    ) -> None:
        self.num_scored_tokens += sum(
            self._num_prompt_tokens + min(self.num_tokens[index], length) for index in scored
        )
        rejected = [index for index, is_kept in zip(scored, stays, strict=True) if not is_kept]
        for index in rejected:
            self.is_rejected[index] = True
            self.num_tokens[index] = min(self.num_tokens[index], length)
        self.decisions.append(ReplayedDecision(cause, length, tuple(scored), tuple(rejected)))
