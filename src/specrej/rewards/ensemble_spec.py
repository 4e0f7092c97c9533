r"""The spec of an ensemble, read and written.

As a spec, members are joined by "+", each with its weight after a "*", and options follow a "?":

    ensemble:relevance*0.7+logprob*0.3
    ensemble:relevance+logprob?combine=worst&scale=z
    ensemble:relevance+'embedding:Yes?model=org/model'*2?length_penalty=0.01
    ensemble:relevance?truncated=-2&filter=regex:^[A-Z].*\?$

A member that holds "+", "*" or "?" is put in quotes, single or double; such a quote inside is
doubled. The filter comes last and is taken as it is, to the end of the spec.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specrej.errors import UsageError
from specrej.rewards.spec import parse_options

FORM = (
    "give it as ensemble:SPEC*WEIGHT+SPEC*WEIGHT?OPTION=VALUE&OPTION=VALUE, a SPEC that holds +, * "
    "or ? in quotes"
)
_OPTIONS: Mapping[str, Any] = {
    "combine": str,
    "risk": float,
    "share": float,
    "scale": str,
    "length_penalty": float,
    "truncated": float,
    "filter_when": str,
}
_MEMBER = re.compile(
    r"""('(?:[^']|'')*'|"(?:[^"]|"")*"|[^+?*'"][^+?*]*)(?:\*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?))?""",
    re.DOTALL,
)


class EnsembleSpec(NamedTuple):
    """What an ensemble is made of: its members' specs and weights, options by name, and the
    filter's spec.
    """

    members: Sequence[str]
    weights: Sequence[float]
    options: Mapping[str, Any]
    filter: str | None = None


def read_spec(argument: str) -> EnsembleSpec:
    """What `ensemble:ARGUMENT` says.

    Raises:
        UsageError: malformed members or options; says what is expected.
        UnknownNameError: an option that nobody knows.
    """
    members, weights, position = [], [], 0
    while True:
        match = _MEMBER.match(argument, position)
        if match is None or argument[match.end() : match.end() + 1] not in ("", "+", "?"):
            at = argument[match.end() if match else position :]
            raise UsageError(
                f"the members of 'ensemble:{argument}' cannot be read at {at!r}", hint=FORM
            )
        members.append(_unquoted(match[1]))
        weights.append(_weight(match[2]))
        position = match.end() + 1
        if argument[match.end() : position] != "+":
            break
    # The filter is taken as it is, whatever signs it holds.
    words, is_given, judge = ("&" + argument[position:]).partition("&filter=")
    _, options = parse_options("?" + words[1:], _OPTIONS)
    if is_given and not judge:
        raise UsageError(
            "the ensemble's filter is empty",
            hint="end with filter=SPEC, such as filter=regex:^[A-Z]",
        )
    return EnsembleSpec(members, weights, options, judge or None)


def written(spec: EnsembleSpec) -> str:
    """The spec as `read_spec` reads it back, with the name of the reward before it."""
    weights = ["" if weight == 1 else f"*{weight}" for weight in spec.weights]
    members = "+".join(
        _quoted(name) + weight for name, weight in zip(spec.members, weights, strict=True)
    )
    words = [f"{key}={value}" for key, value in spec.options.items()]
    words += [f"filter={spec.filter}"] if spec.filter else []
    return f"ensemble:{members}" + "?" * bool(words) + "&".join(words)


def _quoted(spec: str) -> str:
    """A member's spec as `read_spec` reads it back."""
    needs_quotes = not spec or spec[0] in "'\"" or any(sign in spec for sign in "+*?")
    return "'" + spec.replace("'", "''") + "'" if needs_quotes else spec


def _unquoted(spec: str) -> str:
    quote = spec[0]
    return spec[1:-1].replace(quote * 2, quote) if quote in "'\"" else spec


def _weight(text: str | None) -> float:
    try:
        return float(text or 1)
    except ValueError as error:
        raise UsageError(f"a member's weight must be a number, got {text!r}", hint=FORM) from error
