"""The policies that a replay judges: from a file, or a grid over what the traces hold.

policies = read_policies("policies.jsonl")  # {"alpha": 0.5, "decide": "at:16,32", "n": 64} a line
policies = grid(traces)                              # several hundred
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.trace import Trace
from specrej.files.reading import read_text
from specrej.memory import format_bytes
from specrej.search.resolving import policy_of
from specrej.settings import Settings
from specrej.types import Policy

_FORM = 'one policy is like {"alpha": 0.5, "decide": "at:16,32", "n": 64, "memory": "64MiB"}'


@dataclass(frozen=True, kw_only=True)
class ReplayPolicy:
    """What of `specrej.settings.Settings` a replay can vary, with the same meanings and defaults.

    Attributes:
        alpha, keep, decide, n, min_tokens, policy: see `Settings`. With alpha = 0 it is Best-of-N.
        memory: KV budget; None is that of the recorded run.

    Raises:
        UsageError: a value outside its range; says which.
    """

    alpha: float = 0.5
    keep: int | None = None
    decide: str = "budget"
    n: int | str = "auto"
    memory: str | int | None = None
    min_tokens: int = 16
    policy: str | Policy | None = None

    def __post_init__(self) -> None:
        _ = self._settings  # checks them all

    @cached_property
    def _settings(self) -> Settings:
        return Settings(**{field.name: getattr(self, field.name) for field in fields(self)})

    @cached_property
    def rule(self) -> Policy:
        """When it decides, and whom it keeps."""
        return policy_of(self._settings)

    @cached_property
    def memory_bytes(self) -> int | None:
        return self._settings.memory_bytes

    @property
    def is_rejecting(self) -> bool:
        """False for Best-of-N."""
        return self.rule.first_tokens is not None

    @cached_property
    def name(self) -> str:
        """The rule and all that is not as by default, such as "alpha=0.3 decide=at:16 n=64" or
        "best_of_n:8".
        """
        if self.policy is not None:
            rule, names = f"policy={self._policy_name}", ["n", "memory"]
        elif self.is_rejecting:
            rule = f"alpha={self.alpha}" if self.keep is None else f"keep={self.keep}"
            names = ["decide", "n", "memory", "min_tokens"]
        else:
            rule, names = f"best_of_n:{self.n}", ["decide", "memory"]
        others = {field.name: field.default for field in fields(self) if field.name in names}
        values = [
            f"{name}={getattr(self, name)}"
            for name, usual in others.items()
            if getattr(self, name) != usual
        ]
        return " ".join([rule, *values])

    def to_dict(self) -> dict[str, Any]:
        """The arguments in JSON's types; a policy by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values if self.policy is None else values | {"policy": self._policy_name}

    @property
    def _policy_name(self) -> str:
        """As it was given: two files may hold policies of one name."""
        return self.policy if isinstance(self.policy, str) else self.rule.name

    def next_scheduled(self, last: int, limit: int) -> int:
        """The first length after a decision at `last` at which the schedule asks for one; above
        `limit` if none is.
        """
        if (last, limit) not in self._scheduled:
            asked = (
                length for length in range(last + 1, limit + 1) if self.rule.when(length, last)
            )
            self._scheduled[last, limit] = next(asked, limit + 1)
        return self._scheduled[last, limit]

    @cached_property
    def _scheduled(self) -> dict[tuple[int, int], int]:
        return {}


def read_policies(path: str | Path) -> list[ReplayPolicy]:
    """Policies of a JSON list, or of JSON lines.

    Raises:
        UsageError: the file cannot be read, or a policy is none; names its line, of a list its
            place.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(
            f"cannot read policies from {path}: {error}", hint="give a file, or grid"
        ) from error
    policies = [_read_policy(given, where) for where, given in _rows(text, path)]
    if not policies:
        raise UsageError(f"{path} holds no policies", hint=_FORM)
    names = [policy.name for policy in policies]
    # A policy that is given twice would only cost time.
    return [policy for place, policy in enumerate(policies) if policy.name not in names[:place]]


def grid(traces: Sequence[Trace]) -> list[ReplayPolicy]:
    """Alphas 0.1 to 0.9, decisions at checkpoints and by budget alone, numbers of candidates, and
    budgets.

    Budgets hold the most candidates of a trace, a half, a quarter and an eighth of them at full
    length, for the longest prompt. Best-of-N for N = 1, 2, 4, ... is there to compare with.
    """
    num_candidates = min(trace.num_candidates for trace in traces)
    longest = max(traces, key=lambda trace: trace.num_prompt_tokens)
    checkpoints = [point for point in longest.checkpoints if point < longest.max_new_tokens]
    schedules = [f"at:{point}" for point in checkpoints]
    if len(checkpoints) > 1:
        schedules.append(f"at:{','.join(map(str, checkpoints))}")
    sizes = [size for part in (1, 2, 4) if (size := num_candidates // part)]
    rows = [size for part in (1, 2, 4, 8) if (size := num_candidates // part)]
    memories = [_memory(longest, size) for size in rows]
    choices = [
        ReplayPolicy(alpha=tenths / 10, decide=decide, n=n, memory=memory)
        for n in sizes
        for memory in memories
        for decide in ([*schedules, "budget"] if memory != memories[0] else schedules)
        for tenths in range(1, 10)
    ]
    powers = [2**power for power in range(num_candidates.bit_length())]
    baselines = [
        ReplayPolicy(alpha=0.0, n=n, memory=memories[0]) for n in sorted({*powers, num_candidates})
    ]
    return baselines + choices


def _memory(trace: Trace, num_rows: int) -> str:
    """What so many full-length candidates need, in words."""
    slots = max(trace.max_new_tokens, 2) - 1
    return format_bytes(trace.layout.peak_bytes(trace.num_prompt_tokens, num_rows, slots)).replace(
        " ", ""
    )


def _rows(text: str, path: str | Path) -> Iterator[tuple[str, Any]]:
    """Each policy as it was given, and where."""
    is_list = text.lstrip().startswith("[")
    lines = [text] if is_list else text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            line_number = error.lineno if is_list else number
            raise UsageError(
                f"{path}, line {line_number}: no JSON: {error.msg} at column {error.colno}",
                hint=_FORM,
            ) from error
        if is_list:
            yield from (
                (f"{path}, policy {place}", policy) for place, policy in enumerate(given, 1)
            )
        else:
            yield f"{path}, line {number}", given


def _read_policy(given: Any, where: str) -> ReplayPolicy:
    if not isinstance(given, dict):
        raise UsageError(f"{where}: expected an object, got {given!r}", hint=_FORM)
    known = [field.name for field in fields(ReplayPolicy)]
    if unknown := [name for name in given if name not in known]:
        raise UnknownNameError(f"key in {where}:", unknown[0], known)
    try:
        return ReplayPolicy(**given)
    except UsageError as error:
        raise UsageError(f"{where}: {error}", hint=error.hint) from error
