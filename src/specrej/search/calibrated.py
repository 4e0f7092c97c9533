"""Policies that were calibrated on recorded runs, and the files that they come in.

    found = read_policy("policy.json")
    found.decisions                     # at 16 tokens 24 of 64 go on, at 32 tokens 8, ...
    policy = found.to_policy()          # for `generate(policy=...)`
    mismatches(found.recorded, {"model": "llama", "temperature": 0.7})   # in words

Such a policy decides at fixed lengths. A live candidate stays if fewer than `keep` are better.
Those that have ended count among the better ones. So a run ends as soon as enough answers are
beyond the reach of who is still being decoded.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from specrej.errors import UsageError
from specrej.files.reading import read_text
from specrej.search.choosing import rank
from specrej.search.policies import at, everyone, never
from specrej.types import Policy, Rule, Standing

FORMAT = "specrej policy 1"


class Stage(NamedTuple):
    """What is done when the live candidates have so many tokens."""

    num_tokens: int
    keep: int
    """A live candidate stays if fewer than so many are better."""


@dataclass(frozen=True, kw_only=True)
class CalibratedPolicy:
    """A policy with what it was calibrated on and what is promised of it.

    Attributes:
        n: candidates to begin with.
        decisions: by rising length.
        recorded: model, reward and sampling of the recorded runs, and their prompts.
        promise: what was certified; see `specrej.calibration`.
        measured: cost and regret of it on the recorded prompts.
        name: what results call it.
    """

    n: int
    decisions: tuple[Stage, ...]
    recorded: Mapping[str, Any] = field(default_factory=dict)
    promise: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    name: str = "calibrated"

    def to_policy(self) -> Policy:
        """What a run takes."""
        lengths = [decision.num_tokens for decision in self.decisions]
        if not lengths:
            return Policy(never, everyone, None, self.name, self.n, self.recorded)
        return Policy(
            when=at(lengths),
            keep=best_of_all(lengths, [decision.keep for decision in self.decisions]),
            first_tokens=lengths[0],
            name=self.name,
            n=self.n,
            recorded=self.recorded,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        decisions = [decision._asdict() for decision in self.decisions]
        return {"format": FORMAT, **asdict(self), "decisions": decisions}


def best_of_all(lengths: Sequence[int], keeps: Sequence[int]) -> Rule:
    """The rule: at each length, those of whom fewer than so many are better, of all so far.

    Where memory forces a decision at another length, the one before it says how many.
    """

    def keep(standing: Standing) -> list[bool]:
        most = keeps[max(bisect_right(lengths, standing.num_tokens) - 1, 0)]
        scores = standing.scores
        order = sorted(range(len(scores)), key=lambda place: rank(scores[place], place))
        stays = [not is_live for is_live in standing.is_live]
        for num_better, place in enumerate(order):
            if standing.best is not None and standing.best >= scores[place]:
                num_better += 1
            stays[place] = stays[place] or num_better < most
        return stays

    return keep


def mismatches(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In which ways a run is not what a policy was calibrated for, in words; empty if in none."""
    return [
        f"{name} {value!r}, here {here[name]!r}"
        for name, value in recorded.items()
        if name in here and here[name] != value
    ]


def read_policy(path: str | Path) -> CalibratedPolicy:
    """A policy of a file that `specrej calibrate` wrote.

    Raises:
        UsageError: the file cannot be read, or holds no policy; says what is wrong with it.
    """
    try:
        given = json.loads(read_text(path))
    except OSError as error:
        raise UsageError(
            f"cannot read a policy from {path}: {error.strerror or error}",
            hint="give a file that `specrej calibrate` wrote",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _no_policy(path, f"it is no JSON: {error}") from error
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise _no_policy(path, f"its format is not {FORMAT!r}")
    try:
        decisions = tuple(Stage(**decision) for decision in given["decisions"])
        policy = CalibratedPolicy(**{**_without_format(given), "decisions": decisions})
    except (TypeError, KeyError) as error:
        raise _no_policy(path, f"{type(error).__name__}: {error}") from error
    numbers = [policy.n, *(number for decision in decisions for number in decision)]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise _no_policy(path, "n, num_tokens and keep must be whole numbers above 0")
    if not all(isinstance(about, dict) for about in (policy.recorded, policy.promise)):
        raise _no_policy(path, "recorded and promise must be objects")
    lengths = [decision.num_tokens for decision in decisions]
    if lengths != sorted(set(lengths)):
        raise _no_policy(path, f"its decisions must be at rising lengths, got {lengths}")
    return policy


def _without_format(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "format"}


def _no_policy(path: str | Path, reason: str) -> UsageError:
    return UsageError(
        f"{path} holds no policy: {reason}", hint="give a file that `specrej calibrate` wrote"
    )
