"""Names of rewards and algorithms, and where each lives. Nothing is imported before it is asked for.

Other packages add rewards by entry points of the group `specrej.rewards`; in their pyproject.toml:

    [project.entry-points."specrej.rewards"]
    brevity = "their_package.rewards:make_brevity"

`make_brevity()` is then the reward `brevity`, `make_brevity("x")` the reward `brevity:x`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specrej.errors import UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

REWARDS_GROUP = "specrej.rewards"
REWARDS = {
    "relevance": "specrej.rewards.relevance:parse_relevance",
    "logprob": "specrej.rewards.logprob:LogprobReward",
    "classifier": "specrej.rewards.classifier:ClassifierReward",
    "ensemble": "specrej.rewards.ensemble:parse_ensemble",
    "process": "specrej.rewards.process:parse_process",
    "reference": "specrej.rewards.reference:parse_reference",
    "embedding": "specrej.rewards.embedding:parse_embedding",
    "regex": "specrej.rewards.verifiable:parse_regex",
    "exact_match": "specrej.rewards.verifiable:parse_exact_match",
    "math": "specrej.rewards.verifiable:parse_math",
    "judge": "specrej.rewards.judge:parse_judge",
    "http": "specrej.rewards.http:parse_http",
    "vllm": "specrej.rewards.vllm:parse_vllm",
    "vllm-classify": "specrej.rewards.http:parse_vllm_classify",
    "vllm-pooling": "specrej.rewards.http:parse_vllm_pooling",
}
ENGINES = {
    "torch": "specrej.engines.torch.loading:open_as_asked",
    "vllm": "specrej.engines.vllm:open_as_asked",
    "openvino": "specrej.engines.openvino:open_as_asked",
    "openai": "specrej.engines.openai:open_as_asked",
}
"""Beside these, `auto` is one of them; see `specrej.engines.opening`."""
ALGORITHMS = {
    "best_of_n": "specrej.search.algorithms:best_of_n",
    "speculative_rejection": "specrej.search.algorithms:speculative_rejection",
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


def entry_points() -> dict[str, "EntryPoint"]:
    """The rewards of other packages, by name; of equal names the first on `sys.path`."""
    from importlib.metadata import entry_points  # takes longer to import than the rest of the package

    return {point.name: point for point in reversed(tuple(entry_points(group=REWARDS_GROUP)))}
