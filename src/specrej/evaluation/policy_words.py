"""What people call a policy of a replay.

# "reject half every 16 tokens, from 64 candidates"
policy_words({"alpha": 0.5, "decide": "every:16", "n": 64})
"""

from collections.abc import Mapping
from typing import Any

from specrej.memory import format_bytes, parse_bytes

_SHARES = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}


def policy_words(policy: Mapping[str, Any]) -> str:
    """A policy in words; what is as by default is left out.

    Args:
        policy: the arguments of `ReplayPolicy`, those that are not there being as by default.
    """
    alpha, keep, n = policy.get("alpha", 0.5), policy.get("keep"), policy.get("n", "auto")
    memory, least = policy.get("memory"), policy.get("min_tokens", 16)
    decide = policy.get("decide", "budget")
    words = [f"from {n} candidates"] if n != "auto" else []
    if policy.get("policy") is not None:
        rule = f"the policy {policy['policy']}"
    elif keep is None and alpha == 0:
        rule = f"Best-of-{'N' if n == 'auto' else n}"
        words = [f"scored {_moments(decide)}"] if decide != "budget" else []
    elif keep is None:
        rule = f"reject {_SHARES.get(alpha, f'{100 * alpha:.3g}%')} {_moments(decide)}"
    else:
        rule = f"keep the best {keep} {_moments(decide)}"
    words += [f"in {format_bytes(parse_bytes(memory))}"] if memory is not None else []
    words += [f"with room for {least} tokens each at first"] if least != 16 else []
    return ", ".join([rule, *words])


def _moments(decide: str) -> str:
    """When it decides beside when memory is full."""
    kind, _, lengths = decide.partition(":")
    if kind == "budget":
        return "when memory is full"
    if kind == "every":
        return f"every {lengths} tokens"
    *first, last = (length.strip() for length in lengths.split(","))
    return f"at {', '.join(first)} and {last} tokens" if first else f"at {last} tokens"
