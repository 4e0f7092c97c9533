"""A Llama-architecture model as one GGUF file with float16 weights, which OpenVINO GenAI opens
without an export.

    path = as_gguf("/models/mine")  # in the user's cache, written first where it is not there yet
    write_gguf("/models/mine", path)         # anywhere else
    check_gguf("/models/theirs.gguf")  # whether OpenVINO computes what somebody else's file says

Only what runs the model is in the file: no tokenizer, since text and tokens are transformers'
affair here. Matrices are rounded to float16, norms stay float32. A file appears whole or not at
all, and processes that want the same one wait for each other.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from specrej.errors import ModelError, UsageError
from specrej.hub.defaults import Report, cache_dir, report_to_stderr
from specrej.hub.sources import first_line, load_config

_FORMAT = 1
"""Counts up when what is written changes, so that files of before are written anew."""
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_EXPORT = (
    "export it instead: optimum-cli export openvino --model {} DIRECTORY, and give that directory"
)


def as_gguf(directory: str | Path, report: Report = report_to_stderr) -> Path:
    """The GGUF file of a model in the cache. One that was written from other weights is written
    anew.

    Raises:
        UsageError: the package gguf is missing.
        ModelError: not a model that GGUF and OpenVINO can say in full, or no room for it.
    """
    directory = Path(directory)
    place = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
    stem = f"{directory.resolve().name}-{place}"
    target = cache_dir() / "gguf" / f"{stem}-{_fingerprint(directory)}.gguf"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{stem}.lock")):
            if not target.exists():
                report(f"writing {directory} as {target}, once")
                outdated = list(target.parent.glob(f"{stem}-*.gguf"))
                write_gguf(directory, target)
                for path in outdated:
                    path.unlink()
    except OSError as error:
        raise ModelError(
            f"cannot write {directory} as {target}: {error}",
            hint="set SPECREJ_CACHE to a directory that can be written to and has room for the "
            "model",
        ) from error
    return target


def _fingerprint(directory: Path) -> str:
    """Of the files that a conversion reads; those of a model that is replaced differ in time or
    size.
    """
    read = sorted([directory / "config.json", *directory.glob("*.safetensors")])
    found = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in read if path.exists()
    ]
    return hashlib.sha256(json.dumps([_FORMAT, found]).encode()).hexdigest()[:12]


def write_gguf(directory: str | Path, target: str | Path) -> None:
    """Write the model of a directory (config.json and safetensors) to a GGUF file.

    Raises:
        UsageError: the package gguf is missing.
        ModelError: not a model that GGUF and OpenVINO can say in full.
    """
    directory, target = Path(directory), Path(target)
    writer_of = _package().GGUFWriter
    config = load_config(str(directory))
    _refuse_others(directory, config)
    tensors = _tensors(directory, config)
    partial = target.with_suffix(".partial")
    writer = writer_of(partial, "llama")
    try:
        _add_metadata(writer, config)
        for name, shape, _ in tensors:
            dtype = _numpy_dtype(shape)
            writer.add_tensor_info(name, shape, dtype, dtype.itemsize * math.prod(shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, _, read in tensors:
            writer.write_tensor_data(read())
        writer.close()
        partial.replace(target)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed", hint="pip install 'specrej[openvino]'"
        ) from error
    return gguf


def check_gguf(path: str | Path) -> None:
    """See that OpenVINO computes what a file says.

    It passes over scaled positions and windows, and rounds once more what is quantized.

    Raises:
        UsageError: the package gguf is missing.
        ModelError: it does not; says why.
    """
    fields, tensors = _contents(path)
    architecture = fields.get("general.architecture")
    names = {tensor.name for tensor in tensors}
    is_scaled = (
        fields.get(f"{architecture}.rope.scaling.type", "none") != "none"
        or "rope_freqs.weight" in names
    )
    kinds = {tensor.tensor_type.name for tensor in tensors} - {"F16", "F32"}
    unlike = [
        (bool(kinds), f"its weights are {', '.join(sorted(kinds))}, not F16"),
        (is_scaled, "its positions are scaled"),
        (
            bool(fields.get(f"{architecture}.attention.sliding_window")),
            "its attention has a window",
        ),
    ]
    for is_unlike, what in unlike:
        if is_unlike:
            raise ModelError(
                f"OpenVINO does not compute what {str(path)!r} says: {what}",
                hint=_EXPORT.format("MODEL"),
            )


def _contents(path: str | Path) -> tuple[dict[str, Any], list[Any]]:
    """What a file says of its model, without the tokenizer, and its tensors.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        reader = _package().GGUFReader(path)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.")
        }
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"{str(path)!r} is not a GGUF file that can be read: {first_line(error)}"
        ) from error
    return fields, list(reader.tensors)


def _numpy_dtype(shape: list[int]) -> Any:
    import numpy as np

    return np.dtype(np.float16 if len(shape) == 2 else np.float32)


def _refuse_others(directory: Path, config: Any) -> None:
    """See that OpenVINO's reader of GGUF builds this very model: it knows no scaled positions,
    and no biases here.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    unlike = [
        ("its architecture is {}, not Llama", getattr(config, "model_type", None), "llama"),
        ("its positions are scaled ({})", rope.get("rope_type", "default"), "default"),
        ("its activation is {}, not silu", getattr(config, "hidden_act", None), "silu"),
        ("its attention has biases", bool(getattr(config, "attention_bias", False)), False),
        ("its MLP has biases", bool(getattr(config, "mlp_bias", False)), False),
        (
            "its weights are quantized",
            getattr(config, "quantization_config", None) is not None,
            False,
        ),
    ]
    for message, found, expected in unlike:
        if found != expected:
            raise ModelError(
                f"cannot write {str(directory)!r} as GGUF: {message.format(found)}",
                hint=_EXPORT.format(directory),
            )


def _add_metadata(writer: Any, config: Any) -> None:
    """What OpenVINO's reader asks for, by GGUF's names."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(1)  # mostly float16


def _tensors(directory: Path, config: Any) -> list[tuple[str, list[int], Callable[[], Any]]]:
    """Name in GGUF, shape, and what reads it, for every tensor of the model.

    Raises:
        ModelError: one is missing.
    """
    from safetensors import safe_open

    files: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            opened: Any = safe_open(path, framework="pt")
        except Exception as error:  # a file that is cut off, or something else
            raise ModelError(f"{path} is not a file of safetensors: {first_line(error)}") from error
        files.update(dict.fromkeys(opened.keys(), opened))
    if not files:
        raise ModelError(
            f"{str(directory)!r} has no safetensors",
            hint="save the model with transformers' save_pretrained",
        )
    tensors = []
    for name, gguf_name, num_heads in _names(config):
        if name not in files:
            raise ModelError(f"{str(directory)!r} is not a whole Llama: it has no {name!r}")
        shape = files[name].get_slice(name).get_shape()
        tensors.append((gguf_name, shape, _reader(files[name], name, num_heads)))
    return tensors


def _names(config: Any) -> Iterator[tuple[str, str, int | None]]:
    """Name in transformers, name in GGUF, and the number of heads whose rows GGUF has in another
    order.
    """
    for name, gguf_name in _TOP.items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            yield name, gguf_name, None
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for module, gguf_module in _LAYER.items():
            yield (
                f"model.layers.{layer}.{module}.weight",
                f"blk.{layer}.{gguf_module}.weight",
                heads.get(gguf_module),
            )


def _reader(file: Any, name: str, num_heads: int | None) -> Callable[[], Any]:
    def read() -> Any:
        tensor = file.get_tensor(name)
        if num_heads is not None:
            # Rotary positions turn pairs of numbers. Transformers has the first ones of all pairs
            # before the second ones, GGUF of a Llama has both of a pair side by side.
            halves = tensor.reshape(
                num_heads, 2, tensor.shape[0] // num_heads // 2, tensor.shape[1]
            )
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        rounded = tensor.half() if tensor.dim() == 2 else tensor.float()
        if not rounded.isfinite().all():
            raise ModelError(
                f"{name!r} has weights that float16 cannot hold", hint=_EXPORT.format("MODEL")
            )
        return rounded.contiguous().numpy()

    return read
