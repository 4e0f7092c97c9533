"""What a user may give as a reward, and the one place that turns it into a `Reward`.

    as_reward("relevance")                  # a name of the registry
    as_reward("logprob:sum")                # ... with its argument
    as_reward("org/model")                  # a classifier: an id or a local directory, also a Path
    as_reward("classifier:org/model#helpful?partial=open")      # ... one of its outputs, by label
    as_reward("ensemble:relevance*0.7+logprob")                 # several rewards as one
    as_reward("pairwise:metrics:better")    # a function that compares two answers
    as_reward("theirs:argument")            # of a package: see `specrej.registry`
    as_reward("metrics:brevity")            # a function of a module, in the current directory first
    as_reward(lambda prompt, texts: [len(text) for text in texts])

A name of the registry goes before one of a package, that before a directory or an id, and these
before a module.
Rewards are imported when asked for: importing this module loads no torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from specrej.errors import UnknownNameError, UsageError
from specrej.registry import (
    REWARDS,
    entry_points,
    import_attribute,
    load,
    made,
    missing,
    names,
)
from specrej.rewards.base import MEMBERS, Reward
from specrej.rewards.function import FunctionReward
from specrej.rewards.spec import parse_flag, parse_model

_CLASSIFIER_OPTIONS: dict[str, Callable[[str], Any]] = {
    "partial": str,
    "batch_size": int,
    "max_tokens": int,
    "trust_remote_code": parse_flag,
}


def _forms() -> str:
    return (
        f"give one of {', '.join(names('reward'))}, module:function, a local directory or a "
        "Hugging Face id, "
        "a function (prompt, texts) -> numbers, or an object with open(messages)"
    )


def as_reward(spec: Any, memory: str | int | None = None) -> Reward:
    """The reward that the user means: a reward, a function over texts, or words as in the module's
    docstring.

    Args:
        spec: the reward; a path is that of a classifier's directory.
        memory: KV that a classifier may hold for a prompt, or vLLM for all, such as "256MiB"; other
            rewards hold none.

    Raises:
        UsageError: `spec` is none of these, or the module or function it names is not there.
        UnknownNameError: a plain name that nobody knows; near ones are suggested.
        ModelError: the model of a classifier cannot be opened.
    """
    if isinstance(spec, Path):
        spec = f"classifier:{spec}"
    if memory is not None:
        return _with_memory(spec, memory)
    if isinstance(spec, str):
        return _named(spec)
    return _given(spec, name=None)


def _with_memory(spec: Any, memory: str | int) -> Reward:
    name, _, argument = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name == "classifier":
        return _classifier(argument, memory)
    if name == "vllm":
        return cast("Reward", load("reward", name)(argument, memory))
    if isinstance(spec, str) and name not in REWARDS and _is_model(spec):
        return _classifier(spec, memory)
    raise UsageError(
        f"the reward {spec!r} takes no memory",
        hint="reward models hold KV (classifier, vllm); within an ensemble give them ?memory=SIZE",
    )


def _given(spec: Any, name: str | None) -> Reward:
    """A reward as it is, or a function over texts, which gets `name`."""
    if isinstance(spec, type):
        raise UsageError(
            f"a reward must be an object, got the class {spec.__name__}",
            hint=f"make one first: {spec.__name__}(...)",
        )
    if hasattr(spec, "open"):
        if lacking := missing(spec, MEMBERS):
            raise UsageError(
                f"the reward {spec!r} ({type(spec).__name__}) lacks: {lacking}",
                hint="docs/extending.md says what they are; a function (prompt, texts) -> numbers "
                "needs none of them",
            )
        return cast("Reward", spec)
    if callable(spec):
        return FunctionReward(spec, name)
    raise UsageError(
        f"a reward cannot be made from {spec!r} ({type(spec).__name__})", hint=_forms()
    )


def _named(spec: str) -> Reward:
    name, _, argument = spec.partition(":")
    if name == "classifier":
        return _classifier(argument)
    if name in REWARDS:
        reward = load("reward", name)
        return cast("Reward", reward(argument) if argument else reward())
    if (point := entry_points("reward").get(name)) is not None:
        return _given(made("reward", point, *([argument] if argument else [])), name=spec)
    if _is_model(spec):
        return _classifier(spec)
    if ":" in spec:
        return _given(import_attribute("reward", spec), name=spec)
    raise UnknownNameError("reward", spec, names("reward"), hint=_forms())


def _is_model(spec: str) -> bool:
    return (spec != "" and Path(spec).is_dir()) or ("/" in spec and ":" not in spec)


def _classifier(spec: str, memory: str | int | None = None) -> Reward:
    """A classifier from PATH_OR_ID or PATH_OR_ID#LABEL, with options after a "?"."""
    model, options = parse_model("classifier", spec, _CLASSIFIER_OPTIONS, memory)
    return cast("Reward", load("reward", "classifier")(model, **options))
