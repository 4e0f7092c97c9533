"""The text of an answer in the making, up to the first stop string in it.

    text = AnswerText(engine.detokenizer(prompt), stop=("Question:", "<|im_end|>"))
    text.read(candidate.token_ids)      # as often as tokens come: each is read once
    text.text, text.has_stopped

A stop string may spell special tokens, though they are never a part of the text.
"""

from collections.abc import Sequence

from specrej.types import Detokenizer


class AnswerText:
    """The text of one candidate.

    Args:
        detokenizer: reads its tokens.
        stop: strings of which the first ends the text; the text ends before it.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]) -> None:
        self.text = ""
        self.has_stopped = False
        self._detokenizer = detokenizer
        self._stop = stop
        self._num_read = 0
        self._spelled = ""
        """The text with its special tokens."""
        self._specials: list[tuple[int, int]] = []
        """Where they stand in it, and how long they are."""

    def read(self, token_ids: Sequence[int]) -> None:
        """Read those of the answer's tokens that are new; none behind a stop string."""
        for token_id in token_ids[self._num_read :]:
            if not self.has_stopped:
                self._take(token_id)
        self._num_read = len(token_ids)

    def _take(self, token_id: int) -> None:
        text, special = self._detokenizer.add(token_id)
        num_text, num_spelled = len(self.text), len(self._spelled)
        if special:
            self._specials.append((num_spelled, len(special)))
        self.text += text
        self._spelled += text + special
        starts = _find(self._stop, self.text, num_text)
        starts += [self._in_text(start) for start in _find(self._stop, self._spelled, num_spelled)]
        if starts:
            self.text, self.has_stopped = self.text[: min(starts)], True

    def _in_text(self, place: int) -> int:
        """Characters of the text before a place in its spelled form."""
        return place - sum(
            min(length, place - start) for start, length in self._specials if start < place
        )


def _find(stop: Sequence[str], text: str, num_old: int) -> list[int]:
    """Where stop strings begin that end in what is new."""
    starts = (text.find(one, max(num_old - len(one) + 1, 0)) for one in stop)
    return [start for start in starts if start >= 0]
