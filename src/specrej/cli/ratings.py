"""Answers for people to rate: a sheet out, raters' files in."""

from pathlib import Path
from typing import Annotated

import typer

from specrej.cli.options import Json, exit_codes

ratings_app = typer.Typer(
    help="Have people rate a bench's answers: write a blinded sheet, read their scores back.",
    no_args_is_help=True,
)
_Folder = Annotated[Path, typer.Argument(help="A bench's folder.", show_default=False)]


@ratings_app.command("export")
def export_command(
    directory: _Folder,
    *,
    output: Annotated[
        list[Path],
        typer.Option(
            help="The sheet, a .csv or an .html. May be given again, for both.", show_default=False
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(help="Whose answers, separated by commas.", show_default="all of the run"),
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option(help="Of the items' order.")] = 0,
    scale: Annotated[
        str, typer.Option(help="The lowest and the highest score.", metavar="LOW-HIGH")
    ] = "1-10",
    json: Json = False,
) -> None:
    """Write a blinded, shuffled sheet for raters, and the key that stays with you."""
    from specrej.cli import display
    from specrej.evaluation.ratings.sheet import export_sheet

    with exit_codes():
        chosen = [word.strip() for word in methods.split(",") if word.strip()]
        made = export_sheet(directory, output, methods=chosen, limit=limit, seed=seed, scale=scale)
        if json:
            paths = {"outputs": list(map(str, output)), "key": str(made.key)}
            display.print_json({**made._asdict(), **paths})
            return
        line = (
            f"{made.num_items} items in {', '.join(map(str, output))}: {made.num_answers} answers "
            f"to {made.num_prompts} prompts; seed {seed}. "
        )
        if made.num_left_out:
            failures = [f"{name} failed on {count}" for name, count in made.failed.items()]
            why = f" ({', '.join(failures)})" if failures else ""
            line += f"{made.num_left_out} prompts that not all methods answered are left out{why}. "
        line += f"The key is {made.key}: keep it from raters. "
        typer.echo(f"{line}Next: specrej ratings import {directory} FILES")


@ratings_app.command("import")
def import_command(
    directory: _Folder,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What raters sent back: filled CSV files (named after their raters), and files "
            "that the page saved.",
            show_default=False,
        ),
    ],
    *,
    json: Json = False,
) -> None:
    """Read raters' files: mean score of each method, agreement, and the high-disagreement
    fifth.
    """
    from specrej.cli import display, tables
    from specrej.evaluation.ratings.summary import import_ratings

    with exit_codes():
        summary = import_ratings(directory, files)
        if json:
            display.print_json(summary)
        else:
            tables.print_ratings(summary)
