"""Rows of benchmark tables by one command each."""

import os
from collections.abc import Mapping
from contextlib import closing
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
    open_given,
    settings_of,
    stdout_for_results,
    stoppable,
    takes_options,
)
from specrej.errors import UsageError

if TYPE_CHECKING:
    from specrej.evaluation.judge_client import JudgeServer
    from specrej.evaluation.prompts import Loaded
    from specrej.evaluation.reproduce.protocol import Answered, Protocol
    from specrej.evaluation.reproduce.running import RowOutcome
    from specrej.settings import Settings

_Row = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="The row; without it, all are listed.", show_default=False
    ),
]


_Output = Annotated[Path | None, typer.Option(help="The run's folder.", show_default=False)]
_Prompts = Annotated[
    str | None,
    typer.Option(
        help="A JSONL file or a set, in place of the protocol's prompts.", show_default=False
    ),
]
_Methods = Annotated[
    str | None,
    typer.Option(
        help="In place of the protocol's methods, as for bench; the others are compared with the "
        "first.",
        show_default=False,
    ),
]
_Judge = Annotated[
    str | None, typer.Option(help="The judge's name at its endpoint.", metavar="MODEL")
]
_JudgeUrl = Annotated[str, typer.Option(help="An OpenAI-compatible endpoint.")]
_KeyVariable = Annotated[str, typer.Option(help="The environment variable that holds the API key.")]
_Concurrency = Annotated[int, typer.Option(help="Requests to the judge at a time.")]
_Disagreement = Annotated[
    Path | None,
    typer.Option(
        help="How much is disagreed on each prompt, in place of the variance of rewards.",
        metavar="FILE",
    ),
]
_Limit = Annotated[int | None, typer.Option(help="Only the first so many prompts.")]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
]


@takes_options("algorithm", "n", "alpha", "policy", "continue_final_message", *CHOICE)
def reproduce(
    context: typer.Context,
    name: _Row = None,
    *,
    output: _Output = None,
    prompts: _Prompts = None,
    methods: _Methods = None,
    judge: _Judge = None,
    judge_url: _JudgeUrl = "https://api.openai.com/v1",
    api_key_variable: _KeyVariable = "OPENAI_API_KEY",
    concurrency: _Concurrency = 8,
    disagreement: _Disagreement = None,
    limit: _Limit = None,
    resume: _Resume = False,
    json: Json = False,
    **given: Any,
) -> None:
    """Run one row of a benchmark table by its protocol: answers, judge, figures, page."""
    from specrej.evaluation.reproduce import ROWS, find_row
    from specrej.evaluation.reproduce.running import check, conclude

    with exit_codes():
        if name is None:
            _list(ROWS, as_json=json)
            return
        protocol = find_row(name)
        if output is None:
            raise UsageError("a row needs a folder of its own", hint="give it by --output DIR")
        asked = {key for key in given if _is_asked(context, key)}
        server = _judge_of(judge, judge_url, api_key_variable, concurrency)
        loaded = _prompts_of(protocol, prompts, limit)
        own = _with_protocol(protocol, given, asked)
        words = methods.split(",") if methods else protocol.methods
        chosen = [word.strip() for word in words if word.strip()]
        known = _disagreement_of(disagreement, loaded)
        check(protocol, loaded, server, known)
        with stoppable(how_to_resume(output)):
            settings = _generate(protocol, loaded, own, chosen, output, resume=resume)
            answered = _judge(protocol, loaded, chosen[0], server, known, output)
            _end(output, conclude(protocol, answered, settings, server), as_json=json)


def _is_asked(context: typer.Context, name: str) -> bool:
    """Whether an option was given by the user."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _judge_of(model: str | None, url: str, variable: str, concurrency: int) -> "JudgeServer | None":
    from specrej.evaluation.judge_client import JudgeServer

    if model is None:
        return None
    return JudgeServer(
        base_url=url, model=model, api_key=os.environ.get(variable), concurrency=concurrency
    )


def _prompts_of(protocol: "Protocol", prompts: str | None, limit: int | None) -> "Loaded":
    from specrej.cli import display
    from specrej.evaluation.prompts import load_prompts

    source = prompts or protocol.prompts
    if source is None:
        raise UsageError(
            f"the prompts of the row {protocol.name!r} are no set that can be loaded",
            hint="give a JSONL file by --prompts",
        )
    loaded = load_prompts(source, protocol.num_prompts if limit is None else limit)
    for line, reason in loaded.broken:
        display.print_note(f"line {line} is left out: {reason}")
    return loaded


def _with_protocol(protocol: "Protocol", given: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The options, those that the user did not give as the protocol has them.

    Raises:
        UsageError: another reward where the protocol has one of its own.
    """
    own = {**given, **{key: v for key, v in protocol.settings.items() if key not in asked}}
    if protocol.own_reward is not None:
        own["reward"] = protocol.own_reward.format(model=given["model"])
        if "reward" in asked and given["reward"] != own["reward"]:
            raise UsageError(
                f"the row {protocol.name!r} has a reward of its own, {own['reward']!r}, got "
                f"{given['reward']!r}",
                hint="leave --reward out",
            )
    return own


def _disagreement_of(path: Path | None, loaded: "Loaded") -> dict[str, float] | None:
    from specrej.evaluation.reproduce.running import read_disagreement

    return None if path is None else read_disagreement(path, loaded)


def _generate(
    protocol: "Protocol",
    loaded: "Loaded",
    given: dict[str, Any],
    words: list[str],
    output: Path,
    *,
    resume: bool,
) -> "Settings":
    """All answers; the settings that they have in common."""
    from specrej.cli.progress import RowProgress
    from specrej.evaluation.bench import parse_methods
    from specrej.evaluation.folder import check_free
    from specrej.evaluation.reproduce.running import generate

    settings = settings_of(given)
    note_greedy(settings)
    methods = parse_methods(words, settings)
    check_free(output, resume=resume)
    with (
        stdout_for_results(),
        RowProgress(total=len(methods) * len(loaded.tasks), unit="rows") as progress,
        open_given(given) as (engine, reward),
    ):
        progress.begin()
        run = generate(
            protocol, loaded, methods, engine, reward, output, settings=settings, resume=resume
        )
        with closing(run) as rows:
            for row in rows:
                error = row["error"]
                progress.advance(f"{row['prompt_id']} {row['method']}", error and error["message"])
    return settings


def _judge(
    protocol: "Protocol",
    loaded: "Loaded",
    baseline: str,
    server: "JudgeServer | None",
    known: dict[str, float] | None,
    output: Path,
) -> "Answered":
    """The answers with all that the judge says of them."""
    from specrej.cli.progress import RowProgress
    from specrej.evaluation.reproduce.running import ask_judge, read_answered

    answered = read_answered(output, loaded, baseline, server, known)
    if server is None:
        return answered
    with RowProgress(total=len(protocol.questions(answered)), unit="judgements") as progress:
        for judgement in ask_judge(protocol, answered, server, output):
            progress.advance(judgement["prompt_id"], judgement["error"])
    return read_answered(output, loaded, baseline, server, known)


def _end(output: Path, outcome: "RowOutcome", *, as_json: bool) -> None:
    """Write what the row came to, and say it."""
    from specrej.cli import display, tables
    from specrej.evaluation.reproduce.page import digits_of, headline, write_page
    from specrej.evaluation.reproduce.running import write_outcome

    write_outcome(output, outcome)
    page = write_page(output, outcome)
    line = None
    if as_json:
        display.print_json(outcome)
    else:
        tables.print_measured(outcome["figures"], digits_of)
        for title, lines in (
            ("other than the protocol", outcome["differences"]),
            ("to be known", outcome["notes"]),
        ):
            for one in lines:
                typer.echo(f"{title}: {one}")
        calls = outcome["calls"]
        asked = (
            f"; {calls['requests']} requests to the judge, {calls['cached']} from the cache, "
            f"{calls['prompt_tokens'] + calls['completion_tokens']:,} tokens"
        )
        line = f"{headline(outcome)} Elsewhere: {outcome['known']}. Page: {page}{asked}"
    end_with(
        line,
        num_failed=outcome["num_failed"],
        num_all=outcome["num_prompts"] * len(outcome["methods"]),
    )


def _list(rows: "Mapping[str, Protocol]", *, as_json: bool) -> None:
    """All rows, what each needs, and what its protocol leaves open."""
    from specrej.cli import display

    if as_json:
        display.print_json({"rows": [_described(row) for row in rows.values()]})
        return
    for row in rows.values():
        typer.echo(f"{row.name}: {row.title}")
        typer.echo(f"  elsewhere: {row.known}")
        typer.echo(f"  prompts: {row.num_prompts}, {row.prompts or 'a file by --prompts'}")
        typer.echo(f"  methods: {', '.join(row.methods)}")
        typer.echo(f"  judge: {'needed' if row.needs_judge else 'none'}")
        typer.echo(f"  needs: {row.needs}")
        for point in row.open_points:
            typer.echo(f"  open: {point}")


def _described(row: "Protocol") -> dict[str, Any]:
    return {
        "row": row.name,
        "title": row.title,
        "known": row.known,
        "prompts": row.prompts,
        "num_prompts": row.num_prompts,
        "methods": row.methods,
        "settings": dict(row.settings),
        "temperatures": dict(row.temperatures),
        "needs_judge": row.needs_judge,
        "needs_references": row.needs_references,
        "needs": row.needs,
        "open_points": row.open_points,
    }
