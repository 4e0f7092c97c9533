"""What is found out of a model is kept, gives the same when it is used, and is found out anew where
something is another.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from specrej.cli import app
from specrej.engines.torch import checking, remembered
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.llama import Llama
from specrej.engines.torch.loading import check_model, load_engine
from specrej.errors import ModelError
from specrej.hub.defaults import cache_dir, locate
from specrej.types import SamplingParams
from tiny import CHAT_TEMPLATE, decode, make_model, make_tokenizer, save_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    models = cache_dir() / "models"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(models.resolve())
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of models whose logits were compared."""
    seen: list[str] = []
    compare = checking._verify

    def verify(model: Any) -> Any:
        seen.append(type(model).__name__)
        return compare(model)

    monkeypatch.setattr(checking, "_verify", verify)
    return seen


def records(cache: Path) -> list[Path]:
    return sorted((cache / "openings").glob("*.json"))


def drawn(engine: TorchEngine, text: str = "How are you?") -> list[tuple[int, float | None]]:
    """Tokens with their log-probabilities."""
    prompt = engine.open(engine.encode(text), SamplingParams(max_new_tokens=9, seed=4), 2**24)
    engine.add(prompt, range(3))
    answers = decode(engine)
    tokens = [token for index in range(3) for token in answers[prompt, index]]
    return [(token.token_id, token.logprob) for token in tokens]


def facts(engine: TorchEngine) -> tuple[Any, ...]:
    described = engine.describe(), engine.context_tokens, engine.layout, engine.flops
    return (*described, engine._eos_ids, drawn(engine))


@pytest.mark.parametrize("weights", ["fp16", "fp32"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_opens_again_to_the_last_bit(
    weights: str, tied: bool, tmp_path: Path, checks: list[str]
) -> None:
    directory = save_model(tmp_path / "model", tie_word_embeddings=tied)
    first = load_engine(directory, weights=weights, device="cpu")
    again = load_engine(directory, weights=weights, device="cpu")
    assert checks == ["LlamaForCausalLM"]
    assert isinstance(again.model, Llama)
    assert facts(again) == facts(first)
    assert again.describe()["checked"].startswith("logits, with those of transformers 5.")


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "qwen3", "mixtral"])
def test_others_are_not_checked_again_either(name: str, tmp_path: Path, checks: list[str]) -> None:
    make_model(name).save_pretrained(tmp_path / "model")
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    first, again = (load_engine(tmp_path / "model", device="cpu") for _ in range(2))
    assert len(checks) == 1
    assert facts(again) == facts(first)


@pytest.mark.parametrize("parts", [False, True])
def test_a_checkpoint_in_half_precision_and_in_parts(
    parts: bool, tmp_path: Path, checks: list[str]
) -> None:
    model = make_model("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model", **({"max_shard_size": "20KB"} if parts else {}))
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    assert (len(list((tmp_path / "model").glob("*.safetensors"))) > 1) == parts
    first, again = (load_engine(tmp_path / "model", device="cpu") for _ in range(2))
    assert isinstance(again.model, Llama)
    assert len(checks) == 1
    assert facts(again) == facts(first)


def test_the_second_opening_imports_no_modelling_code(tmp_path: Path) -> None:
    directory = save_model(tmp_path / "model")
    load_engine(directory, device="cpu")
    code = (
        "import sys; from specrej.engines.torch.loading import load_engine;"
        f"load_engine({directory!r}, device='cpu');"
        "heavy = {'transformers.modeling_utils', 'torch._dynamo', 'torch.distributed.tensor'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"difference": 0',
        b"\xff\xfe",
        "whole with a gap",
        "another number",
    ],
)
def test_a_damaged_record_is_made_anew(
    content: str | bytes, tmp_path: Path, cache: Path, checks: list[str]
) -> None:
    directory = save_model(tmp_path / "model")
    first = load_engine(directory, device="cpu")
    (record,) = records(cache)
    whole = record.read_text()
    if content == "whole with a gap":
        kept = json.loads(whole)
        del kept["llama"]["head_dim"]
        content = json.dumps(kept)
    if content == "another number":
        content = whole.replace('"context_tokens": ', '"context_tokens": 1')
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    again = load_engine(directory, device="cpu")
    assert len(checks) == 2
    assert record.read_text() == whole
    assert facts(again) == facts(first)
    assert list(record.parent.iterdir()) == [record]


def test_a_model_that_is_replaced_is_another(tmp_path: Path, checks: list[str]) -> None:
    directory = save_model(tmp_path / "model")
    before = drawn(load_engine(directory, device="cpu"))
    make_model("llama", seed=1).save_pretrained(directory)
    replaced = load_engine(directory, device="cpu")
    assert len(checks) == 2
    assert drawn(replaced) != before
    again = load_engine(directory, device="cpu")
    assert len(checks) == 2
    assert facts(again) == facts(replaced)


def test_another_tokenizer_beside_the_same_weights(tmp_path: Path, checks: list[str]) -> None:
    directory = save_model(tmp_path / "model")
    load_engine(directory, device="cpu")
    other = CHAT_TEMPLATE.replace("<assistant>", "<assistant>Well, ")
    make_tokenizer(other).save_pretrained(directory)
    ids = load_engine(directory, device="cpu").encode("Hi")
    assert len(checks) == 2
    assert load_engine(directory, device="cpu").encode("Hi") == ids


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "9.9.0"),
        lambda patch: patch.setattr(remembered, "__version__", "9.9.0"),
        lambda patch: patch.setattr(importlib.metadata, "version", lambda _: "9.9"),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "Z80"),
    ],
    ids=["torch", "specrej", "transformers", "CPU"],
)
def test_another_version_is_checked(
    change: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    checks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = save_model(tmp_path / "model")
    load_engine(directory, device="cpu")
    with monkeypatch.context() as patch:
        change(patch)
        load_engine(directory, device="cpu")
        assert len(checks) == 2
    load_engine(directory, device="cpu")
    assert len(checks) == 2


def test_another_kernel_is_checked(tmp_path: Path, checks: list[str]) -> None:
    directory = save_model(tmp_path / "model")
    for weights in ("fp32", "fp16", "fp32", "fp16", None):
        load_engine(directory, weights=weights, device="cpu")
    assert len(checks) == 2


def test_a_key_stands_for_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for compiled in (None, SimpleNamespace(name="one"), SimpleNamespace(name="another")):
        monkeypatch.setattr(remembered, "fused", lambda *_, compiled=compiled: compiled)
        keys.add(remembered.key_of(str(tmp_path), "fp16", "cpu"))
    assert len(keys) == 3


def test_a_check_that_is_asked_for(
    tmp_path: Path, cache: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_model(tmp_path / "model")
    load_engine(directory, device="cpu")
    (record,) = records(cache)
    assert check_model(directory, device="cpu") == json.loads(record.read_text())["difference"]
    assert len(checks) == 2
    done = CliRunner().invoke(app, ["models", "check", directory, "--weights", "fp32"])
    assert done.exit_code == 0
    assert "the logits differ by" in done.stdout
    assert len(checks) == 3
    monkeypatch.setattr("specrej.cli.pull.fastest_engine", lambda _: "vllm")
    command = ["models", "check", directory, "--weights", "fp32"]
    assert "vllm is what --engine auto takes here" in CliRunner().invoke(app, command).stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["fastest_engine"] == "vllm"
    assert len(records(cache)) == 2
    assert CliRunner().invoke(app, ["models", "check", "--weights", "int3"]).exit_code == 2


def test_a_model_that_is_refused_is_not_remembered(
    tmp_path: Path, cache: Path, checks: list[str]
) -> None:
    make_model("gpt_oss").save_pretrained(tmp_path / "model")
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path / "model")
    for _ in range(2):
        with pytest.raises(ModelError):
            load_engine(tmp_path / "model", device="cpu")
    assert len(checks) == 2
    assert records(cache) == []


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, cache: Path, checks: list[str]) -> None:
    (cache / "openings").write_text("no directory")
    directory = save_model(tmp_path / "model")
    first, again = (load_engine(directory, device="cpu") for _ in range(2))
    assert len(checks) == 2
    assert facts(again) == facts(first)


def test_the_oldest_records_go(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MOST_KEPT", 2)
    for number in range(3):
        load_engine(save_model(tmp_path / str(number)), device="cpu")
        for record in records(cache):
            os.utime(record, (record.stat().st_mtime - 9, record.stat().st_mtime - 9))
    kept = records(cache)
    assert len(kept) == 2
    key = remembered.key_of(str(tmp_path / "0"), "fp16", "cpu")
    assert key is not None
    assert remembered.recall(key) is None


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    directory = save_model(tmp_path / "model")
    code = (
        "from specrej.engines.torch.loading import load_engine;"
        f"engine = load_engine({directory!r}, device='cpu'); print(engine.encode('Hi'))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    (record,) = records(cache)
    assert list(record.parent.iterdir()) == [record]
    assert remembered.recall(record.stem) is not None


@pytest.mark.slow
def test_the_default_model_opens_again_to_the_last_bit(checks: list[str]) -> None:
    directory = locate("smollm2")
    first, again = (load_engine(directory, device="cpu") for _ in range(2))
    assert len(checks) == 1
    assert isinstance(again.model, Llama)
    assert facts(again) == facts(first)
