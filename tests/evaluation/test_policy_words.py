"""Policies by names that people can read, each by its own."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeEngine
from specrej.evaluation.policy_grid import ReplayPolicy, grid
from specrej.evaluation.policy_words import policy_words
from traces import traces_in


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({}, "reject half when memory is full"),
        ({"alpha": 0.5, "decide": "every:16"}, "reject half every 16 tokens"),
        ({"alpha": 0.3, "decide": "at:16", "n": 64}, "reject 30% at 16 tokens, from 64 candidates"),
        ({"alpha": 0.25, "decide": "at:8,16,32"}, "reject a quarter at 8, 16 and 32 tokens"),
        ({"keep": 4, "memory": "1MiB", "min_tokens": 8},
         "keep the best 4 when memory is full, in 1.00 MiB, with room for 8 tokens each at first"),
        ({"alpha": 0, "n": 8}, "Best-of-8"),
        ({"alpha": 0.0, "memory": 2048, "decide": "at:4"}, "Best-of-N, scored at 4 tokens, in 2.00 "
                                                           "KiB"),
    ],
)  # fmt: skip
def test_a_policy_in_words(policy: dict[str, Any], words: str) -> None:
    assert policy_words(policy) == words
    assert policy_words(asdict(ReplayPolicy(**policy))) == words


def test_no_two_policies_of_a_grid_are_called_the_same(tmp_path: Path) -> None:
    policies = grid(traces_in(tmp_path, ["Why?"], [4, 8], FakeEngine(), n=16, max_new_tokens=24))
    assert len({policy_words(asdict(policy)) for policy in policies}) == len(policies) > 100
