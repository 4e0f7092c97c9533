"""Names of rewards, engines, algorithms and policies, and where each lives. Nothing is imported
before it is asked for.

Other packages add their own by entry points of the groups `specrej.rewards`, `specrej.engines`,
`specrej.algorithms`, `specrej.policies` and `specrej.extracts`; in their pyproject.toml:

    [project.entry-points."specrej.rewards"]
    brevity = "their_package.rewards:make_brevity"

`make_brevity()` is then the reward `brevity`, `make_brevity("x")` the reward `brevity:x`. What a
name of the other groups stands for is said in docs/extending.md.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from specrej.errors import SpecrejError, UnknownNameError, UsageError, listed
from specrej.threads import while_torch_loads

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

REWARDS = {
    "relevance": "specrej.rewards.windows:parse_relevance",
    "logprob": "specrej.rewards.logprob:LogprobReward",
    "classifier": "specrej.rewards.classifier:ClassifierReward",
    "ensemble": "specrej.rewards.ensemble:parse_ensemble",
    "process": "specrej.rewards.process:parse_process",
    "reference": "specrej.rewards.reference:parse_reference",
    "likelihood": "specrej.rewards.likelihood:parse_likelihood",
    "embedding": "specrej.rewards.embedding:parse_embedding",
    "regex": "specrej.rewards.verifiable:parse_regex",
    "exact_match": "specrej.rewards.verifiable:parse_exact_match",
    "math": "specrej.rewards.verifiable:parse_math",
    "judge": "specrej.rewards.judge:parse_judge",
    "pairwise": "specrej.rewards.pairwise:parse_pairwise",
    "ranking": "specrej.rewards.group_judge:parse_ranking",
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
    "beam_search": "specrej.search.branching:beam_search",
    "dvts": "specrej.search.branching:dvts",
    "particle_filtering": "specrej.search.branching:particle_filtering",
    "tree_bon": "specrej.search.branching:tree_bon",
    "threshold": "specrej.search.voted:threshold",
    "majority_vote": "specrej.search.voted:majority_vote",
    "weighted_best_of_n": "specrej.search.voted:weighted_best_of_n",
    "voted_rejection": "specrej.search.voted:voted_rejection",
    "self_certainty": "specrej.search.confident:self_certainty",
    "deepconf": "specrej.search.confident:deepconf",
    "deepconf_online": "specrej.search.confident:deepconf_online",
}
POLICIES = {"smollm2-relevance": "specrej.search.shipped:smollm2_relevance"}
EXTRACTS = {
    "auto": "specrej.rewards.answers:automatic",
    "boxed": "specrej.rewards.answers:boxed",
    "number": "specrej.rewards.answers:number",
    "text": "specrej.rewards.answers:whole",
}
TABLES = {
    "reward": REWARDS,
    "engine": ENGINES,
    "algorithm": ALGORITHMS,
    "policy": POLICIES,
    "extract": EXTRACTS,
}
"""What specrej itself brings, by kind and name."""


def names(kind: str) -> list[str]:
    """All names of a kind, those of other packages included."""
    return sorted({*TABLES[kind], *entry_points(kind)})


def is_name(kind: str, name: str) -> bool:
    """Whether a kind has this name. Installed packages are looked through for others than our
    own.
    """
    return name in TABLES[kind] or name in entry_points(kind)


def load(kind: str, name: str) -> Any:
    """The object that a name of specrej's own stands for.

    Raises:
        UnknownNameError: it has no such name; near ones are suggested.
    """
    if name not in TABLES[kind]:
        raise UnknownNameError(kind, name, names(kind))
    module, _, attribute = TABLES[kind][name].partition(":")
    with while_torch_loads():
        return getattr(import_module(module), attribute)


def find(kind: str, spec: str) -> Any:
    """What a name, or "module:attribute", stands for: our own name, then one of another package,
    then a module.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: the module, or the package that has the name, cannot be imported.
    """
    if spec in TABLES[kind]:
        return load(kind, spec)
    if (point := entry_points(kind).get(spec)) is not None:
        return load_entry_point(kind, point)
    if ":" in spec:
        return import_attribute(kind, spec)
    raise UnknownNameError(kind, spec, names(kind))


def entry_points(kind: str) -> dict[str, "EntryPoint"]:
    """What other packages add, by name; of equal names the first on `sys.path`."""
    # takes longer to import than the rest of the package
    from importlib.metadata import entry_points

    group = {"policy": "specrej.policies"}.get(kind, f"specrej.{kind}s")
    return {point.name: point for point in reversed(tuple(entry_points(group=group)))}


def load_entry_point(kind: str, point: "EntryPoint") -> Any:
    """The object of another package.

    Raises:
        UsageError: it cannot be imported; names the package.
    """
    try:
        return point.load()
    except Exception as error:
        raise UsageError(
            f"the {kind} {point.name!r} of the package {package_of(point)!r} cannot be made: "
            f"{type(error).__name__}: {error}",
            hint=f"see that {point.value} can be imported",
        ) from error


def made(kind: str, point: "EntryPoint", *given: Any, **options: Any) -> Any:
    """What another package makes of its name.

    Raises:
        UsageError: it cannot be imported, or raised at this; names the package.
    """
    make = load_entry_point(kind, point)
    try:
        return make(*given, **options)
    except SpecrejError:
        raise
    except Exception as error:
        raise UsageError(
            f"the {kind} {point.name!r} of the package {package_of(point)!r} cannot be made: "
            f"{type(error).__name__}: {error}",
            hint="see what arguments it takes",
        ) from error


def missing(thing: object, members: Iterable[str]) -> str:
    """The members that an object of another package lacks, in words; empty where it has all."""
    return ", ".join(name for name in members if not hasattr(thing, name))


def package_of(point: "EntryPoint") -> str:
    """The package that a name is from."""
    return point.dist.name if point.dist else point.module


def import_attribute(kind: str, spec: str) -> Any:
    """What `module:attribute` names; the current directory is searched first.

    Raises:
        UsageError: it is not of this form, or the module cannot be imported.
        UnknownNameError: there is no such module, or nothing in it has this name.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UsageError(
            f"the {kind} {spec!r} is not of the form module:function",
            hint=listed(names(kind)),
        )
    module = _import(kind, spec, module_name)
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        public = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_")
        ]
        raise UnknownNameError(
            f"function of the module {module_name!r}", attribute, public
        ) from error


def _import(kind: str, spec: str, name: str) -> ModuleType:
    """A user's module."""
    if (here := str(Path.cwd())) not in sys.path:
        # stays: what is imported may import its neighbours when it is called
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            hint = (
                f"there is no module {missing!r} in {here} or among the installed ones; write "
                "module:function, no .py"
            )
            raise UnknownNameError(f"{kind} or module", name, names(kind), hint=hint) from error
        raise UsageError(
            f"the module {name!r} of the {kind} {spec!r} cannot be imported: "
            f"{type(error).__name__}: {error}",
            hint=f"see that `python -c 'import {name}'` runs in {here}",
        ) from error
