"""Where the seconds of a search go.

clock = Clock(usage)
with clock.span("other_s"):
    with clock.span("reward_s"):        # counts here, and not in the span around it
        ...
clock.add("decode_s", seconds)          # its share of what several searches did together
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from specrej.types import Usage

Part = Literal["prefill_s", "decode_s", "reward_s", "other_s"]
"""A field of `Usage`."""


class Clock:
    """Counts a search's seconds, each once.

    Args:
        usage: where they are written.
    """

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._inner_s = 0.0
        """What was counted already within the innermost span that is open."""

    @contextmanager
    def span(self, part: Part) -> Iterator[None]:
        """Count the seconds of what is done inside, without those of the spans in it."""
        outer_s, self._inner_s = self._inner_s, 0.0
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self.add(part, seconds - self._inner_s)
            self._inner_s = outer_s + seconds

    def add(self, part: Part, seconds: float) -> None:
        """Count seconds that were taken elsewhere: a share of a step, or of what a thread of its
        own did.
        """
        setattr(self._usage, part, getattr(self._usage, part) + seconds)
