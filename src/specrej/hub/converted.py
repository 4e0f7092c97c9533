"""A user's GGUF file as the directory that transformers opens quickly: float32 safetensors and a
tokenizer, written to the cache once.

    directory = converted(Path("/models/mine/model.Q4_K_M.gguf"), "AutoModelForCausalLM")

Transformers computes a file's weights anew at each opening, which takes minutes on a slow machine.
A directory appears whole or not at all, and processes that want the same one wait for each other.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from specrej.errors import ModelError
from specrej.hub.defaults import Report, cache_dir, report_to_stderr
from specrej.hub.fingerprints import fingerprint
from specrej.hub.quiet import as_plain, quiet_transformers

_FORMAT = 1
"""Counts up when what is written changes, so that directories of before are written anew."""
_WHOLE = "whole"
"""A file that is written last."""
_TEXT = " Why?  1234 apples, it's\n\n\t\"naïve\" — 日本語 🙂 don't  x=y_Z;\r\n "
_BETWEEN_REPORTS_S = 5.0


def converted(file: Path, auto: str, report: Report = report_to_stderr) -> Path:
    """The directory of a GGUF file in the cache. One that was written from another file of this
    name goes.

    Args:
        file: its size and time tell whether it is another one.
        auto: the class of transformers that opens it, for example "AutoModel".
        report: is told when it begins, how far it is, and when it is done.

    Raises:
        ModelError: no room for it.
        Exception: whatever transformers raises at a file that it cannot open.
    """
    file = file.resolve()
    place = hashlib.sha256(f"{file} {auto}".encode()).hexdigest()[:8]
    stem = f"{file.stem}-{place}"
    key = fingerprint([file], _FORMAT, metadata.version("transformers"))
    target = cache_dir() / "converted" / f"{stem}-{key}"
    if (target / _WHOLE).exists():
        return target
    with _saying_where(file, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # The system frees the lock of a process that is killed: what it left is dead.
        with FileLock(target.with_name(f"{stem}.lock")):
            if not (target / _WHOLE).exists():
                for outdated in target.parent.glob(f"{stem}-*"):
                    shutil.rmtree(outdated)
                _convert(file, auto, target, report)
    return target


@contextlib.contextmanager
def _saying_where(file: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(target.parent)):
            raise  # what transformers says of the file
        raise ModelError(
            f"cannot write {file} as {target}: {error}",
            hint="set SPECREJ_CACHE to a directory that can be written to and has room for the "
            "model",
        ) from error


def _convert(file: Path, auto: str, target: Path, report: Report) -> None:
    import transformers

    partial = target.with_name(f"{target.name}.partial")
    report(f"converting {file} for transformers, once")
    began_s = time.monotonic()
    try:
        with quiet_transformers(), _counting(report):
            how = {"gguf_file": file.name, "local_files_only": True}
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **how)
            model, said = getattr(transformers, auto).from_pretrained(
                file.parent, dtype="float32", output_loading_info=True, **how
            )
            # Weights that the file lacks are random ones, which must not pass for its own.
            own = {
                name: tensor
                for name, tensor in model.state_dict().items()
                if name not in said["missing_keys"]
            }
            as_plain(model).save_pretrained(partial, state_dict=own)
            _save_tokenizer(tokenizer, file, partial)
        (partial / _WHOLE).touch()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(f"it is in {target} ({time.monotonic() - began_s:.0f} s)")


def _save_tokenizer(tokenizer: Any, file: Path, directory: Path) -> None:
    """Save it beside its model so that it reads texts as before: some classes of transformers put
    their own rules in the place of those that are saved.

    Raises:
        ModelError: it does not.
    """
    import transformers

    tokenizer.save_pretrained(directory)
    about = directory / "tokenizer_config.json"
    kept = json.loads(about.read_text(encoding="utf-8"))
    for kind in (kept["tokenizer_class"], "TokenizersBackend"):
        about.write_text(json.dumps({**kept, "tokenizer_class": kind}, indent=2), encoding="utf-8")
        if _reads_alike(tokenizer, transformers.AutoTokenizer.from_pretrained(directory)):
            return
    raise ModelError(
        f"the tokenizer of {file} does not read texts as before once it is saved",
        hint="give the model's directory with safetensors and its own tokenizer",
    )


def _reads_alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers have the same vocabulary, and read a text of many kinds alike."""
    text = f"{_TEXT}{''.join(one.all_special_tokens)} a"
    return bool(
        one.get_vocab() == other.get_vocab()
        and one(text)["input_ids"] == other(text)["input_ids"]
        and one.chat_template == other.chat_template
        and one.eos_token_id == other.eos_token_id
    )


@contextlib.contextmanager
def _counting(report: Report) -> Iterator[None]:
    """Say now and then how far transformers is, in the place of its own bar, which nothing turns
    off.
    """
    reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    its_own = reading.tqdm
    reading.tqdm = _counted(report)
    try:
        yield
    finally:
        reading.tqdm = its_own


def _counted(report: Report) -> Callable[..., Iterator[Any]]:
    def count(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        every = list(tensors)
        next_s = time.monotonic() + _BETWEEN_REPORTS_S
        for number, tensor in enumerate(every):
            if time.monotonic() >= next_s:
                next_s += _BETWEEN_REPORTS_S
                report(f"converted {number} of {len(every)} tensors")
            yield tensor

    return count
