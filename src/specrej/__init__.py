"""Speculative Rejection and Best-of-N: better answers from any language model and any reward, at inference time."""

from specrej.api import Interrupted, compare, generate, generate_batch, open_engine
from specrej.errors import (
    BudgetError,
    DeviceMemoryError,
    ModelError,
    PromptError,
    RewardError,
    SpecrejError,
    UnknownNameError,
    UsageError,
)
from specrej.rewards import as_reward
from specrej.settings import Settings
from specrej.types import Candidate, Decision, Result, SamplingParams, Usage
from specrej.version import __version__

__all__ = [
    "BudgetError",
    "Candidate",
    "Decision",
    "DeviceMemoryError",
    "Interrupted",
    "ModelError",
    "PromptError",
    "Result",
    "RewardError",
    "SamplingParams",
    "Settings",
    "SpecrejError",
    "UnknownNameError",
    "Usage",
    "UsageError",
    "__version__",
    "as_reward",
    "compare",
    "generate",
    "generate_batch",
    "open_engine",
]
