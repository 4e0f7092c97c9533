"""One prompt: generate, compare."""

import os
import sys
from typing import Annotated, Any

import typer

from specrej import api
from specrej.cli.options import (
    CHOICE,
    Json,
    exit_codes,
    opening_of,
    settings_of,
    stdout_for_results,
    takes_options,
)
from specrej.errors import PromptError
from specrej.files.reading import decode
from specrej.remote.services import without_secrets

_LOCAL = "http://127.0.0.1:8000"
_Prompt = Annotated[
    str, typer.Argument(help="The prompt; - reads it from stdin.", show_default=False)
]


_Server = Annotated[
    str | None,
    typer.Option(
        help="Have a running specrej serve answer, and open nothing: its URL, or local for "
        f"{_LOCAL}. Its key goes in SPECREJ_API_KEY.",
        metavar="URL|local",
        show_default="off",
    ),
]


@takes_options("continue_final_message")
def generate(prompt: _Prompt, *, json: Json = False, server: _Server = None, **given: Any) -> None:
    """Sample many answers to a prompt and print the one that the reward prefers."""
    from specrej.cli import display
    from specrej.cli.live import LiveProgress

    with exit_codes():
        if server is not None:
            _show_asked(_LOCAL if server == "local" else server, prompt, given, json=json)
            return
        settings, opening = settings_of(given), vars(opening_of(given))
        is_interrupted = False
        with (
            LiveProgress([given["algorithm"]], given["model"]) as progress,
            stdout_for_results(),
        ):
            try:
                result = api.generate(_read(prompt), settings=settings, observe=progress, **opening)
            except api.Interrupted as interrupt:
                if interrupt.result is None or not interrupt.result.usage.generated_tokens:
                    raise
                is_interrupted, result = True, interrupt.result
        if json:
            display.print_json(result.to_dict())
        else:
            display.print_result(result, is_interrupted=is_interrupted)
        if is_interrupted:
            raise typer.Exit(130)


def _show_asked(url: str, prompt: str, given: dict[str, Any], *, json: bool) -> None:
    """What a server answers, shown as a run here is."""
    from specrej.cli import display
    from specrej.server.asking import ask

    settings, opening = settings_of(given), opening_of(given)
    text = _read(prompt)
    typer.echo(f"asking {without_secrets(url)}", err=True)
    result = ask(url, text, settings, opening, os.environ.get("SPECREJ_API_KEY"))
    if (kind := result.settings["reward"]) != str(opening.reward):
        display.print_note(f"the server says only that its reward is of the kind {kind!r}")
    if json:
        display.print_json(result.to_dict())
    else:
        display.print_result(result, is_interrupted=not result.is_complete)


@takes_options("algorithm", "continue_final_message", *CHOICE)
def compare(prompt: _Prompt, *, json: Json = False, **given: Any) -> None:
    """Speculative Rejection beside two Best-of-Ns in the same memory: the N that fits, and the N
    it started with.
    """
    from specrej.cli import display
    from specrej.cli.live import LiveProgress

    with exit_codes():
        settings, opening = settings_of(given), vars(opening_of(given))
        is_interrupted = False
        with (
            LiveProgress(list(display.METHODS), given["model"]) as progress,
            stdout_for_results(),
        ):
            text = _read(prompt)
            try:
                results = api.compare(text, settings=settings, observe=progress, **opening)
            except api.Interrupted as interrupt:
                results = {
                    name: one
                    for name, one in interrupt.results.items()
                    if one.usage.generated_tokens
                }
                if not results:
                    raise
                is_interrupted = True
        if json:
            methods = {name: result.to_dict() for name, result in results.items()}
            display.print_json({"prompt": text, "methods": methods})
        else:
            display.print_comparison(results, is_interrupted=is_interrupted)
        if is_interrupted:
            raise typer.Exit(130)


def _read(prompt: str) -> str:
    """The prompt's text; - is stdin without the newline at its end."""
    if prompt == "-" and sys.stdin.isatty():
        typer.echo("reading the prompt from stdin, up to Ctrl-D", err=True)
    if prompt == "-":
        return decode(sys.stdin.buffer.read(), "stdin").rstrip("\r\n")
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise PromptError(f"the prompt is not UTF-8: {error}") from error
