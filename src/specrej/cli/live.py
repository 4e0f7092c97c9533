"""Shows runs while they go, on stderr: two live lines on a terminal, else a line for each decision.

    with LiveProgress(["speculative_rejection"], "smollm2") as progress:
        result = specrej.generate(prompt, observe=progress)

The lines are gone when the block ends.
"""

import sys
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from specrej.cli.display import METHODS, kv_change, number, plain
from specrej.memory import format_bytes
from specrej.search.events import Decided, Event, Started, Step

_REFRESH_S = 0.1


class LiveProgress:
    """Shows runs while they go; give it as `observe`.

    On a terminal two live lines, redrawn ten times a second at most; elsewhere one line for each
    decision.
    """

    def __init__(self, methods: Sequence[str], model: str) -> None:
        self._methods = methods
        self._model = model
        self._started: Started | None = None
        self._step: Step | None = None
        self._decided: Decided | None = None
        self._next_s = 0.0
        self._console = Console(stderr=True)
        self._is_live = self._console.is_interactive and sys.stderr.isatty()
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        opening = Text(f"opening {plain(self._model)}", style="dim")
        if self._is_live:
            self._live.start()
            self._live.update(opening, refresh=True)
        else:
            self._console.print(opening, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._started, self._step, self._decided = event, None, None
            case Step():
                self._step = event
            case Decided():
                self._decided = event
                if not self._is_live:
                    line = (
                        f"{self._method(event.prompt)}: decision {event.number + 1} "
                        f"{_describe(event)}"
                    )
                    self._console.print(Text(line, style="dim"), soft_wrap=True)
        if self._is_live:
            self._draw_live()

    def _method(self, number: int) -> str:
        return METHODS.get(self._methods[number], self._methods[number])

    def _draw_live(self) -> None:
        now_s = time.monotonic()
        if self._started is not None and self._step is not None and now_s >= self._next_s:
            self._next_s = now_s + _REFRESH_S
            method = self._method(self._started.prompt)
            self._live.update(
                _picture(method, self._started, self._step, self._decided), refresh=True
            )


def _describe(decided: Decided) -> str:
    cut = "" if decided.cut is None else f", cut {number(decided.cut)}"
    return (
        f"({decided.cause}) at {decided.num_tokens} tokens: scored {len(decided.candidates)}, "
        f"rejected {decided.num_rejected}{cut}, KV {kv_change(decided)}"
    )


def _picture(method: str, started: Started, step: Step, decided: Decided | None) -> Group:
    num_decisions, best = (
        (0, None) if decided is None else (decided.number + 1, decided.best_reward)
    )
    fates = Text.assemble(
        (method, "bold"),
        f"  {step.num_live} live of {started.num_candidates} candidates  decisions {num_decisions} "
        " ",
        f"best reward {number(best)}",
    )
    fates.no_wrap = True
    costs = Table.grid(padding=(0, 1))
    for _ in range(3):
        costs.add_column(no_wrap=True)
    costs.add_row(
        "KV",
        ProgressBar(
            total=started.memory_bytes,
            completed=step.kv_bytes,
            width=20,
            complete_style="cyan",
            finished_style="cyan",
        ),
        f"{format_bytes(step.kv_bytes)} of {format_bytes(started.memory_bytes)}  "
        f"{step.generated_tokens:,} tokens  "
        f"{step.generated_tokens / max(step.seconds, 1e-9):.0f} tokens/s  {step.seconds:.1f} s",
    )
    return Group(fates, costs)
