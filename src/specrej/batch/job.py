"""Runs a batch: one row out for each row in, on the disk as soon as its prompt has ended.

    requests = read_all("in.jsonl", settings, num_kept=1, model="smollm2")
    info = describe_job(requests, settings, 1, model="smollm2", reward="relevance")
    with open_output("out.jsonl", info, resume=True) as output:
        rows_of = local_rows(engine, reward, open_pool(engine, settings, "2GiB"), in_flight=16)
        for ended in run_batch(requests, rows_of, output):
            print(ended.row)

Where requests run is no matter of `run_batch`. `rows_of` may be that of `local_rows`, on an engine
of this process, or any other function from requests to their rows. One is over the actors of
`specrej.batch.ray`, each of which makes rows with `end`. What it gives is written here, by one
writer. A prompt that fails is a row; what raises has stopped the job.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from specrej.api import RunRequest, run_many
from specrej.batch.output import Output
from specrej.batch.requests import BrokenRequest, Request, read_requests
from specrej.batch.rows import failure_of, row_of
from specrej.engines.base import Engine
from specrej.errors import SpecrejError, UsageError
from specrej.flops import FlopsRow, flops_of
from specrej.rewards.base import Reward
from specrej.search.pool import Pool
from specrej.search.scheduler import Outcome
from specrej.settings import Settings


class FinishedRequest(NamedTuple):
    """A request that has come to its end."""

    row: dict[str, Any]
    """See `specrej.batch.rows`."""
    flops: FlopsRow | None
    """What it cost; None where it failed."""


RowsOf = Callable[[Iterable[Request]], Iterator[FinishedRequest]]
"""Runs requests, which it takes as it has room for them; yields each as it ends, in any order,
every one once."""


def read_all(
    source: str | Path, settings: Settings, num_kept: int, model: str | Path
) -> list[Request | BrokenRequest]:
    """All rows of the input, so that what is wrong with them is known before the model is opened.

    A row in OpenAI's form that asks for another model is broken.

    Raises:
        UsageError: the input cannot be read, or holds no row.
    """
    requests = [
        _of_this_model(request, str(model)) for request in read_requests(source, settings, num_kept)
    ]
    if not requests:
        raise UsageError(
            f"{str(source)!r} holds no row",
            hint='expected rows such as {"id": "a", "prompt": "Why?"}',
        )
    return requests


def _of_this_model(request: Request | BrokenRequest, model: str) -> Request | BrokenRequest:
    if (
        isinstance(request, BrokenRequest)
        or request.completion is None
        or request.completion.model == model
    ):
        return request
    error = UsageError(
        f"the row asks for the model {request.completion.model!r}, the job runs {model!r}",
        hint="give the job the rows of one model, and --model its name as they spell it",
    )
    return BrokenRequest(id=request.id, line=request.line, error=error, form=request.form)


def local_rows(engine: Engine, reward: Reward, pool: Pool, in_flight: int) -> RowsOf:
    """Runs requests on one engine of this process, many of them side by side."""

    def rows_of(requests: Iterable[Request]) -> Iterator[FinishedRequest]:
        running: dict[int, Request] = {}

        def begin() -> Iterator[RunRequest]:
            for number, request in enumerate(requests):
                running[number] = request
                yield RunRequest(request.prompt, request.settings, request.num_skipped)

        for number, outcome in run_many(engine, reward, begin(), pool=pool, in_flight=in_flight):
            yield end(running.pop(number), outcome, engine, reward)

    return rows_of


def end(request: Request, outcome: Outcome, engine: Engine, reward: Reward) -> FinishedRequest:
    """The row of a request that an engine and a reward have answered, or failed on, and what
    that cost.
    """
    if isinstance(outcome, SpecrejError):
        return FinishedRequest(failure_of(request, outcome), None)
    usage = outcome.usage
    lengths = [len(candidate.token_ids) for candidate in outcome.candidates]
    of_reward = reward.flops_per_token
    flops = flops_of(
        engine.flops,
        usage.prompt_tokens,
        lengths,
        of_reward,
        usage.reward_tokens,
        usage.shared_prompt_tokens,
        [candidate.num_inherited for candidate in outcome.candidates],
    )
    return FinishedRequest(row_of(request, outcome, engine.detokenizer), flops)


def num_left(requests: Iterable[Request | BrokenRequest], output: Output) -> int:
    """Prompts to run: where there are none, no model is needed."""
    return sum(
        isinstance(request, Request) and request.id not in output.done for request in requests
    )


def run_batch(
    requests: list[Request | BrokenRequest], rows_of: RowsOf, output: Output
) -> Generator[FinishedRequest, None, None]:
    """Run what has no row yet, and write each row as its prompt ends; yield it when it is written.

    Takes the requests out of their list, so that nothing is held of a row that is written. An
    interrupt lets the write in progress end; closing the generator frees what is in flight.

    Raises:
        UsageError: the output took no more.
        DeviceMemoryError: the device is too small for what is in flight.
    """
    left = [request for request in requests if request.id not in output.done]
    broken = [request for request in left if isinstance(request, BrokenRequest)]
    waiting = deque(request for request in left if isinstance(request, Request))
    requests.clear()
    del left

    def begin() -> Iterator[Request]:
        while waiting:
            yield waiting.popleft()

    # A signal's handler runs in the main thread, where it cannot break off what another one writes.
    with ThreadPoolExecutor(1) as writer:
        for request in broken:
            ended = FinishedRequest(failure_of(request, request.error), None)
            writer.submit(output.append, ended.row).result()
            yield ended
        if waiting:
            for ended in rows_of(begin()):
                writer.submit(output.append, ended.row).result()
                yield ended
