"""What a user calls a model: a default model's name, a Hugging Face id, or a directory. The same
for every engine.

source = locate_model("smollm2")                  # a path or an id that transformers opens
codec = load_codec(source)                        # its tokenizer
config = load_config(source)                      # what it is, without its weights
"""

import difflib
from pathlib import Path
from typing import Any

from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.hub import defaults
from specrej.hub.quiet import quiet_transformers
from specrej.hub.tokenizers import TextCodec


def locate_model(model: str | Path) -> str:
    """A directory or an id; a default model is pulled first where the cache does not hold it.

    Raises:
        UnknownNameError: nothing has this name.
        UsageError: it is a reward.
        ModelError: it is a path, and nothing is there.
    """
    name = str(model)
    if Path(name).exists():
        return name
    if name in defaults.DEFAULT_MODELS:
        if defaults.DEFAULT_MODELS[name].kind != "generator":
            raise UsageError(f"{name!r} is a reward, not a generator", hint="give it as the reward")
        return str(defaults.locate(name))
    if isinstance(model, Path) or name.startswith(("/", "./", "../", "~")):
        raise ModelError(
            f"cannot open the model {name!r}: there is no such directory",
            hint=f"it was looked for from {Path.cwd()}; a Hugging Face id is like org/model",
        )
    if difflib.get_close_matches(name, _generators()):
        raise unknown_model(
            name
        )  # a slip of the finger: the hub, which may be far away, need not be asked
    return name


def unknown_model(name: str) -> UnknownNameError:
    """That nothing has this name."""
    known = _generators()
    hint = f"known: {', '.join(known)}; or a Hugging Face id, or a local directory"
    return UnknownNameError("model", name, known, hint=hint)


def _generators() -> list[str]:
    return [key for key, entry in defaults.DEFAULT_MODELS.items() if entry.kind == "generator"]


def load_codec(source: str, special_tokens: str = "text") -> TextCodec:
    """The tokenizer of a directory or an id; `special_tokens` as for `specrej.open_engine`.

    Raises:
        ModelError: it has none that transformers can open.
        UnknownNameError: nothing has this name.
    """
    from transformers import AutoTokenizer

    return TextCodec(_load(AutoTokenizer, source, "tokenizer"), special_tokens)


def load_config(source: str) -> Any:
    """The text model's configuration, as transformers knows it.

    Raises:
        ModelError: there is none that transformers can open.
        UnknownNameError: nothing has this name.
    """
    from transformers import AutoConfig

    return _load(AutoConfig, source, "configuration").get_text_config()


def _load(auto: Any, source: str, what: str) -> Any:
    try:
        with quiet_transformers():
            return auto.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        if "/" not in source and not Path(source).exists():
            raise unknown_model(source) from error
        raise ModelError(f"cannot open the {what} of {source!r}: {first_line(error)}") from error
    except Exception as error:  # a broken file fails in whatever library reads it
        raise ModelError(
            f"{source!r} has no {what} that transformers can open: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Of what another library says at length."""
    return next(iter(str(error).splitlines()), type(error).__name__)
