"""Rows of benchmark tables by one command each."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrej.cli.options import (
    CHOICE,
    Json,
    end_with,
    exit_codes,
    how_to_resume,
    stoppable,
    takes_options,
)
from specrej.cli.reproducing import (
    disagreement_of,
    generate_answers,
    judge_answers,
    judge_of,
    prompts_of,
    say_lines,
    with_protocol,
)
from specrej.errors import UsageError

if TYPE_CHECKING:
    from specrej.evaluation.judge_client import CallsRow
    from specrej.evaluation.reproduce.protocol import Protocol
    from specrej.evaluation.reproduce.running import RowOutcome

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
    from specrej.cli import display
    from specrej.cli.reproduce_paper import reproduce_paper
    from specrej.evaluation.reproduce import PAPER, ROWS, find_row
    from specrej.evaluation.reproduce.paper.plan import plan_of
    from specrej.evaluation.reproduce.running import check, conclude

    with exit_codes():
        if name is None:
            _list(ROWS, as_json=json)
            return
        protocol = find_row("alpacafarm" if name == PAPER else name)
        if output is None:
            raise UsageError("a row needs a folder of its own", hint="give it by --output DIR")
        asked = {key for key in given if _is_asked(context, key)}
        server = judge_of(judge, judge_url, api_key_variable, concurrency)
        words = [word.strip() for word in (methods or "").split(",") if word.strip()]
        loaded = prompts_of(name, protocol, prompts, limit)
        known = disagreement_of(disagreement, loaded)
        if name == PAPER:
            plan = plan_of(output, words, is_judged=server is not None)
            reproduce_paper(plan, loaded, given, asked, server, known, resume=resume, as_json=json)
            return
        own = with_protocol(protocol, given, asked)
        chosen = words or list(protocol.methods)
        check(protocol, loaded, server, known)
        if server is not None and not protocol.needs_judge:
            display.print_note(f"the row {name!r} asks no judge: --judge is not used")
        with stoppable(how_to_resume(output)):
            settings = generate_answers(protocol, loaded, own, chosen, output, resume=resume)
            answered = judge_answers(protocol, loaded, chosen[0], server, known, output)
            _end(output, conclude(protocol, answered, settings, server), as_json=json)


def _is_asked(context: typer.Context, name: str) -> bool:
    """Whether an option was given by the user."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
        say_lines(
            {
                "other than the protocol": outcome["differences"],
                "to be known": outcome["notes"],
            }
        )
        asked = f"; {_asked(outcome['calls'])}" if outcome["judge"] else ""
        line = f"{headline(outcome)} Elsewhere: {outcome['known']}. Page: {page}{asked}"
    num_failed, num_all = outcome["num_failed"], outcome["num_prompts"] * len(outcome["methods"])
    if 0 < outcome["num_asked"] == outcome["num_unread"]:
        num_failed = num_all = outcome["num_asked"]  # a figure without any judgement is none
    end_with(line, num_failed=num_failed, num_all=num_all)


def _asked(calls: "CallsRow") -> str:
    tokens = calls["prompt_tokens"] + calls["completion_tokens"]
    return (
        f"{calls['requests']} requests to the judge, {calls['cached']} from the cache, "
        f"{tokens:,} tokens"
    )


def _list(rows: "Mapping[str, Protocol]", *, as_json: bool) -> None:
    """All rows, what each needs, and what its protocol leaves open."""
    from specrej.cli import display
    from specrej.cli.reproduce_paper import describe_paper, list_paper

    if as_json:
        described = [_described(row) for row in rows.values()]
        display.print_json({"rows": [*described, describe_paper()]})
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
    list_paper()


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
