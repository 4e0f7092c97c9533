"""What commands share: the options of the Python interface, and what an error means as an exit
code.

Exit codes: 0, 1 (a model or reward failed), 2 (arguments that cannot be honoured), 130 (Ctrl-C),
143 (SIGTERM), and 141 where nobody reads what goes to stdout any more.
"""

import contextlib
import dataclasses
import inspect
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_origin

import typer

from specrej import arguments
from specrej.api import policy_note
from specrej.engines.base import Engine
from specrej.errors import SpecrejError, UsageError
from specrej.files.reading import read_text
from specrej.memory import parse_bytes
from specrej.opening import Opening
from specrej.options import About, kinds_of, options_of
from specrej.rewards.answers import extractor_of
from specrej.rewards.base import Reward
from specrej.search.resolving import algorithm_of, policy_of, unused
from specrej.settings import Settings
from specrej.types import GREEDY_NOTE, SamplingParams

Command = TypeVar("Command", bound=Callable[..., None])
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")
]


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


def _file_or_text(words: str) -> str:
    """The content of the file that these words name, or the words where they name none."""
    try:
        is_file = Path(words).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        is_file = False
    return read_text(Path(words)) if is_file else words


def _schema(words: str | dict[str, Any]) -> dict[str, Any]:
    """A JSON schema, itself or the name of its file."""
    if isinstance(words, dict) or words.lstrip().startswith("{"):
        return _json_object(words)
    text = _file_or_text(words)
    if text == words:
        raise typer.BadParameter(f"neither a JSON object nor a file: {words!r}")
    return _json_object(text)


_READERS: dict[str, Callable[[Any], Any]] = {"json_schema": _schema, "grammar": _file_or_text}
"""Of options that may name a file."""


def _annotated(field: dataclasses.Field[Any], about: About, panel: str) -> Any:
    """What typer is told of an option. Bounds are for the dataclass to judge: its words are
    better.
    """
    kind, parser = _read_as(field, about)
    return Annotated[
        kind,
        typer.Option(
            help=about.words
            if get_origin(kind) is not list
            else f"{about.words} May be given again.",
            metavar=about.metavar,
            parser=parser,
            show_default=about.unset if field.default is None and about.unset else True,
            rich_help_panel=panel,
        ),
    ]


def _read_as(
    field: dataclasses.Field[Any], about: About
) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type that typer reads words as, or the parser that does; where a text will do, the
    words are it.
    """
    if field.name in _READERS:
        return Any, _READERS[field.name]
    kinds = kinds_of(field)
    origins = {get_origin(kind) for kind in kinds}
    if Mapping in origins:
        return Any, _json_object
    if Sequence in origins:
        return list[str], None
    if int in kinds and about.choices:
        return Any, _count
    kind = str if str in kinds else kinds[0]
    return (kind | None if NoneType in kinds else kind), None


def _panel(owner: Any, name: str) -> str:
    if owner is not Settings:
        return "Model and reward"
    return (
        "How tokens are drawn" if name in options_of(SamplingParams) else "How answers are chosen"
    )


_OPTIONS: dict[str, Any] = {
    name: _annotated(field, about, _panel(owner, name))
    for owner in (Opening, Settings)
    for name, (field, about) in options_of(owner).items()
}
"""What `generate` and `compare` take, by the names and with the defaults of the Python
interface."""

_DEFAULTS = vars(Opening()) | Settings().to_dict()


CHOICE = ("extract", "threshold", "window", "warm_up")
"""Options of algorithms that vote or stop: for commands that run none of these to leave out."""


def typer_option(name: str) -> Any:
    """What typer is told of an option: for a command that calls it otherwise."""
    return _OPTIONS[name].__metadata__[0]


def takes_options(*left_out: str) -> Callable[[Command], Command]:
    """Show typer the options above in place of a command's `**given`."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=annotation
            )
            for name, annotation in _OPTIONS.items()
            if name not in left_out
        ]
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind != parameter.VAR_KEYWORD
        ]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings among the options given. What they name is looked for now: a model takes long to
    open.

    Raises:
        UsageError: a value that cannot be honoured, or a name of nothing.
    """
    settings = Settings(**{name: given[name] for name in options_of(Settings) if name in given})
    _ = algorithm_of(settings), policy_of(settings), extractor_of(settings.extract)
    return settings


def check_sharing(
    settings: Settings, total_memory: str | None, in_flight: int, what: str = "prompt"
) -> None:
    """See to what prompts in flight share, before anything is read or opened.

    Raises:
        UsageError: nothing is in flight, or what is shared does not hold one of them.
    """
    arguments.check_sharing(total_memory, in_flight)
    if total_memory is not None and parse_bytes(total_memory) < (settings.memory_bytes or 0):
        raise UsageError(
            f"a total_memory of {total_memory} does not hold one {what} with a memory of "
            f"{settings.memory}",
            hint=f"give a total_memory of at least the memory of one {what}, or a smaller memory",
        )


def note_greedy(settings: Settings) -> None:
    """Say of a job in which every prompt has one candidate that this is so."""
    from specrej.cli import display

    if settings.sampling.is_greedy:
        display.print_note(GREEDY_NOTE)


def note_unused(runs: Sequence[Settings]) -> None:
    """Say before a bench which of its options no method uses. `extract` is, by its accuracy."""
    from specrej.cli import display

    common = set.intersection(*(set(unused(settings)) for settings in runs)) - {"extract"}
    if common:
        display.print_note(f"no method uses {', '.join(sorted(common))}: it is without effect")


def note_policy(engine: Engine, reward: Reward, settings: Settings) -> None:
    """Say before a job if its policy was calibrated for something else.

    Raises:
        UsageError: it was, and is to be refused.
    """
    from specrej.cli import display

    if (note := policy_note(engine, reward, settings)) is not None:
        display.print_note(note)


def opening_of(given: dict[str, Any]) -> Opening:
    """What is opened, among the options given."""
    return Opening(**{name: given[name] for name in options_of(Opening)})


@contextlib.contextmanager
def open_given(given: dict[str, Any], runs: Iterable[Settings]) -> Iterator[tuple[Engine, Reward]]:
    """The engine and the reward that the options name, for runs with these settings, until the
    command needs them no more.
    """
    opening = opening_of(given)
    engine, reward = opening.open(runs)
    try:
        yield engine, reward
    finally:
        opening.close(engine, reward)


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
    """Say what a command with many parts came to, last of all; exit with 1 where every one of them
    failed.

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
    """End on SIGTERM as on Ctrl-C, wherever the work is just then: say how to go on, and exit with
    143 or 130.

    A second signal ends the process on the spot. Signals that the parent has told it to ignore stay
    ignored.

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
