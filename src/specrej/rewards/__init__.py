"""What a user may give as a reward, and the one place that turns it into a `Reward`.

    as_reward("relevance")                        # a name of the registry
    as_reward("logprob:sum")                      # ... with its argument
    as_reward("classifier:org/model#helpful")     # a classifier's output by its label
    as_reward("org/model")                        # the same from a Hugging Face id or a local directory
    as_reward("metrics:brevity")                  # a function of a module, looked for in the current directory first
    as_reward(lambda prompt, texts: [len(text) for text in texts])

Rewards are imported when asked for: importing this module loads no torch.
"""

import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from specrej.errors import UnknownNameError, UsageError
from specrej.registry import REWARDS, load
from specrej.rewards.base import Reward
from specrej.rewards.function import FunctionReward

_FORMS = (
    f"give one of {', '.join(sorted(REWARDS))}, module:function, a local directory or a Hugging Face id, "
    "a function (prompt, texts) -> numbers, or an object with open(messages)"
)


def as_reward(spec: Any) -> Reward:
    """The reward that the user means: a reward, a function over texts, or a string as in the module's docstring.

    Raises:
        UsageError: `spec` is none of these, or the module or function it names is not there.
        UnknownNameError: a plain name that nobody knows; near ones are suggested.
        ModelError: the model of a classifier cannot be opened.
    """
    if isinstance(spec, str):
        return _named(spec)
    return _given(spec, name=None)


def _given(spec: Any, name: str | None) -> Reward:
    """A reward as it is, or a function over texts, which gets `name`."""
    if isinstance(spec, type):
        raise UsageError(
            f"a reward must be an object, got the class {spec.__name__}", hint=f"make one first: {spec.__name__}(...)"
        )
    if hasattr(spec, "open"):
        return cast("Reward", spec)
    if callable(spec):
        return FunctionReward(spec, name)
    raise UsageError(f"a reward cannot be made from {spec!r} ({type(spec).__name__})", hint=_FORMS)


def _named(spec: str) -> Reward:
    name, _, argument = spec.partition(":")
    if name == "classifier" or (name not in REWARDS and _is_model(spec)):
        return _classifier(argument if name == "classifier" else spec)
    if name in REWARDS:
        reward = load("reward", REWARDS, name)
        return cast("Reward", reward(argument) if argument else reward())
    if ":" in spec:
        return _given(_attribute(spec), name=spec)
    raise UnknownNameError("reward", spec, REWARDS, hint=_FORMS)


def _is_model(spec: str) -> bool:
    return (spec != "" and Path(spec).is_dir()) or ("/" in spec and ":" not in spec)


def _classifier(spec: str) -> Reward:
    """A classifier from PATH_OR_ID or PATH_OR_ID#LABEL."""
    if not spec:
        raise UsageError("the reward 'classifier' needs a model", hint="give it as classifier:PATH_OR_ID")
    model, _, label = (spec, "", "") if Path(spec).is_dir() else spec.partition("#")
    return cast("Reward", load("reward", REWARDS, "classifier")(model, label=label or None))


def _attribute(spec: str) -> Any:
    """What `module:attribute` names; the current directory is searched first."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"the reward {spec!r} is not of the form module:function", hint=_FORMS)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # stays: the function may import its neighbours when it is called
    try:
        module = import_module(module_name)
    except Exception as exc:
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            hint = (
                f"there is no module {missing!r} in {here} or among the installed ones; write module:function, no .py"
            )
            raise UnknownNameError("reward or module", module_name, REWARDS, hint=hint) from exc
        raise UsageError(
            f"the module {module_name!r} of the reward {spec!r} cannot be imported: {type(exc).__name__}: {exc}",
            hint=f"see that `python -c 'import {module_name}'` runs in {here}",
        ) from exc
    try:
        return attrgetter(attribute)(module)
    except AttributeError as exc:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownNameError(f"function of the module {module_name!r}", attribute, public) from exc
