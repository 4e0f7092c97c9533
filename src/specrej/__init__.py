"""Speculative Rejection and Best-of-N: better answers from any language model and any reward, at
inference time.
"""

from specrej.api import Interrupted, compare, generate, generate_batch
from specrej.engines.base import Engine
from specrej.errors import (
    BudgetError,
    DeadlineError,
    DeviceMemoryError,
    EngineError,
    ModelError,
    PromptError,
    QueueFullError,
    RewardError,
    SamplingError,
    ServingError,
    ShutdownError,
    SpecrejError,
    UnknownNameError,
    UsageError,
)
from specrej.opening import Opening, open_engine
from specrej.rewards import as_reward
from specrej.rewards.base import Reward, RewardSession, StatelessSession
from specrej.search.events import Decided, Ended, Event, Started, Step, Text
from specrej.search.scheduler import Outcome
from specrej.search.view import SearchView
from specrej.session import Session
from specrej.settings import Settings
from specrej.types import (
    Candidate,
    Continuation,
    Conversation,
    Decision,
    Policy,
    Result,
    SamplingParams,
    Standing,
    Usage,
)
from specrej.version import __version__

__all__ = [
    "BudgetError",
    "Candidate",
    "Continuation",
    "Conversation",
    "DeadlineError",
    "Decided",
    "Decision",
    "DeviceMemoryError",
    "Ended",
    "Engine",
    "EngineError",
    "Event",
    "Interrupted",
    "ModelError",
    "Opening",
    "Outcome",
    "Policy",
    "PromptError",
    "QueueFullError",
    "Result",
    "Reward",
    "RewardError",
    "RewardSession",
    "SamplingError",
    "SamplingParams",
    "SearchView",
    "ServingError",
    "Session",
    "Settings",
    "ShutdownError",
    "SpecrejError",
    "Standing",
    "Started",
    "StatelessSession",
    "Step",
    "Text",
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
