"""The command `specrej`: arguments in, calls of the Python interface, an exit code out.

    specrej generate "Give three tips for staying healthy." --memory 64MiB --seed 1
    specrej compare "Give three tips for staying healthy." --memory 64MiB
    specrej batch prompts.jsonl --output answers.jsonl
    specrej serve --port 8000
    specrej bench prompts.jsonl --methods best_of_n:8,speculative_rejection:0.5 --output out
    specrej models pull

What is shown is the work of `display`, what is done that of `api` and `evaluation`. Neither torch
nor transformers is imported before a model is opened.
"""

import io
import sys
from typing import Annotated

import typer

from specrej.cli import answer, batch, calibrate, evaluate, relabel, reproduce, serve
from specrej.cli.pull import models_app
from specrej.cli.ratings import ratings_app
from specrej.threads import settle_threads
from specrej.version import __version__

app = typer.Typer(
    help="Better answers from any language model and any reward: Speculative Rejection and "
    "Best-of-N.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(answer.generate)
app.command()(answer.compare)
app.command(rich_help_panel="Many prompts", cls=batch.BatchCommand)(batch.batch)
app.command(rich_help_panel="Many prompts")(batch.pairs)
app.command(rich_help_panel="Many prompts")(serve.serve)
for _command in (
    evaluate.bench,
    evaluate.trace,
    relabel.relabel,
    evaluate.replay,
    calibrate.calibrate,
    evaluate.report,
    evaluate.judge,
    evaluate.export,
    reproduce.reproduce,
):
    app.command(rich_help_panel="Measuring")(_command)
app.add_typer(ratings_app, name="ratings", rich_help_panel="Measuring")
app.add_typer(models_app, name="models")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"specrej {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Better answers from any language model and any reward: Speculative Rejection and
    Best-of-N.
    """


def main() -> None:
    """Run the command."""
    settle_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # an answer may hold what the terminal cannot write
    app(prog_name="specrej")
