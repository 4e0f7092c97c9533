"""`specrej reproduce paper`: two rows and a trace, and the paper's tables and figures of them."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specrej.cli.options import (
    end_with,
    how_to_resume,
    open_given,
    settings_of,
    stdout_for_results,
    stoppable,
)
from specrej.cli.reproducing import generate_answers, judge_answers, say_lines, with_protocol
from specrej.evaluation.reproduce.paper import plan as planned

if TYPE_CHECKING:
    from specrej.evaluation.judge_client import JudgeServer
    from specrej.evaluation.prompts import Loaded
    from specrej.evaluation.reproduce.paper.outcome import PaperOutcome
    from specrej.evaluation.reproduce.paper.plan import PaperPart, Plan
    from specrej.evaluation.reproduce.running import RowOutcome
    from specrej.settings import Settings


def reproduce_paper(
    plan: "Plan",
    loaded: "Loaded",
    given: dict[str, Any],
    asked: set[str],
    server: "JudgeServer | None",
    known: dict[str, float] | None,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    """Run both tables and the trace, each where it was stopped; figures, page.

    Args:
        plan: what is run, and where.
        loaded: the prompts.
        given: the options.
        asked: those that the user gave.
        server: the judge; None leaves Table 1 out.
        known: numbers of disagreement, which are refused.
        resume: go on with what the folders hold.
        as_json: print the outcome as JSON.
    """
    from specrej.evaluation.reproduce.paper.outcome import conclude_paper

    options = [_options(part, given, asked) for part in plan.parts]
    _check(plan, loaded, server, known, options[0], resume=resume)
    with stoppable(how_to_resume(plan.output)):
        outcomes = {
            part.protocol.name: _run(part, loaded, own, server, resume=resume)
            for part, own in zip(plan.parts, options, strict=True)
        }
        _record(plan, loaded, options[0], resume=resume)
        outcome = conclude_paper(plan, outcomes, server.name if server else None)
        _end(plan.output, outcome, as_json=as_json)


def _options(part: "PaperPart", given: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """Table 2 has a reward of its own beside the one that the user gave for Table 1."""
    of_part = asked - {"reward"} if part.protocol.own_reward else asked
    return with_protocol(part.protocol, given, of_part)


def _check(
    plan: "Plan",
    loaded: "Loaded",
    server: "JudgeServer | None",
    known: dict[str, float] | None,
    options: dict[str, Any],
    *,
    resume: bool,
) -> None:
    """See to what all parts need, before the first begins."""
    from specrej.evaluation.bench import parse_methods
    from specrej.evaluation.folder import check_free
    from specrej.evaluation.recording import lengths_of
    from specrej.evaluation.reproduce.running import check

    settings = settings_of(options)
    for part in plan.parts:
        check(part.protocol, loaded, server, known)
        parse_methods(part.methods, settings)
    lengths_of(planned.checkpoints_of(settings.max_new_tokens))
    for folder in (*(part.folder for part in plan.parts), plan.trace):
        check_free(folder, resume=resume)


def _run(
    part: "PaperPart",
    loaded: "Loaded",
    options: dict[str, Any],
    server: "JudgeServer | None",
    *,
    resume: bool,
) -> "RowOutcome":
    from specrej.evaluation.reproduce.running import conclude

    protocol, words = part.protocol, list(part.methods)
    judge = server if protocol.needs_judge else None
    settings = generate_answers(protocol, loaded, options, words, part.folder, resume=resume)
    answered = judge_answers(protocol, loaded, words[0], judge, None, part.folder)
    return conclude(protocol, answered, settings, judge)


def _record(plan: "Plan", loaded: "Loaded", options: dict[str, Any], *, resume: bool) -> None:
    """The trace of Figures 2 and 4."""
    from specrej.cli.progress import RowProgress, follow
    from specrej.evaluation.recording import record

    settings: Settings = settings_of({**options, "n": plan.num_traced})
    with (
        stdout_for_results(),
        RowProgress(total=len(loaded.tasks), unit="traces") as progress,
        open_given(options, [settings]) as (engine, reward),
    ):
        progress.begin()
        run = record(
            loaded,
            engine,
            reward,
            plan.trace,
            settings=settings,
            checkpoints=planned.checkpoints_of(settings.max_new_tokens),
            resume=resume,
        )
        with closing(run):
            follow(run, progress)


def _end(output: Path, outcome: "PaperOutcome", *, as_json: bool) -> None:
    """Write what it came to, and say it."""
    from specrej.cli import display, tables
    from specrej.evaluation.reproduce.paper.page import cost_of, finding, paper_tables, write_page
    from specrej.files.journal import write_json

    write_json(output / f"{planned.NAME}.json", outcome)
    page = write_page(output, outcome)
    line = None
    if as_json:
        display.print_json(outcome)
    else:
        for table in paper_tables(outcome):
            tables.print_page_table(table)
        typer.echo(f"95% intervals are in {planned.NAME}.json and on the page")
        say_lines(
            {
                "left out": outcome["left_out"],
                "other than the paper": outcome["differences"],
                "to be known": outcome["notes"],
            }
        )
        line = (
            f"{finding(outcome)} The paper: {outcome['paper_figures']['3']}. Page: {page}; "
            f"{cost_of(outcome['spent']['total'])}, "
            f"{outcome['calls']['requests']} requests to the judge; seed {outcome['seed']}"
        )
    end_with(line, num_failed=outcome["num_failed"], num_all=outcome["num_all"])


def list_paper() -> None:
    """What it is and needs, as of the rows."""
    for line in (
        f"{planned.NAME}: {planned.TITLE}",
        f"  elsewhere: {planned.KNOWN}",
        "  prompts: 100, a file by --prompts",
        f"  methods: {', '.join(planned.METHODS)}; Table 2: {', '.join(planned.TABLE_2_METHODS)}",
        "  judge: for Table 1",
        f"  needs: {planned.NEEDS}",
        *(f"  open: {point}" for point in planned.OPEN_POINTS),
    ):
        typer.echo(line)


def describe_paper() -> dict[str, Any]:
    """The same in JSON's types."""
    return {
        "row": planned.NAME,
        "title": planned.TITLE,
        "known": planned.KNOWN,
        "prompts": None,
        "num_prompts": 100,
        "methods": planned.METHODS,
        "table_2_methods": planned.TABLE_2_METHODS,
        "needs_judge": False,
        "needs": planned.NEEDS,
        "open_points": planned.OPEN_POINTS,
    }
