r"""Sizes of a reward, and the arguments of its spec string: `MODEL?key=value&key=value`.

    parse_options("org/model?reduce=min&step=%0A", {"reduce": str, "step": str})
    # -> ("org/model", {"reduce": "min", "step": "\n"})

What stands before the first "?" is handed back as it is; keys and values are percent-decoded (%26
is an "&", %0A a line break).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from specrej.errors import UnknownNameError, UsageError
from specrej.memory import parse_bytes


def check_sizes(**sizes: int | None) -> None:
    """See to a reward's sizes before it is opened, which takes time; None is left alone.

    Raises:
        UsageError: one is below 1; names it.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UsageError(f"{name} must be at least 1, got {size!r}")


def parse_options(
    argument: str, allowed: Mapping[str, Callable[[str], Any]]
) -> tuple[str, dict[str, Any]]:
    """What stands before the "?", and the options after it, each converted by its entry in
    `allowed`.

    Args:
        argument: of a spec string, without the reward's name and its ":".
        allowed: what makes a value of an option's text; it raises ValueError where it cannot.

    Raises:
        UnknownNameError: an option that is not allowed; the message names those that are.
        UsageError: an option without "=", given twice, or with a value that its entry refuses.
    """
    head, _, tail = argument.partition("?")
    options: dict[str, Any] = {}
    for part in tail.split("&") if tail else ():
        name, equals, text = part.partition("=")
        name, text = unquote(name), unquote(text)
        if not equals:
            raise UsageError(
                f"the option {part!r} in {argument!r} has no value",
                hint="write MODEL?key=value&key=value, & as %26",
            )
        if name not in allowed:
            known = f"known: {', '.join(sorted(allowed))}" if allowed else "it takes none"
            raise UnknownNameError(
                "option", name, allowed, hint=f"{known}; an & inside a value is written %26"
            )
        if name in options:
            raise UsageError(f"the option {name!r} is given twice in {argument!r}")
        try:
            options[name] = allowed[name](text)
        except ValueError as error:
            raise UsageError(f"the option {name}={text!r} cannot be read: {error}") from error
    return head, options


def parse_model(
    kind: str, argument: str, allowed: Mapping[str, Callable[[str], Any]], memory: str | int | None
) -> tuple[str, dict[str, Any]]:
    """The model of `MODEL#LABEL?option=value&...`, and keywords for the reward: `label`,
    `memory_bytes`, its options.

    Args:
        kind: the reward's name, for the message.
        argument: what follows the name.
        allowed: see `parse_options`; every reward model has `memory` as well.
        memory: of its KV, such as "2GiB"; it goes before the option.

    Raises:
        UsageError: no model; see also `parse_options`.
    """
    named, options = parse_options(argument, {"memory": parse_bytes, **allowed})
    if not named:
        raise UsageError(f"the reward {kind!r} needs a model", hint=f"give it as {kind}:PATH_OR_ID")
    asked = options.pop("memory", None)
    given = asked if memory is None else parse_bytes(memory, "reward_memory")
    model, _, label = (named, "", "") if Path(named).is_dir() else named.partition("#")
    return model, {"label": label or None, "memory_bytes": given, **options}


def parse_flag(text: str) -> bool:
    """True for "1", False for "0".

    Raises:
        ValueError: neither.
    """
    if text not in ("0", "1"):
        raise ValueError("give 1 or 0")
    return text == "1"
