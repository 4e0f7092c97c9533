"""A GGUF file is converted once, to what transformers makes of it; another one by itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.normalizers import Lowercase

from specrej.engines.torch.loading import load_engine
from specrej.errors import ModelError
from specrej.hub import converted as converting
from specrej.hub.converted import converted
from specrej.hub.gguf import write_gguf
from tiny import SPECIALS, make_model, make_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were converted."""
    seen: list[str] = []
    convert = converting._convert

    def count(file: Path, *rest: Any) -> None:
        seen.append(file.name)
        convert(file, *rest)

    monkeypatch.setattr(converting, "_convert", count)
    return seen


def make_gguf(directory: Path, name: str = "tiny.gguf", *, seed: int = 0) -> Path:
    """A tiny Llama with a tokenizer of bytes, as one file."""
    source = directory / "source"
    make_model("llama", seed=seed).save_pretrained(source)
    bare, file = directory / "bare" / name, directory / "gguf" / name
    bare.parent.mkdir(exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    write_gguf(source, bare)
    reader: Any = gguf.GGUFReader(bare)
    writer: Any = gguf.GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    own = make_tokenizer().get_vocab()
    tokens = sorted(own, key=own.__getitem__)
    tokens[SPECIALS.index("<system>")] = "ab"  # a merge needs its token
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_file_is_converted_once(
    tmp_path: Path,
    cache: Path,
    conversions: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(converting, "_BETWEEN_REPORTS_S", 0.0)
    file = make_gguf(tmp_path)
    capfd.readouterr()
    auto: Any = transformers.AutoModelForCausalLM
    engines = [load_engine(one, weights="fp32", device="cpu") for one in (file, file.parent, file)]
    said = capfd.readouterr()
    assert conversions == ["tiny.gguf"]
    first, *between, last = said.err.splitlines()
    assert first == f"converting {file.resolve()} for transformers, once"
    assert last.startswith("it is in ")
    assert between
    assert all(line.startswith("converted ") and "of 21 tensors" in line for line in between)
    assert said.out == ""
    theirs = auto.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    [directory] = (cache / "converted").glob("*/")
    ours = auto.from_pretrained(directory)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for engine in engines:
        assert engine.encode("How are you?") == tokenizer("How are you?")["input_ids"]
        assert engine.describe()["model"] in (str(file), str(file.parent))


def test_another_file_of_the_same_name(tmp_path: Path, cache: Path, conversions: list[str]) -> None:
    for seed in (0, 1, 1):
        file = make_gguf(tmp_path, seed=seed)
        converted(file, "AutoModelForCausalLM")
    os.utime(file, (0, 0))
    converted(file, "AutoModelForCausalLM")
    assert len(conversions) == 4
    assert len(list((cache / "converted").glob("*/"))) == 1
    make_gguf(tmp_path, "other.gguf")
    converted(file.with_name("other.gguf"), "AutoModelForCausalLM")
    assert len(list((cache / "converted").glob("*/"))) == 2


def test_what_is_half_there_is_made_anew(
    tmp_path: Path, cache: Path, conversions: list[str]
) -> None:
    file = make_gguf(tmp_path)
    directory = converted(file, "AutoModelForCausalLM")
    (directory / "whole").unlink()
    (directory / "model.safetensors").write_bytes(b"half")
    partial = directory.with_name(f"{directory.name}.partial")
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert converted(file, "AutoModelForCausalLM") == directory
    assert len(conversions) == 2
    assert list((cache / "converted").glob("*/")) == [directory]
    load_engine(file, device="cpu")


def test_a_file_that_cannot_be_opened_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF then nothing")
    with pytest.raises(ModelError, match=r"a\.gguf"):
        load_engine(file, device="cpu")
    assert list((cache / "converted").glob("*/")) == []


def test_no_room(tmp_path: Path, cache: Path) -> None:
    file = make_gguf(tmp_path)
    cache.mkdir()
    (cache / "converted").write_text("no directory")
    with pytest.raises(ModelError, match="cannot write") as caught:
        load_engine(file, device="cpu")
    assert caught.value.hint is not None
    assert "SPECREJ_CACHE" in caught.value.hint


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    file = make_gguf(tmp_path)
    code = (
        "from pathlib import Path; from specrej.hub.converted import converted;"
        f"print(converted(Path({str(file)!r}), 'AutoModelForCausalLM'))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0] != ""
    assert sum("for transformers, once" in err for _, err in said) == 1
    assert len(list((cache / "converted").glob("*/"))) == 1


def test_a_tokenizer_that_is_saved_reads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    make_model("llama").save_pretrained(tmp_path / "model")
    file = tmp_path / "a.gguf"
    kinds: list[str] = []
    auto: Any = transformers.AutoTokenizer
    opening = auto.from_pretrained

    def spoilt(directory: Path) -> Any:
        kept = (directory / "tokenizer_config.json").read_text()
        kinds.append("backend" if "TokenizersBackend" in kept else "other")
        opened = opening(directory)
        if len(kinds) < num_spoilt:
            opened.backend_tokenizer.normalizer = Lowercase()
        return opened

    monkeypatch.setattr(auto, "from_pretrained", spoilt)
    for num_spoilt in (1, 2):
        kinds.clear()
        converting._save_tokenizer(tokenizer, file, tmp_path / "model")
        assert len(kinds) == num_spoilt
        assert kinds[-1] == "backend"
    num_spoilt = 9
    with pytest.raises(ModelError, match="does not read texts as before"):
        converting._save_tokenizer(tokenizer, file, tmp_path / "model")
