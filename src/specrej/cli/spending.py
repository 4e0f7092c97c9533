"""A budget of tokens in `specrej batch`.

check_spending(requests, settings, budget_tokens, cluster)
with opened_waves(output, job, settings, resume=True) as spread:
    ...           # spread takes what runs requests, and gives what runs them in rounds of waves
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrej.errors import UsageError
from specrej.settings import Settings

if TYPE_CHECKING:
    from specrej.batch.description import JobInfo
    from specrej.batch.job import RowsOf
    from specrej.batch.requests import BrokenRequest, Request

    Spread = Callable[[RowsOf, Callable[[str], None]], RowsOf]


def check_spending(
    requests: "list[Request | BrokenRequest]",
    settings: Settings,
    budget_tokens: int | None,
    cluster: dict[str, Any],
) -> None:
    """See to a budget before anything is opened; None is no budget.

    Raises:
        UsageError: see `specrej.batch.waves.check_spending`; or it is to be spent on a cluster.
    """
    from specrej.batch import waves

    if budget_tokens is None:
        return
    if cluster:
        raise UsageError(
            "a budget of tokens is spent on one machine: each round would open the actors anew",
            hint="leave out --ray or --budget-tokens",
        )
    waves.check_spending(requests, settings, budget_tokens)


@contextmanager
def opened_waves(
    output: Path | None, job: "JobInfo", settings: Settings, *, resume: bool
) -> Iterator["Spread"]:
    """What makes waves of requests where there is a budget, and else leaves them as they are.
    Without an output no wave is written.
    """
    from specrej.batch.waves import Waves, in_waves, open_waves

    budget_tokens = job.get("budget_tokens")
    if budget_tokens is None:
        yield lambda rows_of, _: rows_of
        return
    opened = (
        nullcontext(Waves(lambda _: None, ()))
        if output is None
        else open_waves(output, job, resume=resume)
    )
    with opened as waves:
        yield lambda rows_of, say: in_waves(
            rows_of, settings, job["num_kept"], budget_tokens, waves, say
        )
