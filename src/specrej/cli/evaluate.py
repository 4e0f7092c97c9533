"""Measuring: bench, trace, replay, report, judge, export."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrej.cli.options import (
    CHOICE,
    Json,
    end_with,
    exit_codes,
    how_to_resume,
    note_greedy,
    note_policy,
    note_unused,
    open_given,
    settings_of,
    stdout_for_results,
    stoppable,
    takes_options,
)
from specrej.errors import UnknownNameError, UsageError
from specrej.rewards import as_reward

if TYPE_CHECKING:
    from specrej.evaluation.judge import VerdictRow
    from specrej.evaluation.prompts import Loaded
    from specrej.evaluation.replay import Rescorer
    from specrej.evaluation.rows import RunInfo

_Prompts = Annotated[
    str,
    typer.Argument(
        help="A JSONL file (prompt, messages or turns in each row), - for stdin, or a set such as "
        "mt_bench.",
        show_default=False,
    ),
]
_Output = Annotated[Path, typer.Option(help="The run's folder.", show_default=False)]
_Folder = Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)]
_Limit = Annotated[int | None, typer.Option(help="Only the first so many prompts.")]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
]
_Baseline = Annotated[
    str | None,
    typer.Option(
        help="What the others are compared with; by default the largest Best-of-N.",
        metavar="METHOD",
    ),
]


_Policies = Annotated[
    str,
    typer.Option(
        help="A file with a policy a line, or grid: several hundred.", metavar="FILE|grid"
    ),
]
_Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Score again where a decision falls between checkpoints, with the trace's reward.",
    ),
]


@takes_options(
    *("algorithm", "n", "alpha", "threshold", "policy", "continue_final_message", "top_logprobs")
)
def bench(
    prompts: _Prompts,
    *,
    methods: Annotated[
        str,
        typer.Option(
            help="best_of_n:N, speculative_rejection:ALPHA, speculative_rejection:ALPHA:N, "
            "majority_vote:N, policy:FILE.json, module:function:N and more of docs/algorithms.md, "
            "separated by commas.",
            show_default=False,
        ),
    ],
    output: _Output,
    baseline: _Baseline = None,
    limit: _Limit = None,
    resume: _Resume = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Run several methods on many prompts, on one engine, in the same memory, with the same
    seed.
    """
    from specrej.cli.progress import RowProgress, follow_rows
    from specrej.evaluation.bench import parse_methods, run_bench
    from specrej.evaluation.folder import check_free, count_rows
    from specrej.evaluation.metrics import default_baseline

    with exit_codes(), stoppable(how_to_resume(output)):
        settings = settings_of(given)
        note_greedy(settings)
        chosen = parse_methods(
            [word.strip() for word in methods.split(",") if word.strip()], settings
        )
        note_unused([method.settings for method in chosen])
        names = [method.name for method in chosen]
        named = baseline or default_baseline(names)
        if named not in names:
            raise UnknownNameError("method", named, names)
        loaded = _load(prompts, limit)
        check_free(output, resume=resume)
        total, num_before = len(chosen) * len(loaded.tasks), count_rows(output) if resume else 0
        with (
            stdout_for_results(),
            RowProgress(total=total, unit="rows", num_done=num_before) as progress,
            open_given(given, [method.settings for method in chosen]) as (engine, reward),
        ):
            for method in chosen:
                note_policy(engine, reward, method.settings)
            progress.begin()
            run = run_bench(
                loaded, chosen, engine, reward, output, settings=settings, resume=resume
            )
            follow_rows(run, progress)
        _end_bench(output, named, num_before, settings.seed, as_json=json)


@takes_options(
    *("algorithm", "n", "alpha", "keep", "decide", "min_tokens", "policy"),
    *("refill", "continue_final_message", "top_logprobs", *CHOICE),
)
def trace(
    prompts: _Prompts,
    *,
    n: Annotated[int, typer.Option(help="Candidates of each prompt.")] = 64,
    checkpoints: Annotated[
        str,
        typer.Option(help="Lengths to score at, in tokens, separated by commas.", metavar="A,B,C"),
    ] = "8,16,32,64,128",
    output: _Output,
    limit: _Limit = None,
    resume: _Resume = False,
    **given: Any,
) -> None:
    """Record Best-of-N with the reward of every candidate at checkpoints, for `specrej replay`."""
    from specrej.cli.progress import RowProgress, follow
    from specrej.evaluation.folder import check_free
    from specrej.evaluation.recording import lengths_of, record
    from specrej.evaluation.trace import load_failures

    with exit_codes(), stoppable(how_to_resume(output)):
        settings = settings_of({**given, "n": n})
        note_greedy(settings)
        lengths = lengths_of(_numbers(checkpoints))
        loaded = _load(prompts, limit)
        check_free(output, resume=resume)
        with (
            stdout_for_results(),
            RowProgress(total=len(loaded.tasks), unit="prompts") as progress,
            open_given(given, [settings]) as (engine, reward),
        ):
            progress.begin()
            run = record(
                loaded,
                engine,
                reward,
                output,
                settings=settings,
                checkpoints=lengths,
                resume=resume,
            )
            num_run, num_failed = follow(run, progress)
        end_with(
            f"{len(loaded.tasks)} prompts in {output} ({num_run} run now, {num_failed} of them "
            "failed); "
            f"seed {settings.seed}. Next: specrej replay {output}",
            num_failed=len(load_failures(output)),
            num_all=len(loaded.tasks),
        )


def replay(
    directory: _Folder, *, policies: _Policies = "grid", exact: _Exact = False, json: Json = False
) -> None:
    """Say what Speculative Rejection would have done on a trace, by any policy."""
    from specrej.cli import display, tables
    from specrej.evaluation.folder import read_info
    from specrej.evaluation.policy_grid import grid, read_policies
    from specrej.evaluation.replay_summary import REPLAY, replay_folder
    from specrej.evaluation.trace import load

    with exit_codes():
        info = read_info(directory)
        traces = list(load(directory))
        chosen = grid(traces) if policies == "grid" else read_policies(Path(policies))
        with _rescorer(info) if exact else nullcontext() as rescore:
            summary = replay_folder(directory, chosen, rescore)
        if json:
            display.print_json(summary)
            return
        tables.print_replay(summary)
        num_errors = sum(row["error"] is not None for row in summary["policies"])
        typer.echo(
            f"{len(chosen)} policies on {summary['num_prompts']} prompts in {directory / REPLAY}, "
            f"{num_errors} of them not to be replayed. For the page: specrej report {directory}"
        )


@contextmanager
def _rescorer(info: "RunInfo") -> Iterator["Rescorer"]:
    """What scores a trace's texts again, with its reward."""
    from specrej.evaluation.replay import Rescorer
    from specrej.hub.sources import load_codec, locate_model

    with stdout_for_results():
        codec = load_codec(locate_model(info["engine"]["model"]))
        reward = as_reward(info["settings"]["reward"])
    with closing(reward):
        yield Rescorer(reward, codec.decode)


def report(directory: _Folder, *, baseline: _Baseline = None) -> None:
    """Write one HTML page on a run, and its figures as SVG and PNG."""
    from specrej.evaluation.report import write_report

    with exit_codes():
        typer.echo(write_report(directory, baseline=baseline))


def judge(
    directory: _Folder,
    *,
    method: Annotated[
        str, typer.Option(help="The method to judge, as the run calls it.", show_default=False)
    ],
    baseline: Annotated[str, typer.Option(help="What it is compared with.", show_default=False)],
    base_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible endpoint.")
    ] = "https://api.openai.com/v1",
    judge_model: Annotated[str, typer.Option(help="The judge's name there.", show_default=False)],
    api_key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the API key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
) -> None:
    """Ask a judge which of two methods answered better, in both orders, prompt by prompt."""
    from specrej.cli.progress import RowProgress
    from specrej.evaluation import judge as judging
    from specrej.evaluation.folder import read_bench
    from specrej.evaluation.judge_client import JudgeServer

    cache = directory / "judge_cache"
    with (
        exit_codes(),
        stoppable(f"the judge's answers are in {cache}: give the same command to go on"),
    ):
        _, rows = read_bench(directory)
        endpoint = JudgeServer(
            base_url=base_url,
            model=judge_model,
            api_key=os.environ.get(api_key_variable),
            concurrency=concurrency,
        )
        verdicts = judging.judge(
            rows, method=method, baseline=baseline, endpoint=endpoint, cache=cache
        )
        total = sum(row["method"] == method for row in rows)
        done = []
        with RowProgress(total=total, unit="prompts") as progress:
            for verdict in judging.record(directory / judging.JUDGEMENTS, verdicts):
                done.append(verdict)
                progress.advance(verdict["prompt_id"], verdict["error"])
        _end_judge(f"{method} against {baseline}, judged by {endpoint.name}", done)


def _end_judge(what: str, done: "list[VerdictRow]") -> None:
    """Say what a judge came to."""
    from specrej.evaluation.judge_client import total_calls

    counts = Counter(row["verdict"] for row in done)
    shown = ", ".join(f"{counts[word]} {word}" for word in ("win", "tie", "loss", "failed"))
    calls = total_calls(done)
    end_with(
        f"{what}: {shown}; {calls['requests']} requests, {calls['cached']} from the cache, "
        f"{calls['prompt_tokens'] + calls['completion_tokens']:,} tokens",
        num_failed=counts["failed"],
        num_all=len(done),
    )


def export(
    directory: _Folder,
    *,
    method: Annotated[
        str, typer.Option(help="The method whose answers are wanted.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="The evaluator that is to read it.", metavar="NAME")
    ] = "alpaca_eval",
    prompts: Annotated[
        str | None,
        typer.Option(help="The bench's prompts; needed where all methods failed on one."),
    ] = None,
) -> None:
    """Write a method's answers for alpaca_eval (model_outputs.json) or mt_bench (FastChat's
    model_answer).
    """
    from specrej.evaluation import exports
    from specrej.evaluation.folder import read_bench
    from specrej.evaluation.prompts import load_prompts

    with exit_codes():
        rows = read_bench(directory)[1]
        tasks = load_prompts(prompts).tasks if prompts else ()
        done = exports.export(output, rows, method, to, tasks)
        line = f"{done.answers} answers of {method} for {to} in {output}"
        line += f", {done.failed} of them empty since the method failed" if done.failed else ""
        line += f"; flattened: {done.flattened}" if done.flattened else ""
        end_with(line, num_failed=done.failed, num_all=done.answers)


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise UsageError(
            f"checkpoints must be lengths separated by commas, got {words!r}"
        ) from None


def _load(prompts: str, limit: int | None) -> "Loaded":
    """The prompts; what is left out of them is said."""
    from specrej.cli import display
    from specrej.evaluation.prompts import load_prompts

    loaded = load_prompts(prompts, limit)
    for line, reason in loaded.broken:
        display.print_note(f"line {line} is left out: {reason}")
    return loaded


def _end_bench(output: Path, baseline: str, num_before: int, seed: int, *, as_json: bool) -> None:
    """Say what a bench came to, rows of earlier runs included."""
    from specrej.cli import display, tables
    from specrej.evaluation.folder import read_bench
    from specrej.evaluation.judge import read_verdicts
    from specrej.evaluation.metrics import summarize

    info, done = read_bench(output)
    summary = summarize(done, baseline, read_verdicts(output))
    num_failed, line = sum(row["error"] is not None for row in done), None
    if as_json:
        display.print_json({"run": info, "summary": summary})
    else:
        tables.print_bench(summary)
        line = (
            f"{len(done)} rows in {output}, {num_failed} failed ({len(done) - num_before} run "
            f"now); {tables.totals_of(summary['methods'])}; seed {seed}. For the page: "
            f"specrej report {output}"
        )
    end_with(line, num_failed=num_failed, num_all=len(done))
