"""What a caller of the Python interface gives, read and checked before anything is opened.

opening, settings = read_options({"model": "smollm2", "n": 8})
combined(settings, {"seed": 1})
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from specrej.errors import UsageError
from specrej.memory import parse_bytes
from specrej.opening import Opening, OpeningOptions
from specrej.search.resolving import algorithm_of, policy_of
from specrej.settings import Options, Settings
from specrej.types import Prompt


class RunOptions(OpeningOptions, Options, total=False):
    """All keyword arguments of `generate`: what is opened, and how answers are sampled and
    chosen.
    """


def read_options(options: RunOptions, settings: Settings | None = None) -> tuple[Opening, Settings]:
    """What is opened and how answers are chosen, out of all keyword arguments.

    Raises:
        UsageError: a value outside its range, or a name of nothing; says which.
        TypeError: there is no such option.
    """
    given: dict[str, Any] = dict(options)
    of_opening = {
        name: given.pop(name) for name in list(given) if name in OpeningOptions.__annotations__
    }
    asked = combined(Settings() if settings is None else settings, given)
    _ = algorithm_of(asked), policy_of(asked)  # what they name is looked for before a model is
    return Opening(**of_opening), asked


def combined(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """Settings, with single options that go before them.

    Raises:
        UsageError: they are no settings, or a value is outside its range; says which.
        TypeError: there is no such option.
    """
    if not isinstance(settings, Settings):
        raise UsageError(
            f"settings must be specrej.Settings, got {reprlib.repr(settings)}",
            hint="specrej.Settings(n=8), or the options by their names: n=8",
        )
    return replace(settings, **options)


def check_compared(options: RunOptions | Options) -> None:
    """See that nobody asks `compare` for one algorithm, before a model is opened."""
    if "algorithm" in options:
        raise UsageError("compare runs both algorithms; it takes no 'algorithm'")


def check_sharing(total_memory: str | int | None, in_flight: int) -> None:
    """See to what prompts share, before a model is opened.

    Raises:
        UsageError: not an amount of memory, or no number of at least 1; says which.
    """
    if type(in_flight) is not int or in_flight < 1:
        raise UsageError(f"in_flight must be at least 1, and a whole number, got {in_flight!r}")
    if total_memory is not None:
        parse_bytes(total_memory, "total_memory")


def check_prompts(prompts: Iterable[Prompt]) -> None:
    """See that many prompts are many.

    Raises:
        UsageError: it is one prompt, or none.
    """
    if isinstance(prompts, str | bytes | Mapping):
        raise UsageError(
            f"prompts must be a list of texts or conversations, got one: {reprlib.repr(prompts)}",
            hint="give [prompt], or call generate",
        )
    if not isinstance(prompts, Iterable):
        raise UsageError(
            f"prompts must be a list of texts or conversations, got {reprlib.repr(prompts)}"
        )
