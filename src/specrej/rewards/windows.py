"""The relevance of the whole of a long answer: it is read in windows, each beside the question.

    reward = WindowedRelevance(160)                  # relevance:?window=160
    WindowedRelevance(128, "./nli", label=1)         # relevance:./nli?label=1&window=128

`RelevanceReward` reads 512 tokens of question and answer. Here the answer's tokens, as the
cross-encoder's tokenizer counts them, are cut into windows of a fixed size at fixed positions. Each
is scored with the question by the same cross-encoder, and the answer gets their mean, each weighted
by its tokens. So every token counts alike, wherever it stands: an answer that drifts off after a
good beginning loses by as much of it as drifted off. The least of the windows would instead judge a
long answer by a few words at its end, and the greatest would not see an end at all. An answer of
one window scores as with `RelevanceReward`.

A window says nothing of the windows before it. What depends on them, such as a point that is
made twice or a "he" without its name, is not seen. A loop loses only where its windows do not
answer the question by themselves.

Windows stay where they are while the answer grows, so a session reads a full one once, and at each
decision the last one again. A window is known by its token ids: where text that follows changes
its last token, it is read again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from specrej.errors import UsageError
from specrej.rewards.base import Reward
from specrej.rewards.relevance import RelevanceReward, written
from specrej.rewards.spec import check_sizes, parse_options
from specrej.types import Candidate, Message, Reuse

if TYPE_CHECKING:
    from tokenizers import Encoding

Ids = tuple[int, ...]
"""Token ids of a window."""


class WindowedRelevance:
    """Scores an answer by the mean relevance of its windows to the last message of the user.

    Attributes:
        name: `relevance:?window=SIZE`, with what else was given.
        flops_per_token: as of `RelevanceReward`. A session counts question and special tokens with
            each window that is read.
    """

    name: str
    flops_per_token: float | None

    def __init__(
        self, size: int, directory: Path | str | None = None, *, label: int | None = None
    ) -> None:
        """Open the cross-encoder.

        Args:
            size: answer tokens in a window.
            directory: see `RelevanceReward`.
            label: see `RelevanceReward`.

        Raises:
            UsageError: a size below 1, or one that leaves the question less than half of the
                room. Also as of `RelevanceReward`.
            ModelError: as of `RelevanceReward`.
        """
        check_sizes(window=size)
        self._encoder = RelevanceReward(directory, label=label)
        if size > self._encoder.answer_room:
            raise UsageError(
                f"window must be at most {self._encoder.answer_room} tokens, got {size}",
                hint="the model reads the question beside each window: relevance:?window=160",
            )
        self._size = size
        self.flops_per_token = self._encoder.flops_per_token
        self.name = written(directory, label=label, window=size)

    def open(self, messages: Sequence[Message]) -> "WindowedSession":
        """Begin with a prompt. Its question is that of `RelevanceReward`.

        Raises:
            PromptError: the prompt is empty, or a message lacks `role` or `content`.
        """
        return WindowedSession(self._encoder.read_question(messages), self)

    def close(self) -> None:
        """Let the model go."""
        self._encoder.close()

    def score_together(
        self, asked: Sequence[tuple["WindowedSession", Sequence[Candidate]]]
    ) -> list[list[float]]:
        """Answers to several prompts, the windows of all through one pool of threads."""
        batches = [[self._lay_out(session, one) for one in batch] for session, batch in asked]
        parts = [
            (session.query, window, answer.candidate)
            for (session, _), answers in zip(asked, batches, strict=True)
            for answer in answers
            for window in answer.unread.values()
        ]
        read = zip(*self._encoder.score_parts(parts), strict=True)
        return [
            [session.take(answer, [next(read) for _ in answer.unread]) for answer in answers]
            for (session, _), answers in zip(asked, batches, strict=True)
        ]

    def _lay_out(self, session: "WindowedSession", candidate: Candidate) -> "_Answer":
        windows = self._encoder.read_windows(candidate.text, self._size)
        known = session.known.get(candidate.index, {})
        by_ids = {tuple(window.ids): window for window in windows}
        unread = {ids: window for ids, window in by_ids.items() if ids not in known}
        return _Answer(candidate, [tuple(window.ids) for window in windows], unread)


class _Answer(NamedTuple):
    """A candidate's windows, in order, and those that have no score yet."""

    candidate: Candidate
    windows: list[Ids]
    unread: "dict[Ids, Encoding]"


@dataclass(slots=True)
class WindowedSession:
    """The scoring of one prompt's candidates, with the scores of their windows kept between
    decisions.

    Attributes:
        query: the question's tokens.
        known: score of each window, by candidate.
        num_tokens: tokens read so far, question and special tokens with each window.
        reuse: "none", for no KV is kept.
    """

    query: "Encoding"
    reward: WindowedRelevance
    known: dict[int, Mapping[Ids, float]] = field(default_factory=dict)
    num_tokens: int = 0
    reuse: Reuse = "none"
    peak_kv_bytes: int = 0

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """The mean over each answer's windows.

        Raises:
            RewardError: the model failed; names the candidate.
        """
        [scores] = self.reward.score_together([(self, candidates)])
        return scores

    def take(self, answer: _Answer, read: Sequence[tuple[float, int]]) -> float:
        """The answer's score.

        Args:
            answer: whose windows were read.
            read: score and tokens of each window that was unread.
        """
        self.num_tokens += sum(num_tokens for _, num_tokens in read)
        index = answer.candidate.index
        new = zip(answer.unread, (score for score, _ in read), strict=True)
        scores = {**self.known.get(index, {}), **dict(new)}
        self.known[index] = {ids: scores[ids] for ids in answer.windows}
        weights = [max(len(ids), 1) for ids in answer.windows]  # an empty answer is one window
        weighted = (
            scores[ids] * weight for ids, weight in zip(answer.windows, weights, strict=True)
        )
        return math.fsum(weighted) / sum(weights)

    def drop(self, indices: Sequence[int]) -> None:
        """Forget the windows of these candidates."""
        for index in indices:
            self.known.pop(index, None)

    def close(self) -> None:
        """Forget all windows."""
        self.known = {}


def parse_relevance(argument: str = "") -> Reward:
    """`relevance`, `relevance:DIRECTORY`, with the options `label` and `window`:
    `relevance:?window=160`, `relevance:DIRECTORY?label=1&window=160`.

    Raises:
        UsageError: an option that is not known, or a value that cannot be taken.
    """
    directory, options = parse_options(argument, {"label": int, "window": int})
    size = options.pop("window", None)
    if size is None:
        return RelevanceReward(directory or None, **options)
    return WindowedRelevance(size, directory or None, **options)
