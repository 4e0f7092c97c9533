"""Open a model for the torch engine, and prove that the engine computes what transformers computes.

    engine = open_engine("smollm2")                          # a default model
    engine = open_engine("org/name", device="cuda")          # a Hugging Face id
    engine = open_engine("/models/mine", weights="fp32")     # a directory: safetensors, or one GGUF file

Before an engine is handed out, a short text goes through the model twice: through transformers' own attention, and
through ours, a prompt in chunks and then token by token. An architecture whose logits differ is refused.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from specrej.attention import groups
from specrej.attention.attention import IMPLEMENTATION, DecodePass, Pass, PrefillPass
from specrej.attention.groups import Group, Scoring
from specrej.attention.layout import KvLayout
from specrej.attention.linear import WEIGHTS, pack_linears
from specrej.engines.opening import EngineOptions
from specrej.engines.torch.engine import PREFILL_CHUNK, TorchEngine
from specrej.errors import ModelError, SpecrejError, UnknownNameError, UsageError
from specrej.flops import AttentionFlops, ModelFlops, linear_flops
from specrej.hub.quiet import quiet_transformers
from specrej.hub.sources import first_line, locate_model, unknown_model
from specrej.hub.tokenizers import TextCodec

_PROBE_PROMPT, _PROBE_NEW = 9, 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of two logits that counts as the same, as a share of the largest logit."""


def open_engine(
    model: str | Path, *, weights: str | None = None, device: str | None = None, special_tokens: str = "text"
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
        ModelError: not a causal LM, a broken directory, or an architecture that the engine cannot honour.
    """
    loaded, tokenizer = load_pretrained(model, _device(device))
    return wrap(loaded, tokenizer, weights=weights, name=str(model), special_tokens=special_tokens)


def open_as_asked(model: str | Path, options: EngineOptions) -> TorchEngine:
    """See `specrej.engines.opening`."""
    options.refuse("torch", "arguments")
    return open_engine(model, weights=options.weights, device=options.device, special_tokens=options.special_tokens)


def wrap(
    model: Any, tokenizer: Any, *, weights: str | None = None, name: str = "model", special_tokens: str = "text"
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
    kernel = str(model.dtype).removeprefix("torch.")
    if model.device.type == "cpu" and model.dtype == torch.float32:
        kernel = pack_linears(model, weights or "fp16")
    elif weights is not None:
        raise UsageError(f"weights={weights!r} is for float32 models on a CPU, got {model.dtype} on {model.device}")
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


def load_pretrained(model: str | Path, device: torch.device) -> tuple[Any, Any]:
    """The transformers model and tokenizer of a name, an id or a directory."""
    name = str(model)
    model = locate_model(model)
    gguf = _gguf_file(Path(model))
    # Code that comes with a checkpoint is never run, and nobody is asked on the terminal whether it may.
    arguments = {"trust_remote_code": False, **({} if gguf is None else {"gguf_file": gguf})}
    # Half-precision arithmetic is emulated on most CPUs, a hundred times slower.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(model), **arguments)
            opened: Any = AutoModelForCausalLM.from_pretrained(
                str(model), dtype=dtype, output_loading_info=True, **arguments
            )
    except OSError as error:
        if "/" in name or Path(name).exists():
            raise ModelError(f"cannot open the model {name!r}: {first_line(error)}") from error
        raise unknown_model(name) from error
    except Exception as error:  # a broken file fails in whatever library reads it
        raise ModelError(
            f"{name!r} is not a causal language model that transformers can open: {first_line(error)}",
            hint="a generator is opened with AutoModelForCausalLM; give a reward model as the reward",
        ) from error
    loaded, report = opened
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name!r} is not a whole causal language model: weights are missing, {missing[0]} for one",
            hint="give a model trained to write text; give a reward model as the reward",
        )
    return cast("Any", loaded).to(device), tokenizer


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot compute on the device {name!r}: {first_line(error)}") from error
    return device


def _gguf_file(directory: Path) -> str | None:
    """The one GGUF file of a directory that holds no model in transformers' own format."""
    if not directory.is_dir() or (directory / "config.json").exists():
        return None
    files = sorted(path.name for path in directory.glob("*.gguf"))
    if not files:
        raise ModelError(f"{directory} holds no model: neither config.json nor a GGUF file")
    if len(files) > 1:
        raise ModelError(
            f"{directory} holds {len(files)} GGUF files: {', '.join(files)}", hint="keep one of them there"
        )
    return files[0]


def _eos_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end an answer: the generation config's, else the tokenizer's."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


@dataclass
class Recorder:
    """Passes on to another pass and notes what each layer asked for, and the shapes of its KV and its heads."""

    inner: Pass
    scoring: dict[int, Scoring] = field(default_factory=dict)
    tensor_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pair_flops: dict[int, int] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        self.scoring[layer] = scoring
        size = key.element_size()
        self.tensor_sizes[layer] = (key[0, :, 0].numel() * size, value[0, :, 0].numel() * size)
        self.pair_flops[layer] = 2 * query.shape[1] * (query.shape[3] + value.shape[3])
        return self.inner.attend(layer, query, key, value, scoring)


@torch.inference_mode()
def _verify(model: Any) -> tuple[KvLayout, ModelFlops]:
    """Compare our attention with transformers' own on a short text; what a token holds in KV, and what it costs.

    Leaves the model set to our attention.

    Raises:
        ModelError: the logits differ, or the model cannot run on our attention; says why.
    """
    architecture, config = type(model).__name__, model.config.get_text_config()
    check_kinds(model, config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, _PROBE_PROMPT + _PROBE_NEW), generator=generator).to(model.device)
    ids[1, :_PROBE_PROMPT] = ids[0, :_PROBE_PROMPT]
    expected = model(input_ids=ids, use_cache=False).logits.float()
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        actual, recorder = _probe(model, ids)
    except SpecrejError:
        raise
    except Exception as error:
        raise ModelError(f"{architecture} does not run on the torch engine: {first_line(error)}") from error
    check_windows(architecture, config, recorder)
    difference = (actual - expected[:, -actual.shape[1] :]).abs().max().item() / expected.abs().max().item()
    if not difference <= TOLERANCE[model.dtype]:
        raise ModelError(
            f"{architecture} is not supported by the torch engine: its logits differ from transformers' own by "
            f"{difference:.1e} of the largest logit"
        )
    sizes = list(recorder.tensor_sizes.values())
    layout = KvLayout(sum(key + value for key, value in sizes), max(max(pair) for pair in sizes), groups.GRANULE)
    return layout, _flops(model, recorder)


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
    """Logits `[2, new + 1, vocabulary]` for the last prompt token and each token after it, on our attention."""
    prompt = ids[0, :_PROBE_PROMPT].tolist()
    group = Group(prompt, budget_bytes=0, layout=KvLayout(0, 0, groups.GRANULE), max_slots=_PROBE_NEW)
    half = _PROBE_PROMPT // 2
    for start, stop in ((0, half), (half, _PROBE_PROMPT)):
        recorder = Recorder(PrefillPass(group, start))
        positions = torch.arange(start, stop, device=ids.device)[None]
        output = model(input_ids=ids[:1, start:stop], position_ids=positions, use_cache=False, kv=recorder)
    logits = [output.logits[:, -1].expand(2, -1)]
    group.indices = [0, 1]
    for step in range(_PROBE_NEW):
        group.reserve()
        position = _PROBE_PROMPT + step
        positions = torch.full((2, 1), position, device=ids.device)
        decode = DecodePass([group])
        output = model(input_ids=ids[:, position, None], position_ids=positions, use_cache=False, kv=decode)
        logits.append(output.logits[:, -1])
        group.length += 1
    return torch.stack(logits, dim=1).float(), recorder


def check_kinds(model: nn.Module, config: Any) -> None:
    """Refuse layers that are no attention, or attention of another kind than ours."""
    architecture = type(model).__name__
    for module in model.modules():
        if getattr(module, "is_causal", None) is False:
            raise ModelError(f"{architecture} is not causal: its {type(module).__name__} sees the tokens to come")
    for layer, kind in enumerate(getattr(config, "layer_types", None) or []):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"layer {layer} of {architecture} is of kind {kind!r}, which the torch engine does not honour"
            )


def check_windows(architecture: str, config: Any, recorder: Recorder) -> None:
    """Refuse layers whose window our attention was not told of: the short text cannot tell them from full attention."""
    for layer, kind in enumerate(getattr(config, "layer_types", None) or []):
        scoring = recorder.scoring.get(layer)
        if scoring is None or (kind == "sliding_attention" and scoring.window is None):
            raise ModelError(
                f"layer {layer} of {architecture} does not hand its window to the torch engine's attention"
            )
