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

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specrej.attention.attention import DecodePass, PrefillPass, use_groups
from specrej.attention.groups import GRANULE, Group
from specrej.attention.layout import PREFILL_CHUNK, KvLayout
from specrej.attention.linear import WEIGHTS, pack_linears
from specrej.attention.verify import Recorder, verify
from specrej.engines.opening import EngineOptions
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.llama import Llama, LlamaConfig, twin_of
from specrej.engines.torch.remembered import Opened, key_of, recall, remember
from specrej.errors import UnknownNameError, UsageError
from specrej.flops import AttentionFlops, ModelFlops, linear_flops
from specrej.hub.checkpoints import read_tensors
from specrej.hub.pretrained import local_source, open_device, open_pretrained, saying_which
from specrej.hub.quiet import quiet_transformers
from specrej.hub.tokenizers import TextCodec

_KIND = "a causal language model"
_PROBE_PROMPT, _PROBE_NEW = 9, 4


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
    """What runs a model, its tokenizer, and what is known of it, by way of transformers.

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
    runner = twin_of(loaded) or loaded
    if known is not None:
        if runner is loaded:
            with quiet_transformers():
                use_groups(loaded)
        return runner, tokenizer, known
    found = _check(loaded, runner, tokenizer)
    if key is not None:
        remember(key, _with_shortcuts(source, tokenizer, runner, found))
    return runner, tokenizer, found


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
    opened = _check(model, model, tokenizer)  # no twin: the caller may have changed what it does
    return _engine(model, TextCodec(tokenizer, special_tokens), opened, _pack(model, weights), name)


def _check_weights(weights: str | None) -> None:
    if weights is not None and weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)


def _engine(runner: Any, codec: TextCodec, opened: Opened, kernel: str, name: str) -> TorchEngine:
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
            "special_tokens": codec.special_tokens,
            "checked": f"logits, with those of transformers {metadata.version('transformers')}",
        },
    )


def _check(model: Any, runner: Any, tokenizer: Any) -> Opened:
    """What is known of a model when its logits are seen to be transformers' own.

    Args:
        model: of transformers.
        runner: what runs it here: itself, or its twin.
        tokenizer: the model's.

    Raises:
        ModelError: the logits differ from transformers' own, or the model cannot run.
    """
    model.eval()
    with quiet_transformers():
        layout, flops, difference = _verify(model, runner)
    text_config = model.config.get_text_config()
    return Opened(
        difference=difference,
        layout=layout,
        flops=flops,
        eos_ids=_eos_ids(model.generation_config, tokenizer),
        context_tokens=getattr(text_config, "max_position_embeddings", None) or 2**31,
    )


def _with_shortcuts(source: str, tokenizer: Any, runner: Any, opened: Opened) -> Opened:
    """With what opens the model quickly the next time, where it is seen to give the very same."""
    tensors = read_tensors(source) if isinstance(runner, Llama) else None
    if tensors is None or not _is_same_model(runner, tensors):
        return opened
    kind = type(tokenizer)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not name.startswith("transformers.") or not _is_same_tokenizer(
        tokenizer, _open_tokenizer(source, name)
    ):
        return opened
    return replace(opened, tokenizer=name, llama=runner.config)


def _is_same_model(model: Llama, tensors: Mapping[str, Tensor]) -> bool:
    try:
        again = Llama(model.config, tensors).state_dict()
    except KeyError:  # transformers reads these weights by other names
        return False
    own = model.state_dict()
    return own.keys() == again.keys() and all(torch.equal(own[name], again[name]) for name in own)


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
        return pack_linears(model, weights or "fp16")
    if weights is not None:
        raise UsageError(
            f"weights={weights!r} is for float32 models on a CPU, got {model.dtype} on "
            f"{model.device}"
        )
    return str(model.dtype).removeprefix("torch.")


def _eos_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end an answer: the generation config's, else the tokenizer's."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


@torch.inference_mode()
def _verify(model: Any, runner: Any) -> tuple[KvLayout, ModelFlops, float]:
    """Compare our attention with transformers' own on a short text; what a token holds in KV, what
    it costs, and how far apart the logits are.

    Args:
        model: of transformers.
        runner: what runs it here: itself, which is left set to our attention, or its twin.

    Raises:
        ModelError: the logits differ, or the model cannot run on our attention; says why.
    """
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (2, _PROBE_PROMPT + _PROBE_NEW), generator=generator).to(
        model.device
    )
    ids[1, :_PROBE_PROMPT] = ids[0, :_PROBE_PROMPT]

    def expect() -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, _PROBE_PROMPT - 1 :]
        return logits

    def probe() -> tuple[Tensor, Recorder]:
        if runner is model:
            use_groups(model)
        return _probe(runner, ids)

    recorder, difference = verify(model, expect, probe)
    return recorder.layout(GRANULE), _flops(runner, recorder), difference


def _flops(model: Any, recorder: Recorder) -> ModelFlops:
    per_pair: Counter[int | None] = Counter()
    for layer, scoring in recorder.scoring.items():
        per_pair[scoring.window] += recorder.pair_flops[layer]
    head = model.get_output_embeddings()
    return ModelFlops(
        linear=linear_flops(model, head),
        head=2 * head.weight.numel(),
        attention=tuple(AttentionFlops(window, count) for window, count in per_pair.items()),
        chunk=PREFILL_CHUNK,
    )


def _probe(model: Any, ids: Tensor) -> tuple[Tensor, Recorder]:
    """Logits `[2, new + 1, vocabulary]` for the last prompt token and each token after it, on
    our attention.
    """
    prompt = ids[0, :_PROBE_PROMPT].tolist()
    group = Group(prompt, budget_bytes=0, layout=KvLayout(0, 0, GRANULE), max_slots=_PROBE_NEW)
    half = _PROBE_PROMPT // 2
    for start, stop in ((0, half), (half, _PROBE_PROMPT)):
        recorder = Recorder(PrefillPass(group, start))
        positions = torch.arange(start, stop, device=ids.device)[None]
        output = model(
            input_ids=ids[:1, start:stop], position_ids=positions, use_cache=False, kv=recorder
        )
    logits = [output.logits[:, -1].expand(2, -1)]
    group.indices = [0, 1]
    for step in range(_PROBE_NEW):
        group.reserve()
        position = _PROBE_PROMPT + step
        positions = torch.full((2, 1), position, device=ids.device)
        decode = DecodePass([group])
        output = model(
            input_ids=ids[:, position, None], position_ids=positions, use_cache=False, kv=decode
        )
        logits.append(output.logits[:, -1])
        group.length += 1
    return torch.stack(logits, dim=1).float(), recorder
