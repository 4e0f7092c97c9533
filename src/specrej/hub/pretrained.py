"""Opens a model of transformers with its tokenizer: the one way for generators and reward models.

network, tokenizer = open_pretrained("org/model", AutoModel, "an encoder")
network.device, network.dtype                      # the first GPU in bfloat16, or a CPU in float32
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from specrej.errors import ModelError, SpecrejError, UsageError
from specrej.hub.converted import converted
from specrej.hub.quiet import quiet_transformers
from specrej.hub.sources import first_line, locate_model, unknown_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LoadedModel = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]
"""A model and its tokenizer, as transformers opens them."""
_HINT = "give a directory or a Hugging Face id of {} with its tokenizer"


def open_pretrained(
    model: str | Path,
    auto: Any,
    kind: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    unused: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A model in evaluation mode on its device, and its tokenizer.

    Args:
        model: a default generator's name, a Hugging Face id, a GGUF file, or a directory:
            safetensors or one GGUF file.
        auto: the class of transformers that opens it, for example AutoModel.
        kind: what is expected, for the message: "an encoder".
        device: a torch device; by default CUDA where there is some, else the CPU.
        dtype: by default float32 on a CPU, that of the checkpoint elsewhere.
        unused: a part of the network that the caller does not read, so that the checkpoint may lack
            its weights.
        trust_remote_code: run the code that comes with the model. Nobody is asked on the terminal
            whether it may.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: there is no such device.
        ModelError: it cannot be read, or its checkpoint lacks weights, which would be random ones
            then.
    """
    from transformers import AutoTokenizer

    place = open_device(device)
    source = local_source(model, auto.__name__, kind)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    # Half-precision arithmetic is emulated on most CPUs, a hundred times slower.
    wanted = dtype or (torch.float32 if place.type == "cpu" else "auto")
    with saying_which(model, source, kind), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        opened: Any = auto.from_pretrained(
            source, dtype=wanted, output_loading_info=True, **arguments
        )
    network, report = opened
    if missing := sorted(
        name for name in report["missing_keys"] if unused is None or unused not in name
    ):
        raise ModelError(
            f"the checkpoint of {str(model)!r} is not that of {kind}: weights are missing, "
            f"{', '.join(missing[:5])}",
            hint=f"give a checkpoint trained as {kind}",
        )
    return cast("Any", network).to(place).eval(), tokenizer


def local_source(model: str | Path, auto: str, kind: str) -> str:
    """A directory or an id that transformers opens quickly: see `locate_model`. A GGUF file is
    converted first, once.

    Args:
        model: see `open_pretrained`.
        auto: the name of the class of transformers that opens it.
        kind: what is expected, for the message.

    Raises:
        UnknownNameError: nothing has this name.
        ModelError: nothing is there, or a GGUF file that cannot be opened.
    """
    source = locate_model(model)
    file = _gguf_file(Path(source), kind)
    if file is None:
        return source
    with saying_which(model, source, kind):
        return str(converted(file, auto))


@contextmanager
def saying_which(model: str | Path, source: str, kind: str) -> Iterator[None]:
    """Turn what transformers raises into an error that says which model cannot be opened."""
    hint = _HINT.format(kind)
    try:
        yield
    except SpecrejError:
        raise
    except OSError as error:
        is_there = Path(source).exists()
        if not is_there and "/" not in source:
            raise unknown_model(source) from error
        is_readable = is_there or source.count("/") == 1
        reason = first_line(error) if is_readable else "there is no such directory"
        raise ModelError(f"cannot open the model {str(model)!r}: {reason}", hint=hint) from error
    except Exception as error:  # a broken file fails in whatever library reads it
        raise ModelError(
            f"{str(model)!r} is not {kind} that transformers can open: {first_line(error)}",
            hint=hint,
        ) from error


def open_device(name: str | None) -> torch.device:
    """A torch device that computes; by default CUDA where there is some, else the CPU.

    Raises:
        UsageError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot compute on the device {name!r}: {first_line(error)}") from error
    return device


def _gguf_file(path: Path, kind: str) -> Path | None:
    """A GGUF file, or the one of a directory that holds no model in transformers' own format."""
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ModelError(
            f"{path} holds no model: neither config.json nor a GGUF file",
            hint=_HINT.format(kind),
        )
    if len(files) > 1:
        raise ModelError(
            f"{path} holds {len(files)} GGUF files: {', '.join(file.name for file in files)}",
            hint="name one of them, or keep one of them there",
        )
    return files[0]
