"""Open a model for the torch engine, and prove that the engine computes what transformers computes.

    engine = open_engine("smollm2")                          # a default model
    engine = open_engine("org/name", device="cuda")          # a Hugging Face id
    # a directory: safetensors, or one GGUF file
    engine = open_engine("/models/mine", weights="fp32")

Before an engine is handed out, a short text goes through the model twice: through transformers' own
attention, and through ours, a prompt in chunks and then token by token. An architecture whose
logits differ is refused.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from specrej.attention.attention import IMPLEMENTATION, DecodePass, PrefillPass
from specrej.attention.decoder import Decoder, can_be_written_out
from specrej.attention.groups import GRANULE, Group, Scoring
from specrej.attention.layout import PREFILL_CHUNK, KvLayout
from specrej.attention.linear import WEIGHTS, pack_linears
from specrej.attention.verify import TOLERANCE, Recorder, differ, verify
from specrej.engines.opening import EngineOptions
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.kernels import turning_point
from specrej.errors import UnknownNameError, UsageError
from specrej.flops import AttentionFlops, ModelFlops, linear_flops
from specrej.hub.pretrained import open_device, open_pretrained
from specrej.hub.quiet import quiet_transformers
from specrej.hub.tokenizers import TextCodec

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
    dtype = None if open_device(device).type == "cpu" else torch.bfloat16
    loaded, tokenizer = open_pretrained(
        model, AutoModelForCausalLM, "a causal language model", device=device, dtype=dtype
    )
    return wrap(loaded, tokenizer, weights=weights, name=str(model), special_tokens=special_tokens)


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
    if weights is not None and weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)
    model.eval()
    with quiet_transformers():
        layout, flops = _verify(model)
    kernel = _pack(model, weights)
    text_config = model.config.get_text_config()
    return TorchEngine(
        model,
        TextCodec(tokenizer, special_tokens),
        layout=layout,
        flops=flops,
        eos_ids=_eos_ids(model.generation_config, tokenizer),
        context_tokens=getattr(text_config, "max_position_embeddings", None) or 2**31,
        description={
            "engine": "torch",
            "model": name,
            "device": str(model.device),
            "weights": kernel,
            "special_tokens": special_tokens,
        },
    )


def _pack(model: Any, weights: str | None) -> str:
    """Pack the linear layers where a CPU computes in float32; what the weights are then.

    Raises:
        UsageError: weights are asked for where they cannot be packed.
    """
    if model.device.type == "cpu" and model.dtype == torch.float32:
        many_rows = turning_point(model) if weights in (None, "fp16") else None
        return pack_linears(model, weights or "fp16", many_rows)
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
def _verify(model: Any) -> tuple[KvLayout, ModelFlops]:
    """Compare our attention with transformers' own on a short text; what a token holds in KV, and
    what it costs.

    Leaves the model set to our attention.

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
        model.set_attn_implementation(IMPLEMENTATION)
        return _probe(model, ids)

    recorder = verify(model, expect, probe)
    flops = _flops(model, recorder)
    _write_out(model, recorder.scoring, ids)
    return recorder.layout(GRANULE), flops


def _write_out(model: Any, scoring: Mapping[int, Scoring], ids: Tensor) -> None:
    """Let `Decoder` compute the layers of a model where it computes what they do.

    That is tried on the first layers, as many as it takes to have one of each kind of attention.
    """
    backbone = model.base_model
    if model.device.type != "cpu" or backbone is model or not can_be_written_out(backbone):
        return
    layers = backbone.layers
    kinds = [scoring[number] for number in range(len(layers))]
    backbone.layers = layers[: max(map(kinds.index, kinds)) + 1]
    expected, _ = _probe(model, ids)
    setattr(model, model.base_model_prefix, Decoder(backbone, scoring, is_trial=True))
    try:
        is_same = differ(_probe(model, ids)[0], expected) <= TOLERANCE[model.dtype]
    except (AttributeError, RuntimeError, TypeError):  # parts of these names that are others
        is_same = False
    backbone.layers = layers
    setattr(
        model,
        model.base_model_prefix,
        Decoder(backbone, scoring, is_trial=False) if is_same else backbone,
    )


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
