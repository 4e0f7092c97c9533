"""Many prompts: batch, pairs."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from specrej import api
from specrej.cli.options import (
    Json,
    check_sharing,
    end_with,
    exit_codes,
    how_to_resume,
    note_greedy,
    note_policy,
    open_given,
    opening_of,
    settings_of,
    stdout_for_results,
    stoppable,
    takes_options,
    typer_option,
)
from specrej.cli.spending import check_spending, opened_waves
from specrej.errors import SpecrejError, UsageError
from specrej.memory import format_bytes
from specrej.settings import Settings

if TYPE_CHECKING:
    from specrej.batch.description import JobInfo
    from specrej.batch.job import RowsOf
    from specrej.batch.output import Output
    from specrej.batch.requests import BrokenRequest, Request
    from specrej.batch.summary import BatchSummary, Tally
    from specrej.cli.spending import Spread
    from specrej.search.pool import Pool

_STDOUT = Path("-")
_MANY: dict[str, Any] = {"rich_help_panel": "Many prompts"}

_Source = Annotated[
    str,
    typer.Argument(
        help='A JSONL file, or - for stdin: rows such as {"id": "a", "prompt": "Why?"}, or in '
        "OpenAI's batch format.",
        metavar="IN.jsonl",
        show_default=False,
    ),
]
_Output = Annotated[
    Path,
    typer.Option(
        help="Gets a row for each row in, as they end; - for stdout.", show_default=False, **_MANY
    ),
]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the job that the output holds.", **_MANY)
]
_Keep = Annotated[
    int,
    typer.Option(
        help="Answers in a row: the K best of its prompt; from 2 on the lowest as well, for "
        "specrej pairs. "
        "(What is --keep in generate is --keep-at-decisions here.)",
        metavar="K",
        **_MANY,
    ),
]
_TotalMemory = Annotated[
    str | None,
    typer.Option(
        help="KV of all prompts in flight together; decides the speed and no result. By default "
        "--memory where it is "
        "given, else 8 default budgets on a CPU, 80% of a GPU's free memory.",
        metavar="SIZE",
        **_MANY,
    ),
]
_InFlight = Annotated[int, typer.Option(help="Most prompts side by side.", **_MANY)]
_BudgetTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens of all candidates of all prompts: each prompt begins with --n candidates, and "
        "gets --n more as often as that promises most. Needs --algorithm best_of_n.",
        metavar="INT",
        min=1,
        show_default=False,
        **_MANY,
    ),
]
_KeepAtDecisions = Annotated[int | None, typer_option("keep")]
_CLUSTER: dict[str, Any] = {"rich_help_panel": "Many machines"}
_Ray = Annotated[
    str | None,
    typer.Option(
        help="Run on a Ray cluster: HOST:PORT of its head, local for a Ray of this process; "
        "without an address the "
        "cluster of RAY_ADDRESS or of this machine, else local.",
        metavar="[ADDRESS]",
        show_default=False,
        **_CLUSTER,
    ),
]
_Actors = Annotated[
    int, typer.Option(help="Engines; each opens the model on its node. With --ray.", **_CLUSTER)
]
_GpusPerActor = Annotated[
    float, typer.Option(help="GPUs that each reserves; may be a part of one.", **_CLUSTER)
]
_CpusPerActor = Annotated[
    float, typer.Option(help="CPUs that each reserves: the threads it computes with.", **_CLUSTER)
]


class BatchCommand(TyperCommand):
    """Lets `--ray` stand without an address, which typer knows no way to say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelled: list[str] = []
        for word, following in zip(args, [*args[1:], ""], strict=True):
            is_address = following in ("auto", "local") or ":" in following
            spelled += ["--ray", "auto"] if word == "--ray" and not is_address else [word]
        return super().parse_args(ctx, spelled)


@takes_options("keep")
def batch(
    source: _Source,
    *,
    output: _Output,
    resume: _Resume = False,
    keep: _Keep = 1,
    total_memory: _TotalMemory = None,
    in_flight: _InFlight = api.IN_FLIGHT,
    budget_tokens: _BudgetTokens = None,
    keep_at_decisions: _KeepAtDecisions = None,
    ray: _Ray = None,
    actors: _Actors = 1,
    gpus_per_actor: _GpusPerActor = 0,
    cpus_per_actor: _CpusPerActor = 1,
    json: Json = False,
    **given: Any,
) -> None:
    """Answer many prompts, each as generate would; --resume continues a job that was stopped or
    killed.
    """
    from specrej.batch.job import read_all
    from specrej.batch.summary import summarize
    from specrej.cli import display

    advice = "what is done has gone to stdout" if output == _STDOUT else how_to_resume(output)
    with exit_codes(), stoppable(advice):
        settings = settings_of({**given, "keep": keep_at_decisions})
        check_sharing(settings, total_memory, in_flight)
        note_greedy(settings)
        cluster = _cluster(
            address=ray, actors=actors, gpus_per_actor=gpus_per_actor, cpus_per_actor=cpus_per_actor
        )
        _check_output(output, resume=resume, json=json)
        requests = read_all(source, settings, keep, given["model"])
        check_spending(requests, settings, budget_tokens, cluster)
        job = _describe(requests, settings, keep, given, budget_tokens)
        opening = given, settings, total_memory, in_flight
        open_rows = _opener(opening, cluster, requests, budget_tokens)
        with (
            stdout_for_results(),
            _open(output, job, resume=resume) as there,
            opened_waves(
                None if output == _STDOUT else output, job, settings, resume=resume
            ) as spread,
            _advising(advice),
        ):
            now, seconds, pool = _run(requests, there, open_rows, spread)
        summary = summarize(
            there.tally, now, output=str(output), seconds=seconds, pool=pool, job=job
        )
        if json:
            display.print_json(summary)
        end_with(
            None if json else _last_line(summary, keep),
            num_failed=summary["num_failed"],
            num_all=summary["num_rows"],
            to_stderr=output == _STDOUT,
        )


def pairs(
    source: Annotated[
        Path,
        typer.Argument(help="What specrej batch --keep 2 (or more) wrote.", show_default=False),
    ],
    *,
    output: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            help="Pairs of messages, pairs of texts, or conversations with the best answer alone.",
            metavar="conversational|standard|sft",
        ),
    ] = "conversational",
    min_margin: Annotated[float, typer.Option(help="Least difference of the two rewards.")] = 0.0,
) -> None:
    """Write what batch kept in TRL's formats: the best answer against the lowest for DPO, or the
    best alone for SFT.
    """
    from specrej.batch.preferences import write_pairs, write_sft

    with exit_codes():
        if form == "sft":
            num_written, num_failed = write_sft(source, output)
            line = (
                f"{num_written} conversations with their best answers in {output}; {num_failed} "
                "failed"
            )
            end_with(line, num_failed=num_failed, num_all=num_written + num_failed)
            return
        counts = write_pairs(source, output, form=form, min_margin=min_margin)
        end_with(
            f"{counts.pairs} pairs in {output}; without a pair: {counts.failed} failed, "
            f"{counts.alone} with one "
            f"finished answer, {counts.equal} with equal ones, {counts.close} below the margin, "
            f"{counts.unscored} "
            "not scored",
            num_failed=counts.failed,
            num_all=sum(counts),
        )


def _check_output(output: Path, *, resume: bool, json: bool) -> None:
    if output == _STDOUT and (resume or json):
        raise UsageError(
            f"with --output - there is no {'--resume' if resume else '--json'}",
            hint="give a file as --output",
        )


def _cluster(**given: Any) -> dict[str, Any]:
    """What `--ray` and its options say; empty without it."""
    if given["address"] is not None:
        return given
    if given != {"address": None, "actors": 1, "gpus_per_actor": 0, "cpus_per_actor": 1}:
        raise UsageError("actors are Ray's, and there is no --ray", hint="add --ray")
    return {}


def _describe(
    requests: "list[Request | BrokenRequest]",
    settings: Settings,
    num_kept: int,
    given: dict[str, Any],
    budget_tokens: int | None,
) -> "JobInfo":
    from specrej.batch.description import describe_job

    named = vars(opening_of(given)).copy()
    del named["reward_memory"]  # it decides no row
    return describe_job(requests, settings, num_kept, **named, budget_tokens=budget_tokens)


def _open(output: Path, job: "JobInfo", *, resume: bool) -> AbstractContextManager["Output"]:
    from specrej.batch.output import open_output, open_stdout

    return open_stdout() if output == _STDOUT else open_output(output, job, resume=resume)


def _opener(
    opening: tuple[dict[str, Any], Settings, str | None, int],
    cluster: dict[str, Any],
    requests: "list[Request | BrokenRequest]",
    budget_tokens: int | None,
) -> Callable[[], AbstractContextManager[tuple["RowsOf", "Pool | None"]]]:
    """Opens what runs requests, here or on a cluster."""
    if cluster:
        return partial(_open_ray, *opening, cluster)
    return partial(_open_local, *opening, requests, budget_tokens)


@contextmanager
def _open_local(
    given: dict[str, Any],
    settings: Settings,
    total_memory: str | None,
    in_flight: int,
    requests: "list[Request | BrokenRequest]",
    budget_tokens: int | None,
) -> Iterator[tuple["RowsOf", "Pool"]]:
    """What runs requests on an engine of this process, and the memory that they share."""
    from specrej.batch.job import local_rows
    from specrej.batch.requests import Request
    from specrej.rewards.base import check_absolute

    # Those of rows that are done count, so that a resumed job takes the same engine again.
    runs = (request.settings for request in requests if isinstance(request, Request))
    with open_given(given, runs) as (engine, reward):
        if budget_tokens is not None:
            check_absolute(reward, "a budget of tokens, which goes to the prompts that gain most,")
        note_policy(engine, reward, settings)
        pool = api.open_pool(engine, settings, total_memory)
        yield local_rows(engine, reward, pool, in_flight), pool


@contextmanager
def _open_ray(
    given: dict[str, Any],
    settings: Settings,
    total_memory: str | None,
    in_flight: int,
    cluster: dict[str, Any],
) -> Iterator[tuple["RowsOf", None]]:
    """What runs requests on the actors of a cluster; no memory here is shared."""
    from specrej.batch.cluster import ray_rows
    from specrej.batch.ray import ActorSetup

    opening = opening_of(given)
    setup = ActorSetup(
        opening=opening, settings=settings, total_memory=total_memory, in_flight=in_flight
    )
    yield ray_rows(setup, **cluster), None


def _run(
    requests: list["Request | BrokenRequest"],
    output: "Output",
    open_rows: Callable[[], AbstractContextManager[tuple["RowsOf", "Pool | None"]]],
    spread: "Spread",
) -> tuple["Tally", float, "Pool | None"]:
    """Run what is left; what it came to, the seconds it took, and the memory that prompts
    shared.
    """
    from specrej.batch.job import num_left, run_batch
    from specrej.batch.summary import Tally, figures_of
    from specrej.cli.progress import RowProgress

    now = Tally()
    none: tuple[RowsOf, None] = (lambda _: iter(()), None)
    with (
        RowProgress(total=len(requests), unit="prompts", num_done=len(output.done)) as progress,
        open_rows() if num_left(requests, output) else nullcontext(none) as (rows_of, pool),
    ):
        progress.begin()
        begun_s = time.perf_counter()
        with closing(run_batch(requests, spread(rows_of, progress.say), output)) as rows:
            for ended in rows:
                figures = figures_of(ended.row)
                now.add(figures, ended.flops)
                output.tally.add(figures)
                progress.advance(figures.id, figures.message, num_tokens=figures.generated_tokens)
        seconds = time.perf_counter() - begun_s
    return now, seconds, pool


@contextmanager
def _advising(advice: str) -> Iterator[None]:
    """An error that stops a job says what there is, and how to go on."""
    try:
        yield
    except SpecrejError as error:
        error.hint = f"{error.hint}; {advice}" if error.hint else advice
        raise
    except BrokenPipeError:  # whoever read the rows has seen enough
        raise typer.Exit(141) from None


def _last_line(summary: "BatchSummary", num_kept: int) -> str:
    from specrej.cli.display import number

    now, reward, name = summary["this_run"], summary["reward"], summary["output"]
    words = [
        f"{summary['num_rows']} rows in {'stdout' if name == '-' else name}, "
        f"{summary['num_failed']} failed "
        f"({now['num_rows']} run now)",
        f"mean reward {number(reward['mean'])} over {reward['n']}",
        f"{now['tokens']['generated']:,} tokens in {now['seconds']:,.1f} s, "
        f"{now['tokens_per_s']:,.0f} tokens/s",
    ]
    if now["memory"]:
        words.append(
            f"{now['memory']['budget_in_use']:.0%} of {format_bytes(now['memory']['total_bytes'])} "
            "in use"
        )
    if budget := summary["budget"]:
        words.append(
            f"{budget['spent_tokens']:,} of a budget of {budget['tokens']:,} tokens spent; "
            f"candidates of a prompt: {budget['min_candidates']} to {budget['max_candidates']}, "
            f"median {budget['median_candidates']:g}"
        )
    words.append(f"seed {summary['job']['settings']['seed']}")
    line = "; ".join(words)
    if name != "-" and summary["num_failed"]:
        line += f". To run failed rows again: take them out of {name} and give --resume"
    if name != "-" and num_kept > 1:
        line += f". For preference pairs: specrej pairs {name} --output PAIRS.jsonl"
    return line
