"""Open a model for the torch engine, and prove that the engine computes what transformers computes.

    engine = open_engine("smollm2")                          # a default model
    engine = open_engine("org/name", device="cuda")          # a Hugging Face id
    # a directory: safetensors, or one GGUF file
    engine = open_engine("/models/mine", weights="fp32")

Before an engine is handed out, a short text goes through the model twice: through transformers' own
attention, and through ours, a prompt in chunks and then token by token. An architecture whose
logits differ is refused. Of a directory this is done once, and remembered (`remembered`); a Llama
is then opened without transformers' modelling code (`llama`).
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specrej.attention.linear import WEIGHTS, pack_linears
from specrej.engines.opening import EngineOptions
from specrej.engines.torch.checking import check, set_up
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.kernels import fused, products_here, turning_point
from specrej.engines.torch.llama import Llama, LlamaConfig, Rotary, shape_of
from specrej.engines.torch.remembered import Opened, key_of, recall, remember
from specrej.errors import UnknownNameError, UsageError
from specrej.hub.checkpoints import read_tensors
from specrej.hub.pretrained import local_source, open_device, open_pretrained, saying_which
from specrej.hub.quiet import quiet_transformers
from specrej.hub.tokenizers import TextCodec

_KIND = "a causal language model"


def load_engine(
    model: str | Path,
    *,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
) -> TorchEngine:
    """Load a causal LM with its tokenizer.

    Args:
        model: a default model's name, a Hugging Face id, or a local directory.
        weights: how a CPU holds the weights: "fp16" (the default) or "fp32" (exact). Not for GPUs.
        device: a torch device; CUDA if there is one, else the CPU.
        special_tokens: "text" or "allow": what becomes of messages that spell special tokens.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: there is no such device.
        ModelError: not a causal LM, a broken directory, or an architecture that the engine cannot
            honour.
    """
    _check_weights(weights)
    place = open_device(device)
    source = local_source(model, "AutoModelForCausalLM", _KIND)
    key = key_of(source, weights or "fp16", str(place))
    known = None if key is None else recall(key)
    if known is not None and known.llama is not None:
        with saying_which(model, source, _KIND):
            runner, tokenizer, kernel = _reopen(source, known, known.llama, weights)
    else:
        runner, tokenizer, known = _open(model, source, device, key, known)
        set_up(runner, known)
        kernel = _pack(runner, weights)
    return _engine(runner, TextCodec(tokenizer, special_tokens), known, kernel, str(model))


def check_model(
    model: str | Path, *, weights: str | None = None, device: str | None = None
) -> float:
    """Compare a model's logits with transformers' own, also where this was done before; the largest
    difference, as a share of the largest logit. It is remembered.

    Args:
        model: see `load_engine`.
        weights: see `load_engine`; each kind is remembered for itself.
        device: see `load_engine`.

    Raises:
        As `load_engine`.
    """
    _check_weights(weights)
    source = local_source(model, "AutoModelForCausalLM", _KIND)
    key = key_of(source, weights or "fp16", str(open_device(device)))
    _, _, found = _open(model, source, device, key, None)
    return found.difference


def _open(
    model: str | Path, source: str, device: str | None, key: str | None, known: Opened | None
) -> tuple[Any, Any, Opened]:
    """A model of transformers, its tokenizer, and what is known of it.

    Args:
        model: what the user calls it.
        source: where it is.
        device: what the user asks for.
        key: what is found out is remembered by it; None is not.
        known: what was found out before.
    """
    from transformers import AutoModelForCausalLM

    dtype = None if open_device(device).type == "cpu" else torch.bfloat16
    loaded, tokenizer = open_pretrained(
        model, AutoModelForCausalLM, _KIND, device=device, dtype=dtype
    )
    if known is not None:
        return loaded, tokenizer, known
    found = check(loaded, tokenizer)
    if key is not None:
        remember(key, _with_shortcuts(source, tokenizer, loaded, found))
    return loaded, tokenizer, found


def open_as_asked(model: str | Path, options: EngineOptions) -> TorchEngine:
    """See `specrej.engines.opening`."""
    options.refuse("torch", "arguments")
    return load_engine(
        model, weights=options.weights, device=options.device, special_tokens=options.special_tokens
    )


def wrap(
    model: Any,
    tokenizer: Any,
    *,
    weights: str | None = None,
    name: str = "model",
    special_tokens: str = "text",
) -> TorchEngine:
    """An engine around a loaded model, which belongs to the engine from here on.

    Raises:
        ModelError: the architecture needs what the engine cannot honour; named.
    """
    _check_weights(weights)
    opened = check(model, tokenizer)
    set_up(model, opened)
    return _engine(model, TextCodec(tokenizer, special_tokens), opened, _pack(model, weights), name)


def _check_weights(weights: str | None) -> None:
    if weights is not None and weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)


def _engine(runner: Any, codec: TextCodec, opened: Opened, kernel: str, name: str) -> TorchEngine:
    is_compiled = fused(runner.device, runner.dtype) is not None
    return TorchEngine(
        runner,
        codec,
        layout=opened.layout,
        flops=opened.flops,
        eos_ids=opened.eos_ids,
        context_tokens=opened.context_tokens,
        description={
            "engine": "torch",
            "model": name,
            "device": str(runner.device),
            "weights": kernel,
            "fused": "compiled" if is_compiled else "by torch",
            "special_tokens": codec.special_tokens,
            "checked": f"logits, with those of transformers {metadata.version('transformers')}",
        },
    )


def _with_shortcuts(source: str, tokenizer: Any, model: Any, opened: Opened) -> Opened:
    """With what opens the model quickly the next time, where it is seen to give the very same."""
    shape = shape_of(model) if opened.scoring else None
    if shape is None or not _is_same_model(model, shape, read_tensors(source)):
        return opened
    kind = type(tokenizer)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not name.startswith("transformers.") or not _is_same_tokenizer(
        tokenizer, _open_tokenizer(source, name)
    ):
        return opened
    return replace(opened, tokenizer=name, llama=shape)


def _is_same_model(model: Any, shape: LlamaConfig, tensors: Mapping[str, Tensor] | None) -> bool:
    """Whether a Llama of this shape around these weights has all that the model has."""
    own = model.state_dict()
    if tensors is None or not all(
        name in tensors and torch.equal(own[name], tensors[name])
        for name in own
        if not (shape.tie_word_embeddings and name == "lm_head.weight")
    ):
        return False
    hidden, positions = torch.zeros(1), torch.arange(min(shape.max_position_embeddings, 4096))[None]
    turns = model.model.rotary_emb(hidden, positions)
    again = Rotary(shape.rope_theta, shape.head_dim)(hidden, positions)
    return all(map(torch.equal, turns, again))


def _is_same_tokenizer(one: Any, other: Any) -> bool:
    return bool(
        one.is_fast
        and one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
        and one.special_tokens_map == other.special_tokens_map
        and one.chat_template == other.chat_template
    )


def _open_tokenizer(source: str, name: str) -> Any:
    """The tokenizer of a directory by its class, for which transformers would read the model's
    configuration, and import its code.
    """
    module, _, kind = name.partition(":")
    with quiet_transformers():
        return getattr(import_module(module), kind).from_pretrained(source)


def _reopen(
    source: str, opened: Opened, config: LlamaConfig, weights: str | None
) -> tuple[Any, Any, str]:
    """The model and the tokenizer of a directory that was opened before, and the kernel. The
    tokenizer is opened while the weights are packed.
    """
    with ThreadPoolExecutor(1) as aside:
        tokenizer = aside.submit(_open_tokenizer, source, opened.tokenizer)
        tensors = read_tensors(source)
        assert tensors is not None  # they were there when this was remembered
        model = Llama(config, tensors)
        kernel = _pack(model, weights)
        return model, tokenizer.result(), kernel


def _pack(model: Any, weights: str | None) -> str:
    """Pack the linear layers where a CPU computes in float32; what the weights are then.

    Raises:
        UsageError: weights are asked for where they cannot be packed.
    """
    if model.device.type == "cpu" and model.dtype == torch.float32:
        many_rows = turning_point(model) if weights in (None, "fp16") else None
        return pack_linears(model, weights or "fp16", products_here(model.device), many_rows)
    if weights is not None:
        raise UsageError(
            f"weights={weights!r} is for float32 models on a CPU, got {model.dtype} on "
            f"{model.device}"
        )
    return str(model.dtype).removeprefix("torch.")
