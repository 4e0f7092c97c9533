"""One prompt's run: its candidates, and the verbs an algorithm is written in: waves, start, keep.

A search holds text, rewards and fates; the engine holds tokens and memory. An algorithm sees a
`SearchView` of it. The scheduler hands it the tokens of each step and the scores of each decision.
Candidates of the current wave that are neither rejected nor done with are its batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specrej.attention.layout import Demand
from specrej.engines.base import Engine, Memory, Token
from specrej.errors import contained
from specrej.messages import as_conversation
from specrej.rewards.base import Reward, Scores
from specrej.search.answers import Answers
from specrej.search.budget import Budget, Total
from specrej.search.checks import (
    check_fork,
    check_start,
    check_tokens,
    checked_fates,
    engine_at_work,
)
from specrej.search.choosing import choose, only, ranked, standing
from specrej.search.clock import Clock
from specrej.search.decoding import PromptEngine
from specrej.search.notes import first_notes, noted
from specrej.search.progress import Progress
from specrej.search.rewarding import PromptReward, ToScore, seen_of
from specrej.types import (
    Candidate,
    Cause,
    Decision,
    Prompt,
    Result,
    SamplingParams,
    Schedule,
    Standing,
    StepRule,
    Usage,
)
from specrej.version import __version__


class Search:
    """The candidates of one prompt, within one memory budget.

    Args:
        engine: decodes.
        reward: scores.
        prompt: a text or a conversation.
        sampling: how candidates are drawn.
        budget_bytes: KV of the prompt and its candidates; None leaves it to the engine.
        settings: what the result reports as its settings.
        total: KV that this search shares with others, of which a budget left to the engine is
            a part.

    Raises:
        PromptError: the prompt is empty, or too long for the context.
        BudgetError: the budget does not hold one candidate of full length.
    """

    def __init__(
        self,
        engine: Engine,
        reward: Reward,
        prompt: Prompt,
        sampling: SamplingParams,
        budget_bytes: int | None,
        settings: Mapping[str, Any],
        total: Total | None = None,
    ) -> None:
        asked = as_conversation(prompt)
        self._prompt = prompt if isinstance(prompt, str) else asked
        with engine_at_work():
            self.prompt_ids = engine.encode(self._prompt)
            sees = seen_of(settings, engine.detokenizer(self._prompt))
        self.sampling = sampling
        self._budget = Budget(
            engine, len(self.prompt_ids), sampling.max_new_tokens, budget_bytes, total
        )
        self._most_candidates = None if total is None else total.most_candidates
        self.candidates: list[Candidate] = []
        self.batch: list[Candidate] = []
        self.decisions: list[Decision] = []
        self.usage = Usage(prompt_tokens=len(self.prompt_ids))
        self.clock = Clock(self.usage)
        self._engine = engine
        self._decoder = PromptEngine(engine, self.prompt_ids, sampling, self.usage, self.clock)
        self._answers = Answers(lambda: self._decoder.detokenizer(self._prompt), sampling.stop)
        self._reward = PromptReward(reward, asked.messages, self.usage, self.clock, sees)
        self.notes = first_notes(settings, is_greedy=sampling.is_greedy, is_split=sees is not None)
        self.votes: Mapping[str, float] | None = None
        self._settings = {**settings, "memory_bytes": self.budget_bytes}
        self._cause: Cause = "complete"
        self.progress = Progress(settings)
        self._last_length = 0
        self._num_coming = 0
        self._most_live: int | None = None
        """Candidates that the wave may have live at a time, where some of them will be forks."""
        self._lost: Token | None = None
        self._answer: Candidate | None = None
        self.number = 0
        """Which prompt of a batch it is of."""
        self.num_planned = 0
        """Candidates of all waves together."""

    # What an algorithm asks and does

    @property
    def budget_bytes(self) -> int:
        """KV that the prompt and its candidates may hold."""
        return self._budget.bytes

    @property
    def live(self) -> list[Candidate]:
        """Candidates that are being decoded."""
        return [candidate for candidate in self.batch if candidate.state == "live"]

    def waves(self, n: int | None, num_tokens: int | None) -> Iterator[int]:
        """See `SearchView.waves`."""
        fitting = self._budget.fitting(num_tokens or self.sampling.max_new_tokens)
        auto = min(fitting, self._most_candidates or fitting)
        left = self.num_planned = 1 if self.sampling.is_greedy else auto if n is None else n
        while left > 0:
            wave = min(left, fitting)
            left -= wave
            self._num_coming = min(left, fitting)
            yield wave

    def start(self, n: int, most: int | None = None) -> None:
        """See `SearchView.start`."""
        live, first = self.live, len(self.candidates)
        check_start(self._settings, n, most, live, self._most_live, is_at_work=self.is_open)
        if live:
            self._budget.check_beside(live, n)
        else:
            self.batch, self._last_length, self._most_live = [], 0, most
        begun = [Candidate(index) for index in range(first, first + n)]
        self.candidates += begun
        self.batch += begun
        self._answers.begin(range(first, first + n))
        self._decoder.add(range(first, first + n))

    def room(self, num_tokens: int) -> int:
        """See `SearchView.room`."""
        return self._budget.room(len(self.live), num_tokens)

    def fork(self, parents: Sequence[Candidate]) -> list[Candidate]:
        """See `SearchView.fork`."""
        if not parents:
            return []
        live, first = self.live, len(self.candidates)
        check_fork(self._settings, parents, live, self._most_live)
        self._budget.check_beside(live, len(parents))
        forks = [parent.fork(first + place) for place, parent in enumerate(parents)]
        indices = [fork.index for fork in forks]
        self._decoder.fork([parent.index for parent in parents], indices)
        for parent, fork in zip(parents, forks, strict=True):
            self._answers.fork(parent, fork)
        self.candidates += forks
        self.batch += forks
        return forks

    def wait_after(self, ends: StepRule) -> None:
        """See `SearchView.wait_after`."""
        self._answers.ends = ends

    def standing(self, scores: Sequence[float]) -> Standing:
        """See `SearchView.standing`."""
        return standing(self.candidates, self.batch, scores)

    def keep(self, is_kept: Sequence[bool]) -> None:
        """See `SearchView.keep`."""
        scored, fates = self.batch, checked_fates(self._settings, self.batch, is_kept)
        stays = dict(zip((c.index for c in scored), fates, strict=True))
        going_on = ranked(c for c in scored if stays[c.index] and c.state == "live")
        for candidate in self._budget.surplus(going_on, self.memory().ahead_tokens):
            stays[candidate.index] = False
        if scored:  # a filter may have left nobody
            self._decide(self._cause, scored, [c for c in scored if not stays[c.index]])
        self.batch = self.live

    # What the scheduler asks and does

    @property
    def is_open(self) -> bool:
        """Whether the engine holds something of this prompt."""
        return self._decoder.is_open

    @property
    def handle(self) -> int:
        """The engine's number for this prompt, while it is open."""
        return self._decoder.handle

    def open(self) -> None:
        """Prefill the prompt, and open the reward on it."""
        self._decoder.open(self.budget_bytes)
        self._reward.open()

    def due(self, schedule: Schedule) -> Cause | None:
        """Why to decide before the next step, or None. A schedule is asked once a length."""
        live = self.live
        if not live:
            return "complete"
        if self.memory().next_step > self.budget_bytes:
            return "budget"
        if self._answers.all_wait(live):
            return "schedule"
        if not self.progress.is_new(self.usage.generated_tokens):
            return None
        with contained("the schedule"):
            longest = max(len(candidate.token_ids) for candidate in live)
            self._last_length = min(self._last_length, longest)  # who was longer has ended
            return "schedule" if schedule(longest, self._last_length) else None

    def begin_decision(self, cause: Cause) -> None:
        """Make the batch ready to be scored: its texts are written. What is decided then has
        this cause.

        Raises:
            UsageError: nothing has changed since the last decision.
        """
        self.progress.decide(self.candidates, self.usage.generated_tokens)
        self._cause = cause
        self._answers.write(self.batch)

    def to_score(self) -> ToScore:
        """The batch, who is scored beside it, and the session that is to score them."""
        return self._reward.to_score(self.batch, self.candidates)

    def take_scores(self, given: Scores) -> list[float]:
        """The scores of the batch, in its order; `given` is what the reward gave or raised.

        Candidates that score minus infinity are rejected at once, and are no longer part of the
        batch. Those that waited go on.

        Raises:
            RewardError: the reward failed, or gave NaN, infinity or no number; names the candidate.
        """
        if self._answers.waiting:
            self._answers.go_on(self.live)
            self._decoder.hold([])
        if not self.batch:
            return []
        scores = self._reward.checked(self.batch, given)
        failed = [c for c, score in zip(self.batch, scores, strict=True) if score == -math.inf]
        if failed:
            self._decide("filter", failed, failed)
        passed = [score for score in scores if score > -math.inf]
        again = self._reward.scored_again
        for candidate, score in (*again, *zip(self.batch, passed, strict=True)):
            candidate.rewards[len(self.decisions)] = score
        return passed

    def memory(self) -> Memory:
        """KV held for this prompt."""
        return self._decoder.memory()

    def demand(self) -> Demand:
        """What the prompt and its candidates take of memory that searches share."""
        return self._decoder.demand(self.most_bytes())

    def most_bytes(self) -> int:
        """The most that blocks made from now on will hold, with the prompt."""
        num_live = len(self.live)
        most_live = self._most_live if num_live and self._most_live else num_live
        return self._budget.most_bytes(max(most_live, self._num_coming))

    def first_bytes(self) -> int:
        """What must be free to begin."""
        return self._budget.first_bytes()

    @engine_at_work()
    def receive(self, tokens: Sequence[Token], seconds: float) -> None:
        """Take the tokens of one step and this search's share of its seconds.

        Raises:
            EngineError: one is of nobody who is being decoded.
        """
        check_tokens(tokens, self.candidates)
        drawn = [token for token in tokens if token.finish_reason != "lost"]
        stopped = [
            token.candidate
            for token in drawn
            if self._answers.take(self.candidates[token.candidate], token)
        ]
        if stopped:
            self._decoder.drop(stopped)
        if len(drawn) < len(tokens):
            self._lose([token for token in tokens if token.finish_reason == "lost"])
        if self._answers.waiting:
            self._decoder.hold(self._answers.waiting_of(self.live))
        self.usage.generated_tokens += len(drawn)
        self.clock.add("decode_s", seconds)
        self.usage.num_steps += 1
        self._decoder.note()

    @property
    def winner(self) -> Candidate | None:
        """The candidate that will be the answer, whatever comes: the only one left. None while
        there are others.

        A reward that filters can still leave nobody.
        """
        return None if self._num_coming else only(self.candidates, self.batch)

    def text_of(self, candidate: Candidate) -> str:
        """The candidate's text so far, up to a stop string."""
        return self._answers.text_of(candidate)

    def give_up(self) -> bool:
        """Reject half of the live candidates because the device has no memory left. False if
        only one is live.
        """
        live = ranked(self.live)
        rejected = live[(len(live) + 1) // 2 :]
        if rejected:
            self._answers.write(rejected)
            self._decide("out_of_memory", live, rejected)
        return bool(rejected)

    def end(self, answer: object = None) -> None:
        """The algorithm has ended, with this answer: who is live now is rejected.

        Raises:
            UsageError: it began nobody, left live ones and nobody complete, or the answer is none.
        """
        if live := self.live:
            self._decide(self._cause, live, live)
        self._answer = self.progress.answered(self.candidates, len(live), answer)
        self.batch = []

    def close(self) -> None:
        """Free what engine and reward hold."""
        try:
            self._reward.close()
        finally:
            self._decoder.close()

    def result(self) -> Result:
        """The algorithm's answer, else what `choosing.choose` says, or raises."""
        self._answers.write(self.batch)
        best = self._answer or choose(
            self.candidates, self.decisions, self._reward.name, self._lost
        )
        own = {**noted(self.notes), "reward": self._reward.name}
        return Result(
            best=best,
            candidates=tuple(self.candidates),
            decisions=tuple(self.decisions),
            usage=self.usage,
            seed=self.sampling.seed,
            settings={**self._settings, **self._engine.describe(), **own},
            versions={"specrej": __version__, **self._engine.versions()},
            is_complete=not self.batch,
            votes=self.votes,
        )

    # How

    def _lose(self, tokens: Sequence[Token]) -> None:
        """Take note of candidates that the engine lost: they are rejected, and the others go on."""
        lost = [self.candidates[token.candidate] for token in tokens]
        for candidate in lost:
            candidate.finish_reason = "lost"
        self._answers.write(lost)
        self._lost = tokens[-1]
        self._decide("lost", lost, lost)

    def _decide(
        self, cause: Cause, scored: Sequence[Candidate], rejected: Sequence[Candidate]
    ) -> None:
        before = self.memory().in_use
        length = max(len(candidate.token_ids) for candidate in scored)
        dropped = [c.index for c in rejected if c.state == "live" and c.finish_reason != "lost"]
        for candidate in rejected:
            candidate.state = "rejected"
        self.batch = [candidate for candidate in self.batch if candidate.state != "rejected"]
        self._decoder.drop(dropped)
        indices = [candidate.index for candidate in rejected]
        self._reward.drop(indices)
        kept_rewards = [c.reward for c in scored if c.state != "rejected" and c.reward is not None]
        self.decisions.append(
            Decision(
                cause=cause,
                num_tokens=length,
                scored=tuple(candidate.index for candidate in scored),
                rejected=tuple(indices),
                cut=min(kept_rewards) if rejected and kept_rewards else None,
                kv_bytes=before,
                kv_bytes_after=self.memory().in_use,
            )
        )
        if cause != "lost":  # which comes at any moment: a schedule counts on from where it was
            self._last_length = length
        self._decoder.note()
