"""What commands share: the options of the Python interface, and what an error means as an exit code.

Exit codes: 0, 1 (a model or reward failed), 2 (arguments that cannot be honoured), 130 (Ctrl-C), 143 (SIGTERM), and 141
where nobody reads what goes to stdout any more.
"""

import contextlib
import dataclasses
import inspect
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from specrej.engines.base import Engine
from specrej.errors import SpecrejError, UsageError
from specrej.opening import Opening, OpeningOptions
from specrej.rewards.base import Reward
from specrej.settings import Settings
from specrej.types import GREEDY_NOTE

_DEFAULTS = {**vars(Opening()), **Settings().to_dict()}
Command = TypeVar("Command", bound=Callable[..., None])
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def _count(words: str | int) -> str | int:
    """A number where it is one; `Settings` judges the rest."""
    try:
        return int(words)
    except ValueError:
        return str(words)


def _json_object(words: str | dict[str, Any]) -> dict[str, Any]:
    """The object that these words are; typer hands defaults through as they are."""
    if isinstance(words, dict):
        return words
    try:
        given = json.loads(words)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON ({error}): {words!r}") from error
    if not isinstance(given, dict):
        raise typer.BadParameter(f"not a JSON object: {words!r}")
    return given


def _option(words: str, **how: Any) -> Any:
    return typer.Option(help=words, **how)


_MODEL, _SEARCH, _SAMPLING = (
    {"rich_help_panel": title} for title in ("Model and reward", "How answers are chosen", "How tokens are drawn")
)
_OPTIONS: dict[str, Any] = {
    "model": Annotated[str, _option("A default model, a Hugging Face id or a directory.", **_MODEL)],
    "reward": Annotated[
        str,
        _option(
            "relevance, logprob, classifier:MODEL, ensemble:A*0.7+B*0.3, module:function, ...",
            metavar="REWARD",
            **_MODEL,
        ),
    ],
    "reward_memory": Annotated[
        str | None, _option("KV that a classifier may hold for a prompt; by default 1GiB.", metavar="SIZE", **_MODEL)
    ],
    "engine": Annotated[
        str,
        _option(
            "torch, vllm, openvino, openai:URL (a server), or auto: the fastest that is installed.",
            metavar="ENGINE",
            **_MODEL,
        ),
    ],
    "engine_args": Annotated[
        Any,
        _option(
            'A JSON object that is handed on to the engine, such as {"tensor_parallel_size": 4} to vLLM.',
            parser=_json_object,
            metavar="JSON",
            **_MODEL,
        ),
    ],
    "weights": Annotated[
        str | None, _option("How a CPU holds the weights: fp16 (default) or fp32.", metavar="fp16|fp32", **_MODEL)
    ],
    "device": Annotated[
        str | None, _option("A torch device; by default the first GPU, else the CPU.", metavar="DEVICE", **_MODEL)
    ],
    "special_tokens": Annotated[
        str,
        _option(
            "What becomes of messages that spell special tokens: text, or (allow) these tokens.",
            metavar="text|allow",
            **_MODEL,
        ),
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
    "temperature": Annotated[float, _option("Divides the logits; 0 is greedy: one candidate.", **_SAMPLING)],
    "top_k": Annotated[int, _option("Draw from the k most likely tokens; 0: from all.", **_SAMPLING)],
    "top_p": Annotated[float, _option("Draw from the likeliest tokens that reach this probability.", **_SAMPLING)],
    "min_p": Annotated[float, _option("Drop tokens below this share of the likeliest one.", **_SAMPLING)],
    "repetition_penalty": Annotated[float, _option("Makes tokens seen before less likely; 1.0 is off.", **_SAMPLING)],
    "stop": Annotated[
        list[str], _option("A string that ends an answer; may be given again.", metavar="TEXT", **_SAMPLING)
    ],
    "continue_final_message": Annotated[
        bool,
        _option("Go on with the assistant's message that a conversation ends in; else it is refused.", **_SAMPLING),
    ],
    "seed": Annotated[int, _option("Decides every draw, with candidate and position.", **_SAMPLING)],
}
"""What `generate` and `compare` take, by the names and with the defaults of the Python interface."""

ENGINE_OPTIONS = ("engine", "engine_args", "weights", "device", "special_tokens")
"""Those that `open_engine` takes beside the model."""


def takes_options(*left_out: str) -> Callable[[Command], Command]:
    """Show typer the options above in place of a command's `**given`."""

    def decorate(command: Command) -> Command:
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


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings among the options given."""
    return Settings(**{field.name: given[field.name] for field in dataclasses.fields(Settings) if field.name in given})


def note_greedy(settings: Settings) -> None:
    """Say of a job in which every prompt has one candidate that this is so."""
    from specrej.cli import display

    if settings.sampling.is_greedy:
        display.print_note(GREEDY_NOTE)


def open_given(given: dict[str, Any]) -> tuple[Engine, Reward]:
    """The engine and the reward that the options name; the reward first, which is the cheaper one to be wrong about."""
    return opening_of(given).open()


def opening_of(given: dict[str, Any]) -> Opening:
    """What is opened, among the options given."""
    return Opening(**{name: given[name] for name in OpeningOptions.__annotations__})


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Say what went wrong on stderr, and exit with the code that means it."""
    from specrej.cli import display

    try:
        yield
    except SpecrejError as error:
        display.print_error(error)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except KeyboardInterrupt:
        display.print_note("interrupted before there was a result")
        raise typer.Exit(130) from None


def end_with(line: str | None, *, num_failed: int, num_all: int, to_stderr: bool = False) -> None:
    """Say what a command with many parts came to, last of all; exit with 1 where every one of them failed.

    Args:
        line: what is said; None where it stands in JSON on stdout already.
        num_failed: parts that failed.
        num_all: parts that there were.
        to_stderr: stdout is for something else.
    """
    is_in_vain = 0 < num_all == num_failed
    vain = f"nothing succeeded: all {num_all:,} failed" if is_in_vain else ""
    if line is not None or vain:
        typer.echo(". ".join(part for part in (line, vain) if part), err=to_stderr or line is None)
    if is_in_vain:
        raise typer.Exit(1)


@contextlib.contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, wherever the work is just then: say how to go on, and exit with 143 or 130.

    A second signal ends the process on the spot. Signals that the parent has told it to ignore stay ignored.

    Args:
        advice: what is said after "interrupted; ".
    """
    from specrej.cli import display

    received = signal.SIGINT

    def stop(number: int, _frame: object) -> None:
        nonlocal received
        received = signal.Signals(number)
        for kind in before:
            signal.signal(kind, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {
        kind: handler
        for kind in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(kind)) is not signal.SIG_IGN
    }
    for kind in before:
        signal.signal(kind, stop)
    try:
        yield
    except KeyboardInterrupt:
        display.print_note(f"interrupted; {advice}")
        raise typer.Exit(128 + received) from None
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def how_to_resume(output: Path) -> str:
    """Advice for `stoppable`."""
    return f"what is done is in {output}: give the same command with --resume to go on"


def stdout_for_results() -> contextlib.AbstractContextManager[object]:
    """Send to stderr what libraries and a user's reward print: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)
