"""Names of rewards and algorithms, and where each lives. Nothing is imported before it is asked for."""

from importlib import import_module
from typing import Any

from specrej.errors import UnknownNameError

REWARDS = {
    "relevance": "specrej.rewards.relevance:RelevanceReward",
    "logprob": "specrej.rewards.logprob:LogprobReward",
    "classifier": "specrej.rewards.classifier:ClassifierReward",
}
ALGORITHMS = {
    "best_of_n": "specrej.algorithms:best_of_n",
    "speculative_rejection": "specrej.algorithms:speculative_rejection",
}


def load(kind: str, table: dict[str, str], name: str) -> Any:
    """The object that `name` stands for.

    Raises:
        UnknownNameError: the table has no such name; near ones are suggested.
    """
    if name not in table:
        raise UnknownNameError(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
