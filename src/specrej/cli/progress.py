"""Progress of work that comes in many pieces: a live bar on a terminal, lines elsewhere; always on
stderr.

with RowProgress(total=1000, unit="prompts") as progress:
    ...                                                # open the model
    progress.begin()
    for row in rows:
        # 3 of 1000 prompts: c (42.0 prompts/min, 718 tokens/s, ...)
        progress.advance(row["id"], num_tokens=512)
"""

import time
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from specrej.cli.display import plain

if TYPE_CHECKING:
    from specrej.evaluation.recording import RecordedPrompt
    from specrej.evaluation.rows import BenchRow

_LINE_S = 1.0
"""Without a terminal, seconds from one line to the next: a job may have a hundred thousand rows."""


class RowProgress:
    """Counts what is done, and says at which rate and for how long it will go on.

    Args:
        total: pieces that there are.
        unit: what a piece is called, in the plural.
        num_done: pieces that were done before; no part of the rate.
    """

    def __init__(self, *, total: int, unit: str, num_done: int = 0) -> None:
        self.num_done = num_done
        self._total = total
        self._unit = unit
        self._num_new = self._num_tokens = 0
        self._begun_s = time.monotonic()
        self._next_line_s = 0.0
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            disable=not self._console.is_interactive,
        )
        self._task = self._bar.add_task("opening", total=total, completed=num_done, pace="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self) -> None:
        """All is open: what comes now is the work that the rate is of."""
        self._begun_s = time.monotonic()

    def advance(self, label: str, error: str | None = None, *, num_tokens: int = 0) -> None:
        """One more is done, with so many tokens; an error is always said on a line of its own."""
        self.num_done += 1
        self._num_new += 1
        self._num_tokens += num_tokens
        now_s = time.monotonic()
        pace = self._pace(now_s - self._begun_s)
        self._bar.update(self._task, description=plain(label), completed=self.num_done, pace=pace)
        line = f"{self.num_done} of {self._total} {self._unit}: {label}"
        if error is not None:
            self._console.print(
                Text(plain(f"{line} failed: {error}"), style="yellow"), soft_wrap=True
            )
        elif self._bar.disable and (now_s >= self._next_line_s or self.num_done == self._total):
            self._next_line_s = now_s + _LINE_S
            self._console.print(Text(plain(f"{line} ({pace})"), style="dim"), soft_wrap=True)

    def say(self, line: str) -> None:
        """A line of its own."""
        self._console.print(Text(plain(line), style="dim"), soft_wrap=True)

    def _pace(self, seconds: float) -> str:
        rate = self._num_new / max(seconds, 1e-9)
        minutes, left_s = divmod(round((self._total - self.num_done) / rate), 60)
        tokens = (
            f"{self._num_tokens / max(seconds, 1e-9):,.0f} tokens/s, " if self._num_tokens else ""
        )
        left = f"{minutes // 60}:{minutes % 60:02}:{left_s:02} left"
        return f"{60 * rate:,.1f} {self._unit}/min, {tokens}{left}"


def follow_rows(run: "Generator[BenchRow, None, None]", progress: RowProgress) -> None:
    """Let a bench go to its end."""
    with closing(run) as rows:
        for row in rows:
            error = row["error"]
            progress.advance(f"{row['prompt_id']} {row['method']}", error and error["message"])


def follow(run: "Generator[RecordedPrompt, None, None]", progress: RowProgress) -> tuple[int, int]:
    """Let a recording or a relabelling go to its end; how many prompts it ran, and how many of them
    failed.
    """
    num_run = num_failed = 0
    with closing(run) as steps:
        for step in steps:
            num_run += 1
            num_failed += step.error is not None
            progress.num_done = step.num_done - 1  # those of an earlier run count
            progress.advance(step.prompt_id, None if step.error is None else str(step.error))
    return num_run, num_failed
