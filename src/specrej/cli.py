"""The command `specrej`: arguments in, calls of the Python interface, an exit code out.

    specrej generate "Give three tips for staying healthy." --memory 64MiB --seed 1
    specrej compare "Give three tips for staying healthy." --memory 64MiB
    specrej models pull

What is shown is the work of `display`, what is done that of `api`. Neither torch nor transformers is imported before a
model is opened. Exit codes: 0, 1 (a model or reward failed), 2 (arguments that cannot be honoured), 130 (Ctrl-C).
"""

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer

from specrej import api, models
from specrej.errors import PromptError, SpecrejError, UsageError
from specrej.settings import Settings
from specrej.version import __version__

app = typer.Typer(
    help="Better answers from any language model and any reward: Speculative Rejection and Best-of-N.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="List the default models, or pull them into the cache.")
app.add_typer(models_app, name="models")

_DEFAULTS = {**(api.generate.__kwdefaults__ or {}), **Settings().to_dict()}
_Command = TypeVar("_Command", bound=Callable[..., None])
_Prompt = Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def _count(words: str | int) -> str | int:
    """A number where it is one; `Settings` judges the rest."""
    try:
        return int(words)
    except ValueError:
        return str(words)


def _option(words: str, **how: Any) -> Any:
    return typer.Option(help=words, **how)


_MODEL, _SEARCH, _SAMPLING = (
    {"rich_help_panel": title} for title in ("Model and reward", "How answers are chosen", "How tokens are drawn")
)
_OPTIONS: dict[str, Any] = {
    "model": Annotated[str, _option("A default model, a Hugging Face id or a directory.", **_MODEL)],
    "reward": Annotated[
        str, _option("relevance, logprob, module:function, a classifier's id or directory.", metavar="REWARD", **_MODEL)
    ],
    "weights": Annotated[
        str | None, _option("How a CPU holds the weights: fp16 (default) or fp32.", metavar="fp16|fp32", **_MODEL)
    ],
    "device": Annotated[
        str | None, _option("A torch device; by default the first GPU, else the CPU.", metavar="DEVICE", **_MODEL)
    ],
    "algorithm": Annotated[str, _option("speculative_rejection or best_of_n.", metavar="NAME", **_SEARCH)],
    "n": Annotated[
        Any,
        _option("Candidates to begin with; auto: as many as fit.", parser=_count, metavar="auto|INT", **_SEARCH),
    ],
    "alpha": Annotated[float, _option("Share of the candidates rejected at each decision, in [0, 1).", **_SEARCH)],
    "keep": Annotated[int | None, _option("Keep this many at each decision, in place of a share.", **_SEARCH)],
    "decide": Annotated[
        str,
        _option("budget (when memory is full), every:K or at:A,B tokens.", metavar="budget|every:K|at:A,B", **_SEARCH),
    ],
    "min_tokens": Annotated[
        int, _option("Length that all first candidates can reach when the budget alone decides.", **_SEARCH)
    ],
    "memory": Annotated[
        str | None,
        _option(
            "KV budget, such as 64MiB; by default 8 full-length candidates on a CPU, 80% of a GPU's free memory.",
            metavar="SIZE",
            **_SEARCH,
        ),
    ],
    "max_new_tokens": Annotated[int, _option("Length limit of an answer, in tokens.", **_SAMPLING)],
    "temperature": Annotated[float, _option("Divides the logits; above 0.", **_SAMPLING)],
    "top_k": Annotated[int, _option("Draw from the k most likely tokens; 0: from all.", **_SAMPLING)],
    "top_p": Annotated[float, _option("Draw from the likeliest tokens that reach this probability.", **_SAMPLING)],
    "min_p": Annotated[float, _option("Drop tokens below this share of the likeliest one.", **_SAMPLING)],
    "repetition_penalty": Annotated[float, _option("Makes tokens seen before less likely; 1.0 is off.", **_SAMPLING)],
    "stop": Annotated[
        list[str], _option("A string that ends an answer; may be given again.", metavar="TEXT", **_SAMPLING)
    ],
    "seed": Annotated[int, _option("Decides every draw, with candidate and position.", **_SAMPLING)],
}
"""What `generate` and `compare` take, by the names and with the defaults of the Python interface."""


def _takes_options(*left_out: str) -> Callable[[_Command], _Command]:
    """Show typer the options above in place of a command's `**given`."""

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command)
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=annotation)
            for name, annotation in _OPTIONS.items()
            if name not in left_out
        ]
        own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


@app.command()
@_takes_options()
def generate(prompt: _Prompt, *, json: _Json = False, **given: Any) -> None:
    """Sample many answers to a prompt and print the one that the reward prefers."""
    from specrej import display

    with _exit_codes():
        is_interrupted = False
        with display.Progress([given["algorithm"]], given["model"]) as progress, _stdout_for_results():
            try:
                result = api.generate(_read(prompt), observe=progress, **given)
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


@app.command()
@_takes_options("algorithm")
def compare(prompt: _Prompt, *, json: _Json = False, **given: Any) -> None:
    """Speculative Rejection beside two Best-of-Ns in the same memory: the N that fits, and the N it started with."""
    from specrej import display

    with _exit_codes():
        is_interrupted = False
        with display.Progress(list(display.METHODS), given["model"]) as progress, _stdout_for_results():
            text = _read(prompt)
            try:
                results = api.compare(text, observe=progress, **given)
            except api.Interrupted:
                results = progress.results()
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


@models_app.callback(invoke_without_command=True)
def list_models(context: typer.Context, *, json: _Json = False) -> None:
    """List the default models, or pull them into the cache."""
    if context.invoked_subcommand is not None:
        return
    from specrej import display

    known = [(model, models.is_pulled(model)) for model in models.DEFAULT_MODELS.values()]
    if json:
        display.print_json({"models": [display.model_to_dict(*entry) for entry in known]})
    else:
        display.print_models(known)


@models_app.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Default models; all where none is named.")] = None,
) -> None:
    """Fetch default models into the cache; what is there already stays."""
    with _exit_codes():
        for name in names or models.DEFAULT_MODELS:
            models.pull(name)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"specrej {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Better answers from any language model and any reward: Speculative Rejection and Best-of-N."""


def _read(prompt: str) -> str:
    """The prompt's text; - is stdin without the newline at its end."""
    if prompt == "-" and sys.stdin.isatty():
        typer.echo("reading the prompt from stdin, up to Ctrl-D", err=True)
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n") if prompt == "-" else os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise PromptError(f"the prompt is not UTF-8: {error}") from error


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Say what went wrong on stderr, and exit with the code that means it."""
    from specrej import display

    try:
        yield
    except SpecrejError as error:
        display.print_error(error)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except KeyboardInterrupt:
        display.print_note("interrupted before there was a result")
        raise typer.Exit(130) from None


def _stdout_for_results() -> contextlib.AbstractContextManager[object]:
    """Send to stderr what libraries and a user's reward print: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an answer may hold what the terminal cannot write
    app(prog_name="specrej")
