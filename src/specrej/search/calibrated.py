"""Policies that were calibrated on recorded runs, and the files that they come in.

found = read_policy("policy.json")
found.forecasts, found.price        # what a score at 16, 64, ... tokens says; see `gains`
policy = found.to_policy()          # for `generate(policy=...)`
mismatches(found.recorded, {"model": "llama", "temperature": 0.7})   # in words
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specrej.errors import UsageError
from specrej.files.reading import decode
from specrej.search.gains import Forecast, worth
from specrej.search.policies import at, everyone, never
from specrej.types import Policy

FORMAT = "specrej policy 2"


@dataclass(frozen=True, kw_only=True)
class CalibratedPolicy:
    """A policy with what it was calibrated on and what is promised of it.

    Attributes:
        n: candidates to begin with.
        forecasts: by rising length: at each of them is a decision.
        price: what a token must bring, see `specrej.search.gains`.
        recorded: model, reward and sampling of the recorded runs, and their prompts.
        promise: what was certified; see `specrej.calibration`.
        measured: cost and regret of it on the recorded prompts.
        name: what results call it.
    """

    n: int
    forecasts: tuple[Forecast, ...] = ()
    price: float = 0.0
    recorded: Mapping[str, Any] = field(default_factory=dict)
    promise: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    name: str = "calibrated"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Where it decides, in tokens."""
        return tuple(forecast.num_tokens for forecast in self.forecasts)

    def to_policy(self) -> Policy:
        """What a run takes. Nothing was refilled in what it was calibrated on."""
        recorded = {"refill": "none", **self.recorded}
        if not self.forecasts:
            return Policy(never, everyone, None, self.name, self.n, recorded)
        return Policy(
            when=at(self.lengths),
            keep=worth(self.forecasts, self.price),
            first_tokens=self.lengths[0],
            name=self.name,
            n=self.n,
            recorded=recorded,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        forecasts = [forecast._asdict() for forecast in self.forecasts]
        return {"format": FORMAT, **asdict(self), "forecasts": forecasts}


def mismatches(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In which ways a run is not what a policy was calibrated for, in words; empty if in none."""
    return [
        f"{name} {value!r}, here {here[name]!r}"
        for name, value in recorded.items()
        if name in here and here[name] != value
    ]


def fingerprints(policies: Iterable[object]) -> dict[str, str]:
    """The sha256 of those that are files, by path: they may change before a run is resumed.

    Raises:
        UsageError: a file cannot be read.
    """
    paths = [given for given in policies if isinstance(given, str) and given.endswith(".json")]
    return {path: hashlib.sha256(_bytes_of(path)).hexdigest() for path in paths}


def _bytes_of(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError: no name that a file can have
        reason = error.strerror if isinstance(error, OSError) else None
        raise UsageError(
            f"cannot read a policy from {str(path)!r}: {reason or error}",
            hint="give a file that `specrej calibrate` wrote",
        ) from error


def read_policy(path: str | Path) -> CalibratedPolicy:
    """A policy of a file that `specrej calibrate` wrote.

    Raises:
        UsageError: the file cannot be read, or holds no policy; says what is wrong with it.
    """
    try:
        given = json.loads(decode(_bytes_of(path), str(path)))
    except (ValueError, RecursionError) as error:
        raise _no_policy(path, f"it is no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise _no_policy(path, f"its format is not {FORMAT!r}")
    if not isinstance(given.get("forecasts"), list):
        raise _no_policy(path, "forecasts must be a list")
    try:
        policy = CalibratedPolicy(
            **{**_without_format(given), "forecasts": tuple(map(_forecast, given["forecasts"]))}
        )
    except (TypeError, KeyError) as error:
        raise _no_policy(path, f"{type(error).__name__}: {error}") from error
    if not _is_count(policy.n):
        raise _no_policy(path, "n must be a whole number from 1 to below 2^31")
    if not _is_number(policy.price) or policy.price < 0:
        raise _no_policy(path, "price must be a number of 0 or more, and up to 1e100")
    abouts = (policy.recorded, policy.promise, policy.measured)
    if not all(isinstance(about, dict) for about in abouts):
        raise _no_policy(path, "recorded, promise and measured must be objects")
    for forecast in policy.forecasts:
        if wrong := _wrong_with(forecast):
            raise _no_policy(path, f"in a forecast {wrong}")
    if list(policy.lengths) != sorted(set(policy.lengths)):
        raise _no_policy(path, f"its forecasts must be of rising lengths, got {policy.lengths}")
    return policy


def _forecast(given: Any) -> Forecast:
    columns = {name: tuple(given[name]) for name in ("scores", "finals", "errors")}
    return Forecast(**{**given, **columns})


def _wrong_with(forecast: Forecast) -> str | None:
    """What is wrong with a forecast of a file, in words; None if nothing is."""
    columns = (forecast.scores, forecast.finals, forecast.errors)
    if not _is_count(forecast.num_tokens):
        return "num_tokens must be a whole number from 1 to below 2^31"
    if not all(map(_is_number, (forecast.num_left, *(value for row in columns for value in row)))):
        return "num_left, scores, finals and errors must be numbers between -1e100 and 1e100"
    if len(set(map(len, columns))) > 1 or not forecast.scores:
        return "scores, finals and errors must be equally many, and one or more"
    if list(forecast.scores) != sorted(set(forecast.scores)):
        return "scores must rise"
    if min(forecast.errors) < 0 or forecast.num_left < 0:
        return "errors and num_left must not be below 0"
    return None


def _is_count(given: Any) -> bool:
    return type(given) is int and 1 <= given < 2**31


def _is_number(given: Any) -> bool:
    """Squares of it have to fit a float."""
    return type(given) in (int, float) and abs(given) <= 1e100


def _without_format(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "format"}


def _no_policy(path: str | Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} holds no policy: {reason}", hint="give a file that `specrej calibrate` wrote"
    )
