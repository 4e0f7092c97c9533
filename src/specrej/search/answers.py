"""The texts of a prompt's candidates as their tokens come, and the steps that they are written in.

    answers = Answers(lambda: engine.detokenizer(prompt), stop=())
    answers.begin([0, 1])
    answers.ends = separated(PARAGRAPH, most_tokens=128)
    answers.take(candidate, token)   # who ends a step with it waits
    answers.all_wait(live)           # the decision is due
    answers.go_on(live)              # the next step of those that waited

A step is what a candidate adds until `ends` says so of it. Who waits is not decoded until all that
are live wait, so that all are scored at the end of a step.
"""

from collections.abc import Callable, Iterable, Sequence

from specrej.engines.base import Token
from specrej.errors import contained
from specrej.search.stopping import AnswerText
from specrej.types import Candidate, Detokenizer, StepRule


class Answers:
    """What the candidates of one prompt have written.

    Args:
        detokenizer: makes what reads one answer.
        stop: strings that end an answer.

    Attributes:
        ends: says of the text of a step so far, and of its number of tokens, whether it is over;
            None where nobody waits.
        waiting: indices of the candidates that wait.
    """

    def __init__(self, detokenizer: Callable[[], Detokenizer], stop: Sequence[str]) -> None:
        self._detokenizer, self._stop = detokenizer, stop
        self._texts: dict[int, AnswerText] = {}
        self._begun: dict[int, tuple[int, int]] = {}
        """Characters and tokens of each before its step."""
        self.ends: StepRule | None = None
        self.waiting: set[int] = set()

    def begin(self, indices: Iterable[int]) -> None:
        """New candidates, without a token."""
        for index in indices:
            self._texts[index] = AnswerText(self._detokenizer(), self._stop)
            self._begun[index] = 0, 0

    def fork(self, parent: Candidate, fork: Candidate) -> None:
        """A new candidate that is a copy of another, in the middle of the same step."""
        self.begin([fork.index])
        self._begun[fork.index] = self._begun[parent.index]

    def text_of(self, candidate: Candidate) -> str:
        """The candidate's text so far, up to a stop string."""
        text = self._texts[candidate.index]
        text.read(candidate.token_ids)
        return text.text

    def write(self, candidates: Iterable[Candidate]) -> None:
        """Write down their texts so far."""
        for candidate in candidates:
            candidate.text = self.text_of(candidate)

    def take(self, candidate: Candidate, token: Token) -> bool:
        """Give a candidate its next token. Whether a stop string ends it with this, of which the
        engine does not know.
        """
        candidate.take(token.token_id, token.logprob, token.top_logprobs)
        candidate.finish_reason = token.finish_reason
        if token.finish_reason != "eos" and self._has_stopped(candidate):
            candidate.finish_reason = "stop"
        if candidate.finish_reason is not None:
            candidate.state = "complete"
        elif self.ends is not None and self._has_ended_step(candidate, self.ends):
            self.waiting.add(candidate.index)
        return candidate.finish_reason != token.finish_reason and token.finish_reason is None

    def _has_stopped(self, candidate: Candidate) -> bool:
        if not self._stop:
            return False
        self.text_of(candidate)
        return self._texts[candidate.index].has_stopped

    def _has_ended_step(self, candidate: Candidate, ends: StepRule) -> bool:
        num_characters, num_tokens = self._begun[candidate.index]
        text = self.text_of(candidate)[num_characters:]
        with contained("the rule of steps"):
            return bool(ends(text, len(candidate.token_ids) - num_tokens))

    def waiting_of(self, live: Iterable[Candidate]) -> list[int]:
        """Indices of those of these that wait."""
        return [candidate.index for candidate in live if candidate.index in self.waiting]

    def all_wait(self, live: Iterable[Candidate]) -> bool:
        """Whether nobody of these goes on."""
        return bool(self.waiting) and all(one.index in self.waiting for one in live)

    def go_on(self, live: Iterable[Candidate]) -> None:
        """Who has waited begins its next step."""
        for candidate in live:
            if candidate.index in self.waiting:
                length = len(self.text_of(candidate))
                self._begun[candidate.index] = length, len(candidate.token_ids)
        self.waiting.clear()
