"""One prompt's run: its candidates, and the verbs an algorithm is written in: waves, start, keep.

A search holds text, rewards and fates; the engine holds tokens and memory. The scheduler hands it the tokens of each
step and the scores of each decision. Candidates of the current wave that are neither rejected nor done with are its
batch.
"""

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from specrej.choosing import choose, ranked
from specrej.engines.base import Claim, Engine, Memory, Token
from specrej.errors import BudgetError, PromptError, SpecrejError, UsageError
from specrej.memory import format_bytes
from specrej.policies import Schedule
from specrej.rewards.base import Reward, RewardSession, Scores
from specrej.rewards.scores import checked_scores, failing_as
from specrej.stopping import AnswerText
from specrej.types import GREEDY_NOTE, Candidate, Cause, Decision, Prompt, Result, SamplingParams, Usage, as_messages
from specrej.version import __version__

_LOG = logging.getLogger("specrej")


class Search:
    """The candidates of one prompt, within one memory budget.

    Args:
        engine: decodes.
        reward: scores.
        prompt: a text or a conversation.
        sampling: how candidates are drawn.
        budget_bytes: KV of the prompt and its candidates; None leaves it to the engine.
        settings: what the result reports as its settings.
        total_bytes: KV that this search shares with others, of which a budget left to the engine is a part.

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
        total_bytes: int | None = None,
    ) -> None:
        self.messages = as_messages(prompt)
        self._prompt = prompt if isinstance(prompt, str) else tuple(self.messages)
        self.prompt_ids = engine.encode(self._prompt)
        # To a reward, the beginning of an answer that was given and what goes on with it are one answer.
        self._beginning = self.messages.pop()["content"] if self.messages[-1]["role"] == "assistant" else ""
        self.sampling = sampling
        # The first token costs no KV. Counted like the second, it limits the number of candidates all the same.
        num_new = max(sampling.max_new_tokens, 2)
        self.budget_bytes = budget_bytes or engine.default_budget(len(self.prompt_ids), num_new, total_bytes)
        self.candidates: list[Candidate] = []
        self._texts: list[AnswerText] = []
        """By the number of the candidate."""
        self.batch: list[Candidate] = []
        self.decisions: list[Decision] = []
        self.usage = Usage(prompt_tokens=len(self.prompt_ids))
        self._engine = engine
        self._reward = reward
        noted = {"note": GREEDY_NOTE} if sampling.is_greedy else {}
        self._settings = {**settings, **noted, "memory_bytes": self.budget_bytes}
        self._handle = -1
        self._session: RewardSession | None = None
        self._cause: Cause = "complete"
        self._last_length = 0
        self._num_coming = 0
        self._lost = ""
        self.num_planned = 0
        """Candidates of all waves together."""
        self._check()

    def _check(self) -> None:
        num_prompt, num_new = len(self.prompt_ids), self.sampling.max_new_tokens
        context = self._engine.context_tokens
        if num_prompt + 1 > context:
            raise PromptError(f"the prompt has {num_prompt} tokens, the model's context {context}")
        if num_prompt + num_new > context:
            raise UsageError(
                f"the prompt's {num_prompt} tokens and max_new_tokens={num_new} exceed the context of {context}",
                hint=f"give max_new_tokens of at most {context - num_prompt}",
            )
        capacity = self._engine.capacity_bytes
        if capacity is not None and self.budget_bytes > capacity:
            raise BudgetError(
                f"a budget of {format_bytes(self.budget_bytes)} is more than the {format_bytes(capacity)} of KV that "
                f"the engine holds",
                hint=f"give a memory of at most {format_bytes(capacity)}, or open the engine with a larger KV cache",
            )
        needed = self._kv_bytes(1, num_new)
        if needed > self.budget_bytes:
            raise BudgetError(
                f"a budget of {format_bytes(self.budget_bytes)} does not hold one candidate: {num_prompt} prompt "
                f"tokens and {num_new} new ones need {format_bytes(needed)}",
                hint=f"give a memory of at least {format_bytes(needed)}, or fewer max_new_tokens",
            )

    # What an algorithm asks and does

    @property
    def live(self) -> list[Candidate]:
        """Candidates that are being decoded."""
        return [candidate for candidate in self.batch if candidate.state == "live"]

    def waves(self, n: int | None, num_tokens: int | None) -> Iterator[int]:
        """Sizes of the waves in which n candidates begin, each as large as the budget carries to num_tokens.

        n None is one such wave; num_tokens None is the full length. A greedy run is one candidate: all would be alike.
        """
        num_tokens = min(num_tokens or self.sampling.max_new_tokens, self.sampling.max_new_tokens)
        fitting = self._fitting(num_tokens)
        left = self.num_planned = 1 if self.sampling.is_greedy else fitting if n is None else n
        while left > 0:
            wave = min(left, fitting)
            left -= wave
            self._num_coming = min(left, fitting)
            yield wave

    def start(self, n: int) -> None:
        """Begin n new candidates."""
        first = len(self.candidates)
        self.batch = [Candidate(index) for index in range(first, first + n)]
        self.candidates += self.batch
        self._texts += [AnswerText(self._engine.detokenizer(self._prompt), self.sampling.stop) for _ in self.batch]
        self._last_length = 0
        self._engine.add(self._handle, range(first, first + n))

    def keep(self, is_kept: Sequence[bool]) -> None:
        """Let these of the scored batch stay and reject the others, and so many more that the next step fits.

        Those that stay and are complete can win; those that stay and are live go on.
        """
        scored, stays = self.batch, dict(zip((c.index for c in self.batch), is_kept, strict=True))
        going_on = ranked(c for c in scored if stays[c.index] and c.state == "live")
        if going_on:
            for candidate in going_on[self._fitting(len(going_on[0].token_ids) + 1) :]:
                stays[candidate.index] = False
        if scored:  # a filter may have left nobody
            self._decide(self._cause, scored, [c for c in scored if not stays[c.index]])
        self.batch = self.live

    # What the scheduler asks and does

    @property
    def reward(self) -> Reward:
        return self._reward

    def write_texts(self) -> None:
        """Write the text of each candidate of the batch so far, before it is scored."""
        for candidate in self.batch:
            candidate.text = self.text_of(candidate)

    def to_score(self) -> tuple[RewardSession, list[Candidate]]:
        """The batch, its texts behind the beginning that was given, and the session that is to score it."""
        assert self._session is not None
        if not self._beginning:
            return self._session, self.batch
        return self._session, [replace(candidate, text=self._beginning + candidate.text) for candidate in self.batch]

    def take_scores(self, given: Scores) -> list[float]:
        """The scores of the batch, in its order; `given` is what the reward gave or raised.

        Candidates that score minus infinity are rejected at once, and are no longer part of the batch.

        Raises:
            RewardError: the reward failed, or gave NaN, infinity or no number; names the candidate.
        """
        if not self.batch:
            return []
        assert self._session is not None
        with self._rewarding(f"candidates {self.batch[0].index} to {self.batch[-1].index}"):
            if isinstance(given, BaseException):
                raise given
            scores = checked_scores(self._reward.name, self.batch, given)
            self.usage.reward_tokens = self._session.num_tokens
            # A user's own session may have been written without these figures, which no decision depends on.
            self.usage.reward_reuse = getattr(self._session, "reuse", "none")
            self.usage.reward_kv_bytes = getattr(self._session, "peak_kv_bytes", 0)
        failed = [candidate for candidate, score in zip(self.batch, scores, strict=True) if score == -math.inf]
        if failed:
            self._decide("filter", failed, failed)
        passed = [score for score in scores if score > -math.inf]
        for candidate, score in zip(self.batch, passed, strict=True):
            candidate.rewards[len(self.decisions)] = score
        return passed

    def open(self) -> None:
        """Prefill the prompt, and open the reward on it."""
        begun = time.perf_counter()
        self._handle = self._engine.open(self.prompt_ids, self.sampling, self.budget_bytes)
        self.usage.prefill_s += time.perf_counter() - begun
        self.usage.shared_prompt_tokens = self._engine.num_shared(self._handle)
        with self._rewarding("the prompt"):
            self._session = self._reward.open(self.messages)
            if self._session is None:  # of a reward that nobody checked the types of
                raise TypeError("it opened no session")

    def is_due(self, schedule: Schedule) -> bool:
        """Whether the algorithm must decide before the next step; remembers why."""
        live = self.live
        if not live:
            self._cause = "complete"
        elif self.memory().next_step > self.budget_bytes:
            self._cause = "budget"
        elif schedule(len(live[0].token_ids), self._last_length):
            self._cause = "schedule"
        else:
            return False
        return True

    @property
    def handle(self) -> int:
        """The engine's number for this prompt; -1 while the engine holds nothing of it."""
        return self._handle

    def memory(self) -> Memory:
        """KV held for this prompt."""
        return self._engine.memory(self._handle)

    def claim(self) -> Claim:
        """What the prompt and its candidates take of memory that searches share."""
        if self._engine.can_hold_back:
            return self._engine.claim(self._handle)
        most = self.most_bytes()
        return Claim(most, most, most, 0)

    def most_bytes(self) -> int:
        """The most that blocks made from now on will hold, with the prompt."""
        num_rows = max(len(self.live), self._num_coming)
        return min(self._kv_bytes(num_rows, self.sampling.max_new_tokens), self.budget_bytes)

    def first_bytes(self) -> int:
        """What must be free to begin: for the prompt and the first tokens of one candidate, or all it may ever hold."""
        return self._kv_bytes(1, 2) if self._engine.can_hold_back else self.budget_bytes

    def receive(self, tokens: Sequence[Token], seconds: float) -> None:
        """Take the tokens of one step and this search's share of its seconds."""
        stopped = []
        drawn = [token for token in tokens if token.finish_reason != "lost"]
        for token in drawn:
            candidate = self.candidates[token.candidate]
            candidate.token_ids.append(token.token_id)
            if token.logprob is not None:
                candidate.logprobs.append(token.logprob)
            candidate.finish_reason = token.finish_reason
            if token.finish_reason != "eos" and self._has_stopped(candidate):
                candidate.finish_reason = "stop"
                if token.finish_reason is None:
                    stopped.append(candidate.index)
            if candidate.finish_reason is not None:
                candidate.state = "complete"
        if stopped:
            self._engine.drop(self._handle, stopped)
        if len(drawn) < len(tokens):
            self._lose([token for token in tokens if token.finish_reason == "lost"])
        self.usage.generated_tokens += len(drawn)
        self.usage.decode_s += seconds
        self.usage.num_steps += 1
        self._note_engine()

    @property
    def winner(self) -> Candidate | None:
        """The candidate that will be the answer, whatever comes: the only one left. None while there are others.

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
        """Reject half of the live candidates because the device has no memory left. False if only one is live."""
        live = ranked(self.live)
        rejected = live[(len(live) + 1) // 2 :]
        if rejected:
            for candidate in rejected:
                candidate.text = self.text_of(candidate)
            self._decide("out_of_memory", live, rejected)
        return bool(rejected)

    def close(self) -> None:
        """Free what engine and reward hold. A reward that fails at it is logged: the outcome is what it was."""
        try:
            if self._session is not None:
                with self._rewarding("its end"):
                    self._session.close()
        except SpecrejError:
            _LOG.exception("the reward %r failed to close a prompt", self._reward.name)
        finally:
            if self._handle >= 0:
                self._engine.close(self._handle)
                self._handle = -1

    def result(self) -> Result:
        """The best complete candidate that was not rejected; of equals the first.

        Of an interrupted run the best there is, see `choosing.ranked`.

        Raises:
            RewardError: the reward's filter left nobody.
            EngineError: the engine lost everybody.
        """
        self.write_texts()
        best = choose(self.candidates, self.decisions, self._reward.name, self._lost)
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
        self._lost = tokens[-1].reason
        self._decide("lost", lost, lost)

    def _note_engine(self) -> None:
        """What the engine says of its work so far."""
        self.usage.peak_kv_bytes = self.memory().peak
        overhead = self._engine.overhead(self._handle)
        self.usage.unused_tokens = overhead.unused_tokens
        self.usage.reread_tokens = overhead.reread_tokens
        self.usage.num_preemptions = overhead.num_preemptions

    def _fitting(self, num_tokens: int) -> int:
        """Most candidates that can have num_tokens each within the budget."""
        counts = range(self._engine.most_candidates + 1)
        return bisect_right(counts, self.budget_bytes, key=lambda n: self._kv_bytes(n, num_tokens)) - 1

    def _kv_bytes(self, num_candidates: int, num_tokens: int) -> int:
        return self._engine.kv_bytes(len(self.prompt_ids), num_candidates, max(num_tokens, 2))

    @contextmanager
    def _rewarding(self, subject: str) -> Iterator[None]:
        """Count the seconds of the reward's work, and name what it failed on."""
        begun = time.perf_counter()
        try:
            with failing_as(f"the reward {self._reward.name!r} failed on {subject}"):
                yield
        finally:
            self.usage.reward_s += time.perf_counter() - begun

    def _decide(self, cause: Cause, scored: Sequence[Candidate], rejected: Sequence[Candidate]) -> None:
        before = self.memory().in_use
        length = max(len(candidate.token_ids) for candidate in scored)
        dropped = [c.index for c in rejected if c.state == "live" and c.finish_reason != "lost"]
        for candidate in rejected:
            candidate.state = "rejected"
        self.batch = [candidate for candidate in self.batch if candidate.state != "rejected"]
        self._engine.drop(self._handle, dropped)
        assert self._session is not None
        indices = [candidate.index for candidate in rejected]
        with self._rewarding(f"the dropped candidates {indices}"):
            self._session.drop(indices)
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

    def _has_stopped(self, candidate: Candidate) -> bool:
        if not self.sampling.stop:
            return False
        self.text_of(candidate)
        return self._texts[candidate.index].has_stopped
