"""OpenVINO GenAI in this process, for CPUs.

    engine = open_engine("smollm2", engine="openvino")
    engine = open_engine("/models/exported", engine="openvino", engine_args={"cache_size": 8})
    few = {"INFERENCE_NUM_THREADS": 4}
    engine = open_engine("/models/mine.gguf", engine="openvino", engine_args=few)

It opens a directory that `optimum-cli export openvino` has written, a GGUF file with float16
weights, and a Llama in transformers' format, which becomes such a file once (see `gguf`). Arguments
in small letters are fields of OpenVINO's SchedulerConfig, beside `device`; those in capitals are
properties of the device. Text and tokens are transformers' affair, with the tokenizer that lies
beside the model. How candidates become requests is in `openvino_requests`.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from specrej.engines.opening import EngineOptions, require
from specrej.engines.openvino_requests import (
    MOST_PAGE_TOKENS,
    Cache,
    OpenVinoBackend,
    check_drawing,
    last_line,
    measure,
)
from specrej.engines.paged import PagedEngine
from specrej.errors import ModelError, UsageError, guess
from specrej.flops import flops_of_config
from specrej.hub.gguf import as_gguf, check_gguf
from specrej.hub.quiet import quiet_transformers
from specrej.hub.sources import first_line, load_codec, load_config, locate_model, unknown_model
from specrej.hub.tokenizers import TextCodec

_OURS = {
    "enable_prefix_caching": "candidates share the prompt through it",
    "dynamic_split_fuse": "without it OpenVINO mixes up what candidates share",
    "max_num_batched_tokens": "a step must hold a whole prompt",
    "use_cache_eviction": "candidates keep all of their tokens",
    "cache_eviction_config": "candidates keep all of their tokens",
    "use_sparse_attention": "candidates see all of their tokens",
    "sparse_attention_config": "candidates see all of their tokens",
}
_SCHEDULER = ("cache_size", "num_kv_blocks", "max_num_seqs")
_OTHERS = ("device", "sampler_num_threads")
_CACHE_GIB = 2
_MOST_REQUESTS = 256
_ON_A_CPU = {
    "INFERENCE_PRECISION_HINT": "f32",
    # A batch of another size turns last bits, which KV in f16 makes a hundred times larger: of
    # SmolLM2's tokens one in 350 flipped, of 7,680 none with f32. Both are as fast.
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # activations stay as they are
}


def open_as_asked(model: str | Path, options: EngineOptions) -> PagedEngine:
    """See `specrej.engines.opening`.

    Raises:
        UsageError: OpenVINO GenAI is not installed, in another version, or takes no such argument.
        UnknownNameError: nothing has this name.
        ModelError: OpenVINO cannot open the model.
        SamplingError: it cannot draw tokens as it must.
    """
    options.refuse("openvino", "weights", "device")
    versions = _versions()
    for sampling in options.must_draw:
        check_drawing(sampling)
    asked = OpenVINOOptions.of(options.arguments)
    source = find_model(model)
    codec, config = source.codec(options.special_tokens), source.config()
    context_tokens = int(config.max_position_embeddings)
    step_tokens = context_tokens + asked.most_requests * MOST_PAGE_TOKENS
    pipeline = _open_pipeline(source.path, asked, step_tokens)
    filler_id = config.vocab_size - 1  # of the many tokens that no prompt begins with
    cache = measure(pipeline, filler_id, asked.scheduler.get("num_kv_blocks"))
    backend = OpenVinoBackend(
        pipeline,
        cache,
        filler_id=filler_id,
        most_requests=asked.most_requests,
        step_tokens=context_tokens,
        eos_ids=source.eos_ids(codec),
        is_on_cpu=asked.is_on_cpu,
        description=_describe(str(model), source, asked, cache),
        versions=versions,
    )
    return PagedEngine(
        backend,
        codec,
        bytes_per_token=cache.bytes_per_token,
        flops=flops_of_config(config, step_tokens),
        context_tokens=context_tokens,
    )


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        **require("openvino"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@dataclass(frozen=True, kw_only=True)
class OpenVINOOptions:
    """What a user says of the engine, by whom it is for.

    Attributes:
        device: OpenVINO's name of it.
        scheduler: fields of SchedulerConfig.
        properties: of the device.
    """

    device: str
    scheduler: Mapping[str, int]
    properties: Mapping[str, Any]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "OpenVINOOptions":
        """Sort the arguments of an engine, by the way they are written.

        Raises:
            UsageError: OpenVINO has no such argument, it is ours to set, or its value is of another
                type.
        """
        device = arguments.get("device", "CPU")
        if not isinstance(device, str):
            raise UsageError(f"device must be a string, got {device!r}", hint='for example "CPU"')
        scheduler, properties = {}, {}
        for name, value in arguments.items():
            if name in _OURS:
                raise UsageError(
                    f"the engine argument {name!r} is set by specrej: {_OURS[name]}",
                    hint="leave it out",
                )
            if name in _SCHEDULER:
                scheduler[name] = _positive(name, value)
            elif name.isupper() or name in _OTHERS:
                properties[name] = value
            else:
                raise _unknown(name, (*_SCHEDULER, *_OTHERS))
        properties.pop("device", None)
        return cls(device=device, scheduler=scheduler, properties=properties)

    @property
    def is_on_cpu(self) -> bool:
        return self.device.upper().startswith("CPU")

    @property
    def most_requests(self) -> int:
        return self.scheduler.get("max_num_seqs", _MOST_REQUESTS)

    @property
    def all_properties(self) -> dict[str, Any]:
        """With the defaults."""
        return {**(_ON_A_CPU if self.is_on_cpu else {}), **self.properties}


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        unit = ", in GiB" if name == "cache_size" else ""
        raise UsageError(f"{name} must be a whole number of at least 1{unit}, got {value!r}")
    return value


def _unknown(name: str, known: tuple[str, ...]) -> UsageError:
    hint = guess(name.lower(), known) or f"known: {', '.join(known)}"
    return UsageError(
        f"OpenVINO has no engine argument {name!r}",
        hint=f"{hint} Properties of the device are written in capitals.",
    )


class Source(NamedTuple):
    """Where a model is, for OpenVINO and for transformers."""

    path: Path
    """A GGUF file, or a directory that was exported."""
    directory: Path
    """With the tokenizer and the configuration."""
    gguf_file: str | None = None
    """Name of the file in the directory that has these, where nothing else has."""

    def codec(self, special_tokens: str) -> TextCodec:
        from transformers import AutoTokenizer

        if self.gguf_file is None:
            return load_codec(str(self.directory), special_tokens)
        return TextCodec(self._from_gguf(AutoTokenizer), special_tokens)

    def config(self) -> Any:
        from transformers import AutoConfig

        if self.gguf_file is None:
            return load_config(str(self.directory))
        return self._from_gguf(AutoConfig).get_text_config()

    def _from_gguf(self, auto: Any) -> Any:
        try:
            with quiet_transformers():
                return auto.from_pretrained(
                    str(self.directory), gguf_file=self.gguf_file, trust_remote_code=False
                )
        except Exception as error:  # a broken file fails in whatever library reads it
            raise ModelError(
                f"{str(self.path)!r} is not a model that transformers can open: "
                f"{first_line(error)}",
                hint="put config.json and the tokenizer's files beside it",
            ) from error

    def eos_ids(self, codec: TextCodec) -> frozenset[int]:
        """All tokens that end an answer: the generation configuration's, else the model's, else
        the tokenizer's.
        """
        from transformers import GenerationConfig

        try:
            eos = GenerationConfig.from_pretrained(str(self.directory)).eos_token_id
        except OSError:
            eos = getattr(self.config(), "eos_token_id", None)
        eos = codec.tokenizer.eos_token_id if eos is None else eos
        return frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])


def find_model(model: str | Path) -> Source:
    """The files of a default model, of a directory, or of a GGUF file; a Llama is written as GGUF
    first.

    Raises:
        UnknownNameError: nothing has this name.
        ModelError: OpenVINO cannot open what is there.
    """
    path = Path(locate_model(model))
    if path.is_dir():
        return _of_directory(path)
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if path.exists():
        raise ModelError(
            f"{str(path)!r} is neither a directory nor a GGUF file", hint=_HINT.format("MODEL")
        )
    if "/" not in str(model):
        raise unknown_model(str(model))
    raise ModelError(
        f"OpenVINO opens files and directories, got the id {str(model)!r}", hint=_HINT.format(model)
    )


_HINT = "export it once: optimum-cli export openvino --model {} DIRECTORY, and give that directory"


def _of_directory(directory: Path) -> Source:
    if (directory / "openvino_model.xml").exists():
        return Source(directory, directory)
    if (directory / "config.json").exists():
        return Source(as_gguf(directory), directory)
    files = sorted(directory.glob("*.gguf"))
    if len(files) == 1:
        return _of_gguf(files[0])
    if files:
        names = ", ".join(path.name for path in files)
        raise ModelError(
            f"{str(directory)!r} holds {len(files)} GGUF files: {names}", hint="give one of them"
        )
    raise ModelError(
        f"{str(directory)!r} holds no model: neither openvino_model.xml, nor config.json, nor a "
        "GGUF file",
        hint=_HINT.format("MODEL"),
    )


def _of_gguf(path: Path) -> Source:
    check_gguf(path)
    has_own = any(
        (path.parent / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    is_whole = has_own and (path.parent / "config.json").exists()
    return Source(path, path.parent, None if is_whole else path.name)


def _describe(name: str, source: Source, asked: OpenVINOOptions, cache: Cache) -> dict[str, str]:
    precision = asked.all_properties.get("KV_CACHE_PRECISION", "default precision")
    return {
        "model": name,
        "device": asked.device.lower(),
        "weights": "fp16" if source.path.suffix == ".gguf" else "as exported",
        "kv_cache": f"{cache.num_pages} pages of {cache.page_tokens} tokens, {precision}",
    }


def _open_pipeline(path: Path, asked: OpenVINOOptions, step_tokens: int) -> Any:
    """The pipeline of a model.

    Raises:
        UsageError: there is no such device, or it has no such property.
        ModelError: OpenVINO cannot open the model.
    """
    import openvino
    import openvino_genai

    core = openvino.Core()
    try:
        supported = core.get_property(asked.device, "SUPPORTED_PROPERTIES")
    except Exception as error:
        known = ", ".join(core.available_devices)
        raise UsageError(
            f"OpenVINO cannot compute on {asked.device!r}: {last_line(error)}",
            hint=f"known here: {known}",
        ) from error
    scheduler = _scheduler_config(asked, step_tokens)
    try:
        return openvino_genai.ContinuousBatchingPipeline(
            str(path), blank_tokenizer(), scheduler, asked.device, **asked.all_properties
        )
    except Exception as error:  # whatever OpenVINO says of a property or a file
        said = last_line(error)
        if "property" in said or "cache size" in said:
            named = [name for name in asked.properties if name in said and name not in supported]
            guesses = [guessed for name in named if (guessed := guess(name, supported))]
            hint = " ".join(guesses) or f"see OpenVINO's properties of {asked.device}"
            raise UsageError(f"OpenVINO takes no such argument: {said}", hint=hint) from error
        raise ModelError(
            f"OpenVINO cannot open {str(path)!r}: {said}", hint=_HINT.format("MODEL")
        ) from error


def _scheduler_config(asked: OpenVINOOptions, step_tokens: int) -> Any:
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    fields = {
        "enable_prefix_caching": True,
        "max_num_batched_tokens": step_tokens,
        "max_num_seqs": asked.most_requests,
    }
    if "num_kv_blocks" not in asked.scheduler:
        fields["cache_size"] = _CACHE_GIB
    for name, value in {**fields, **asked.scheduler}.items():
        setattr(config, name, value)
    return config


def blank_tokenizer() -> Any:
    """A tokenizer that knows no text. OpenVINO asks for one; it is never used, since tokens go
    in and come out.
    """
    import numpy as np
    import openvino
    import openvino_genai
    from openvino import opset13

    text = opset13.parameter([-1], openvino.Type.string)
    outputs = []
    for name in ("input_ids", "attention_mask"):
        constant = opset13.constant(np.zeros((1, 1), np.int64))
        constant.output(0).get_tensor().set_names({name})
        outputs.append(opset13.result(constant))
    with tempfile.TemporaryDirectory() as directory:
        openvino.save_model(
            openvino.Model(outputs, [text], "tokenizer"), f"{directory}/openvino_tokenizer.xml"
        )
        return openvino_genai.Tokenizer(directory)
