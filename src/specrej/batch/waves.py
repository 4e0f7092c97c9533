"""A batch job that spends a budget of tokens in waves, where they promise most.

    check_spending(requests, settings, budget_tokens=100_000)
    with open_waves("out.jsonl", info, resume=True) as waves:
        one_wave = local_rows(engine, reward, pool, in_flight=16)
        rows_of = in_waves(one_wave, settings, 1, 100_000, waves, say=print)
        for ended in run_batch(requests, rows_of, output):
            print(ended.row)

Every prompt begins with one wave of n candidates. Then come rounds. Each gives n more to the
prompts of the highest worth (`specrej.batch.allotting`), as many prompts as half of what is left
surely pays: n candidates of full length each. A round begins when the one before has ended, and
knows nothing of how it went in time. So what is in flight together changes nothing. The job ends
when what is left pays no wave for sure, or no prompt would gain. The waves of all rows never exceed
the budget: one that failed counts in full, since what it had drawn is not known. What was in flight
when a job stopped is drawn again, and only then counts.

A wave skips the candidates of those before it, so that a prompt has the candidates that it would
have had from the same number at once. Each wave is written beside the output as it ends:

    out.jsonl.waves.jsonl       a plain row a wave, with its round

A job that is resumed replays them, ends the round that they stopped in, and begins the next.
"""

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from specrej.batch.allotting import Allotted, most_worth, worth
from specrej.batch.description import JobInfo
from specrej.batch.job import FinishedRequest, RowsOf
from specrej.batch.output import OutputRow, open_output
from specrej.batch.requests import BrokenRequest, Request
from specrej.batch.rows import with_wave
from specrej.errors import UsageError
from specrej.files.journal import read_rows
from specrej.flops import FlopsRow, sum_of
from specrej.settings import Settings


class Waves(NamedTuple):
    """Where waves are written."""

    append: Callable[[OutputRow], None]
    """Writes one; it is on the disk when this returns."""
    rows: Sequence[Mapping[str, Any]]
    """Those that an earlier run has written."""


@contextmanager
def open_waves(output: str | Path, info: JobInfo, *, resume: bool) -> Iterator[Waves]:
    """The waves of a job, beside its output.

    Raises:
        UsageError: see `open_output`; also, a row is no wave.
    """
    path = Path(output)
    path = path.with_name(f"{path.name}.waves.jsonl")
    rows = read_rows(path) if path.exists() else []
    for row in rows:
        needed = {"id", "error"} if row.get("error") else {"id", "error", "usage", "reward"}
        if type(row.get("round")) is not int or not needed <= row.keys():
            raise UsageError(
                f"{path} holds a row that is no wave: {reprlib.repr(row)}",
                hint="take the row out, and give the same command again",
            )
    with open_output(path, info, resume=resume) as there:
        yield Waves(there.append, rows)


def check_spending(
    requests: Iterable[Request | BrokenRequest], settings: Settings, budget_tokens: int
) -> None:
    """See that a job can spend a budget, before anything is opened.

    Raises:
        UsageError: there is no number of candidates for a wave, candidates would be rejected or
            would all be alike, a row is in OpenAI's form, or the budget is too small.
    """
    if settings.num_candidates is None:
        raise UsageError(
            "a budget of tokens needs the number of candidates of a wave, n is 'auto'",
            hint="give n, such as 4",
        )
    rejects = settings.alpha > 0 or settings.keep is not None or settings.policy is not None
    if settings.algorithm != "best_of_n" and (
        rejects or settings.algorithm != "speculative_rejection"
    ):
        raise UsageError(
            "a budget of tokens is for Best-of-N: a wave would reject among its own candidates "
            "alone, and rows would not be those of all of them at once",
            hint="give the algorithm best_of_n, or leave out the budget",
        )
    if settings.sampling.is_greedy:
        raise UsageError("a budget of tokens needs a temperature: at 0 all candidates are alike")
    plain = [request for request in requests if isinstance(request, Request)]
    if form := [request.line for request in plain if request.form == "openai"]:
        raise UsageError(
            f"a budget of tokens is for plain rows, line {form[0]} is in OpenAI's form",
            hint="such a row has settings of its own: give it as a prompt or messages",
        )
    _check_pays(len(plain), settings, budget_tokens)


def _check_pays(num_prompts: int, settings: Settings, left: int) -> None:
    """See that so many tokens pay a first wave of so many prompts."""
    n, most = settings.num_candidates, settings.max_new_tokens
    needed = num_prompts * _most_tokens(settings)
    if needed > left:
        raise UsageError(
            f"{left} tokens do not pay the first {n} candidates of {num_prompts} prompts: with up "
            f"to {most} tokens each they may take {needed}",
            hint=f"give a budget of {needed} tokens at least, a smaller n, or fewer max_new_tokens",
        )


def _most_tokens(settings: Settings) -> int:
    """Of one wave."""
    return (settings.num_candidates or 0) * settings.max_new_tokens


def in_waves(
    rows_of: RowsOf,
    settings: Settings,
    num_kept: int,
    budget_tokens: int,
    waves: Waves,
    say: Callable[[str], None],
) -> RowsOf:
    """Runs requests in waves, each wave by `rows_of`; a prompt that fails at its first wave ends at
    once, the others when the budget is spent.

    Args:
        rows_of: runs one wave of many requests.
        settings: of all requests; see `check_spending`.
        num_kept: answers that a row holds.
        budget_tokens: tokens of all candidates together.
        waves: where they are written.
        say: is told of each round.
    """

    def run(requests: Iterable[Request]) -> Iterator[FinishedRequest]:
        asked = {request.id: request for request in requests}
        job = _Job(asked, rows_of, settings, num_kept, budget_tokens, waves)
        with ThreadPoolExecutor(1) as writer:  # see `run_batch`
            for number, ids in job.rounds():
                say(
                    f"round {number}: {settings.n} more candidates for each of {len(ids)} prompts; "
                    f"{job.spent:,} of {budget_tokens:,} tokens spent"
                )
                yield from job.run_round(number, ids, writer)
        yield from job.ended()

    return run


@dataclass(slots=True)
class _Standing:
    """A prompt with what its waves have brought."""

    row: dict[str, Any]
    flops: FlopsRow
    is_closed: bool = False
    """A later wave has failed: it gets no more."""


_NOTHING = FlopsRow(prefill=0.0, decode=0.0, reward=0.0)


class _Job:
    def __init__(
        self,
        asked: dict[str, Request],
        rows_of: RowsOf,
        settings: Settings,
        num_kept: int,
        budget_tokens: int,
        waves: Waves,
    ) -> None:
        self._asked, self._rows_of, self._settings = asked, rows_of, settings
        self._num_kept, self._budget_tokens, self._waves = num_kept, budget_tokens, waves
        self._prompts: dict[str, _Standing] = {}
        self._failed: set[str] = set()
        """Those whose first wave failed."""

    @property
    def spent(self) -> int:
        """Tokens of all waves so far; of those that failed, the most that they may have taken."""
        prompts = self._prompts.values()
        num_failed = len(self._failed) + sum(prompt.is_closed for prompt in prompts)
        drawn: int = sum(prompt.row["usage"]["generated_tokens"] for prompt in prompts)
        return drawn + num_failed * _most_tokens(self._settings)

    def rounds(self) -> Iterator[tuple[int, list[str]]]:
        """Number and prompts of each round, when the one before has ended; 0 is the first waves."""
        number = max((row["round"] for row in self._waves.rows), default=0)
        begun = [row for row in self._waves.rows if row["round"] == number]
        for row in self._waves.rows:
            if row["round"] < number:
                self._enter(row)
        planned = self._choose() if number else []
        for row in begun:
            self._enter(row)
        there = {row["id"] for row in begun}
        if first := [name for name in self._asked if name not in self._prompts]:
            self._failed.difference_update(first)  # they are run again, and count again
            _check_pays(len(first), self._settings, self._budget_tokens - self.spent)
            yield 0, first
        ids = [name for name in planned if name in self._asked and name not in there]
        # One that failed before and is run again was not foreseen when the round was planned.
        if ids := ids[: self._num_paid()]:
            yield number, ids
        while ids := [name for name in self._choose() if name in self._asked]:
            number += 1
            yield number, ids

    def run_round(
        self, number: int, ids: Sequence[str], writer: ThreadPoolExecutor
    ) -> Iterator[FinishedRequest]:
        """Run a wave of these prompts; those that failed at their first."""
        for ended in self._rows_of(self._wave_of(name) for name in ids):
            row = {**ended.row, "round": number}
            writer.submit(self._waves.append, row).result()
            self._enter(row, ended.flops or _NOTHING)
            if row["id"] in self._failed:
                yield ended

    def ended(self) -> Iterator[FinishedRequest]:
        """The rows of all prompts that have one."""
        for name in self._asked:
            if (prompt := self._prompts.get(name)) is not None:
                yield FinishedRequest(prompt.row, prompt.flops)

    def _wave_of(self, name: str) -> Request:
        request, there = self._asked[name], self._prompts.get(name)
        num_skipped = 0 if there is None else there.row["num_candidates"]
        return replace(request, num_skipped=num_skipped)

    def _enter(self, wave: Mapping[str, Any], flops: FlopsRow = _NOTHING) -> None:
        """Take note of a wave."""
        own = {name: value for name, value in wave.items() if name != "round"}
        name, error = own["id"], own["error"]
        there = self._prompts.get(name)
        if there is None and error is not None:
            self._failed.add(name)
        elif there is None:
            self._failed.discard(name)
            self._prompts[name] = _Standing(own, flops)
        elif error is not None:
            there.is_closed = True
            there.row["note"] = f"a later wave failed: {error['message']}"
        else:
            there.row = with_wave(there.row, own, self._num_kept)
            there.flops = sum_of(there.flops, flops)

    def _num_paid(self) -> int:
        """Waves that what is left pays for sure."""
        return max(self._budget_tokens - self.spent, 0) // _most_tokens(self._settings)

    def _choose(self) -> list[str]:
        """Who gets a wave in the next round: nobody where what is left pays none for sure."""
        num_paid = self._num_paid()
        # In the order of their ids, since they ended in any order.
        names = sorted(name for name, prompt in self._prompts.items() if not prompt.is_closed)
        if num_paid < 1 or not names:
            return []
        n = self._settings.num_candidates or 0
        top = max(prompt.row["reward"] for prompt in self._prompts.values())
        worths = [worth(_allotted(self._prompts[name].row), top, n) for name in names]
        return [names[at] for at in most_worth(worths, math.ceil(num_paid / 2))]


def _allotted(row: Mapping[str, Any]) -> Allotted:
    return Allotted(row["num_candidates"], row["usage"]["generated_tokens"], row["reward"])
