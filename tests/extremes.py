"""Sampling parameters at the edges of what is allowed: what float32 rounds to 0, 1 or infinity, and
what it holds.
"""

from typing import Any

from hypothesis import strategies as st

from specrej.types import SamplingParams

EXTREMES: dict[str, list[Any]] = {
    "temperature": [
        0,
        5e-324,
        1e-45,
        1e-38,
        1e-6,
        1e-5,
        1e-4,
        0.7,
        1,
        1.0,
        50,
        1e20,
        1e38,
        1e39,
        1e300,
        10**300,
    ],
    "top_k": [0, 1, 2, 50, 260, 261, 262, 2**31 - 1],
    "top_p": [5e-324, 1e-46, 1e-38, 1e-7, 0.5, 0.9, 1 - 1e-9, 1 - 2**-53, 1, 1.0],
    "min_p": [0, 5e-324, 1e-46, 1e-7, 0.5, 1 - 1e-9, 1 - 2**-53],
    "repetition_penalty": [1e-9, 0.5, 1, 1.0, 2.0, 10**9, 1e9],
    "seed": [0, 1, 2**63, 2**64 - 1],
}
EXTREME = st.builds(
    SamplingParams, **{name: st.sampled_from(values) for name, values in EXTREMES.items()}
)
