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
from specrej.search.budget import Budget, Total
from specrej.search.checks import check_start, check_tokens, checked_fates, engine_at_work
from specrej.search.choosing import choose, ranked, standing
from specrej.search.clock import Clock
from specrej.search.progress import Progress
from specrej.search.rewarding import PromptReward, ToScore, seen_of
from specrej.search.stopping import AnswerText
from specrej.types import (
    GREEDY_NOTE,
    Candidate,
    Cause,
    Decision,
    Prompt,
    Result,
    SamplingParams,
    Schedule,
    Standing,
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
        self.sampling = sampling
        self._budget = Budget(
            engine, len(self.prompt_ids), sampling.max_new_tokens, budget_bytes, total
        )
        self._most_candidates = None if total is None else total.most_candidates
        self.candidates: list[Candidate] = []
        self._texts: dict[int, AnswerText] = {}
        """By the number of the candidate."""
        self.batch: list[Candidate] = []
        self.decisions: list[Decision] = []
        self.usage = Usage(prompt_tokens=len(self.prompt_ids))
        self.clock = Clock(self.usage)
        self._engine = engine
        sees = seen_of(settings, engine.detokenizer(self._prompt))
        self._reward = PromptReward(reward, asked.messages, self.usage, self.clock, sees)
        noted = {"note": GREEDY_NOTE} if sampling.is_greedy else {}
        self._settings = {**settings, **noted, "memory_bytes": self.budget_bytes}
        self._handle: int | None = None
        self._cause: Cause = "complete"
        self.progress = Progress(settings)
        self._last_length = 0
        self._num_coming = 0
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
        num_tokens = min(num_tokens or self.sampling.max_new_tokens, self.sampling.max_new_tokens)
        fitting = self._budget.fitting(num_tokens)
        auto = min(fitting, self._most_candidates or fitting)
        left = self.num_planned = 1 if self.sampling.is_greedy else auto if n is None else n
        while left > 0:
            wave = min(left, fitting)
            left -= wave
            self._num_coming = min(left, fitting)
            yield wave

    @engine_at_work()
    def start(self, n: int) -> None:
        """See `SearchView.start`."""
        check_start(self._settings, n, self.live, is_at_work=self.is_open)
        first = len(self.candidates)
        self.batch = [Candidate(index) for index in range(first, first + n)]
        self.candidates += self.batch
        self._texts |= {
            candidate.index: AnswerText(self._engine.detokenizer(self._prompt), self.sampling.stop)
            for candidate in self.batch
        }
        self._last_length = 0
        self._engine.add(self.handle, range(first, first + n))

    def standing(self, scores: Sequence[float]) -> Standing:
        """See `SearchView.standing`."""
        return standing(self.candidates, self.batch, scores)

    def keep(self, is_kept: Sequence[bool]) -> None:
        """See `SearchView.keep`."""
        scored, fates = self.batch, checked_fates(self._settings, self.batch, is_kept)
        stays = dict(zip((c.index for c in scored), fates, strict=True))
        going_on = ranked(c for c in scored if stays[c.index] and c.state == "live")
        if going_on:
            for candidate in going_on[self._budget.fitting(len(going_on[0].token_ids) + 1) :]:
                stays[candidate.index] = False
        if scored:  # a filter may have left nobody
            self._decide(self._cause, scored, [c for c in scored if not stays[c.index]])
        self.batch = self.live

    # What the scheduler asks and does

    @property
    def is_open(self) -> bool:
        """Whether the engine holds something of this prompt."""
        return self._handle is not None

    @property
    def handle(self) -> int:
        """The engine's number for this prompt, while it is open."""
        assert self._handle is not None
        return self._handle

    def open(self) -> None:
        """Prefill the prompt, and open the reward on it."""
        with self.clock.span("prefill_s"), engine_at_work():
            self._handle = self._engine.open(self.prompt_ids, self.sampling, self.budget_bytes)
        self.usage.shared_prompt_tokens = self._engine.num_shared(self._handle)
        self._reward.open()

    def due(self, schedule: Schedule) -> Cause | None:
        """Why to decide before the next step, or None. A schedule is asked once a length."""
        live = self.live
        if not live:
            return "complete"
        if self.memory().next_step > self.budget_bytes:
            return "budget"
        if not self.progress.is_new(self.usage.generated_tokens):
            return None
        with contained("the schedule"):
            return "schedule" if schedule(len(live[0].token_ids), self._last_length) else None

    def begin_decision(self, cause: Cause) -> None:
        """Make the batch ready to be scored: its texts are written. What is decided then has
        this cause.

        Raises:
            UsageError: nothing has changed since the last decision.
        """
        self.progress.decide(self.candidates, self.usage.generated_tokens)
        self._cause = cause
        self._write_texts()

    def to_score(self) -> ToScore:
        """The batch, and the session that is to score it."""
        return self._reward.to_score(self.batch)

    def take_scores(self, given: Scores) -> list[float]:
        """The scores of the batch, in its order; `given` is what the reward gave or raised.

        Candidates that score minus infinity are rejected at once, and are no longer part of the
        batch.

        Raises:
            RewardError: the reward failed, or gave NaN, infinity or no number; names the candidate.
        """
        if not self.batch:
            return []
        scores = self._reward.checked(self.batch, given)
        failed = [c for c, score in zip(self.batch, scores, strict=True) if score == -math.inf]
        if failed:
            self._decide("filter", failed, failed)
        passed = [score for score in scores if score > -math.inf]
        for candidate, score in zip(self.batch, passed, strict=True):
            candidate.rewards[len(self.decisions)] = score
        return passed

    @engine_at_work()
    def memory(self) -> Memory:
        """KV held for this prompt."""
        return self._engine.memory(self.handle)

    def demand(self) -> Demand:
        """What the prompt and its candidates take of memory that searches share."""
        if self._engine.can_hold_back:
            return self._engine.demand(self.handle)
        most = self.most_bytes()
        return Demand(most, most, most, 0)

    def most_bytes(self) -> int:
        """The most that blocks made from now on will hold, with the prompt."""
        return self._budget.most_bytes(max(len(self.live), self._num_coming))

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
        stopped = []
        drawn = [token for token in tokens if token.finish_reason != "lost"]
        for token in drawn:
            candidate = self.candidates[token.candidate]
            candidate.take(token.token_id, token.logprob, token.top_logprobs)
            candidate.finish_reason = token.finish_reason
            if token.finish_reason != "eos" and self._has_stopped(candidate):
                candidate.finish_reason = "stop"
                if token.finish_reason is None:
                    stopped.append(candidate.index)
            if candidate.finish_reason is not None:
                candidate.state = "complete"
        if stopped:
            self._engine.drop(self.handle, stopped)
        if len(drawn) < len(tokens):
            self._lose([token for token in tokens if token.finish_reason == "lost"])
        self.usage.generated_tokens += len(drawn)
        self.clock.add("decode_s", seconds)
        self.usage.num_steps += 1
        self._note_engine()

    @property
    def winner(self) -> Candidate | None:
        """The candidate that will be the answer, whatever comes: the only one left. None while
        there are others.

        A reward that filters can still leave nobody.
        """
        if len(self.batch) != 1 or self._num_coming:
            return None
        left = [candidate for candidate in self.candidates if candidate.state != "rejected"]
        return left[0] if len(left) == 1 else None

    def text_of(self, candidate: Candidate) -> str:
        """The candidate's text so far, up to a stop string."""
        text = self._texts[candidate.index]
        text.read(candidate.token_ids)
        return text.text

    def give_up(self) -> bool:
        """Reject half of the live candidates because the device has no memory left. False if
        only one is live.
        """
        live = ranked(self.live)
        rejected = live[(len(live) + 1) // 2 :]
        if rejected:
            for candidate in rejected:
                candidate.text = self.text_of(candidate)
            self._decide("out_of_memory", live, rejected)
        return bool(rejected)

    def end(self, answer: object = None) -> None:
        """The algorithm has ended, with this answer: who is live now is rejected.

        Raises:
            UsageError: it began nobody, left live ones and nobody complete, or the answer is none.
        """
        if live := self.live:
            self._decide(self._cause, live, live)
        is_answered = any(candidate.state == "complete" for candidate in self.candidates)
        if not is_answered and (live or not self.candidates):
            raise self.progress.unanswered(len(live))
        self._answer = self.progress.answered(self.candidates, answer)
        self.batch = []

    def close(self) -> None:
        """Free what engine and reward hold."""
        try:
            self._reward.close()
        finally:
            if self._handle is not None:
                self._engine.close(self._handle)
                self._handle = None

    def result(self) -> Result:
        """What the algorithm returned as its answer, else what `choosing.choose` says.

        Raises:
            SpecrejError: nobody is left: see there.
        """
        self._write_texts()
        best = self._answer or choose(
            self.candidates, self.decisions, self._reward.name, self._lost
        )
        return Result(
            best=best,
            candidates=tuple(self.candidates),
            decisions=tuple(self.decisions),
            usage=self.usage,
            seed=self.sampling.seed,
            settings={**self._settings, **self._engine.describe(), "reward": self._reward.name},
            versions={"specrej": __version__, **self._engine.versions()},
            is_complete=not self.batch,
        )

    # How

    def _lose(self, tokens: Sequence[Token]) -> None:
        """Take note of candidates that the engine lost: they are rejected, and the others go on."""
        lost = [self.candidates[token.candidate] for token in tokens]
        for candidate in lost:
            candidate.finish_reason = "lost"
            candidate.text = self.text_of(candidate)
        self._lost = tokens[-1]
        self._decide("lost", lost, lost)

    def _note_engine(self) -> None:
        """What the engine says of its work so far."""
        self.usage.peak_kv_bytes = self.memory().peak
        overhead = self._engine.overhead(self.handle)
        self.usage.unused_tokens = overhead.unused_tokens
        self.usage.reread_tokens = overhead.reread_tokens
        self.usage.num_preemptions = overhead.num_preemptions

    @engine_at_work()
    def _decide(
        self, cause: Cause, scored: Sequence[Candidate], rejected: Sequence[Candidate]
    ) -> None:
        before = self.memory().in_use
        length = max(len(candidate.token_ids) for candidate in scored)
        dropped = [c.index for c in rejected if c.state == "live" and c.finish_reason != "lost"]
        for candidate in rejected:
            candidate.state = "rejected"
        self.batch = [candidate for candidate in self.batch if candidate.state != "rejected"]
        self._engine.drop(self.handle, dropped)
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
        self._note_engine()

    def _write_texts(self) -> None:
        for candidate in self.batch:
            candidate.text = self.text_of(candidate)

    def _has_stopped(self, candidate: Candidate) -> bool:
        if not self.sampling.stop:
            return False
        self.text_of(candidate)
        return self._texts[candidate.index].has_stopped
