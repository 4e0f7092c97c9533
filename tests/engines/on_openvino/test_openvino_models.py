"""What the engine opens: a Llama that becomes a GGUF file, files of others, exported models; and
what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specrej.engines.openvino import find_model
from specrej.errors import ModelError, UsageError
from specrej.hub.gguf import as_gguf, check_gguf, write_gguf
from specrej.types import SamplingParams
from tiny import make_ids, make_model, save_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("openvino_genai")

from opened import logprobs, opened, rounded, run  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(save_model(tmp_path / "llama"))


@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": True}, {"head_dim": 16, "num_key_value_heads": 1}]
)
def test_a_file_holds_the_weights_rounded_to_float16(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    """As transformers reads the file, which knows the order of GGUF's rows by itself."""
    from transformers import AutoModelForCausalLM

    directory = Path(save_model(tmp_path / "llama", **config))
    write_gguf(directory, tmp_path / "model.gguf")
    auto: Any = AutoModelForCausalLM
    found = auto.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    expected = rounded(make_model("llama", **config)).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_a_model_is_written_once_and_anew_when_it_has_changed(llama: Path, cache: Path) -> None:
    lines: list[str] = []
    first = as_gguf(llama, lines.append)
    assert as_gguf(llama, lines.append) == first
    assert len(lines) == 1
    make_model("llama", seed=1).save_pretrained(llama)
    second = as_gguf(llama, lines.append)
    assert second != first
    assert list(cache.glob("*.gguf")) == [second]
    assert not list(cache.glob("*.partial"))


def test_a_file_is_there_whole_or_not_at_all(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: Any, tensor: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ModelError, match="No space left on device") as caught:
        as_gguf(llama, print)
    assert "SPECREJ_CACHE" in (caught.value.hint or "")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    monkeypatch.undo()
    monkeypatch.setenv("SPECREJ_CACHE", str(cache.parent))
    assert as_gguf(llama, print).exists()


def test_weights_beyond_float16_are_refused(tmp_path: Path, llama: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(llama)
    with pytest.raises(ModelError, match=r"up_proj.weight' has weights that float16 cannot hold"):
        write_gguf(llama, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("model.*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions are scaled .linear",
        ),
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"attention_bias": True}, "attention has biases"),
        ({"mlp_bias": True}, "MLP has biases"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantized"),
        ({"num_hidden_layers": 3}, "not a whole Llama: it has no 'model.layers.2"),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    llama: Path, change: dict[str, Any], message: str
) -> None:
    config = llama / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        find_model(llama)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path / "qwen2")
    with pytest.raises(ModelError, match="its architecture is qwen2, not Llama") as caught:
        find_model(tmp_path / "qwen2")
    assert "optimum-cli export openvino" in (caught.value.hint or "")


def test_broken_weights_are_told(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a file of safetensors"):
        find_model(llama)
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no safetensors"):
        find_model(llama)


def quantized(writer: Any) -> None:
    rows = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def scaled(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))


def with_frequencies(writer: Any) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(32, np.float32))


def with_window(writer: Any) -> None:
    writer.add_sliding_window(16)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (quantized, "its weights are Q8_0, not F16"),
        (scaled, "its positions are scaled"),
        (with_frequencies, "its positions are scaled"),
        (with_window, "its attention has a window"),
    ],
)
def test_files_that_openvino_would_read_otherwise_are_refused(
    tmp_path: Path, fill: Callable[[Any], None], message: str
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=message):
        find_model(tmp_path)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" * 100)
    for path, message in [
        ("note.txt", "neither a directory nor a GGUF file"),
        ("empty", "holds no model"),
        ("broken.gguf", "not a GGUF file that can be read"),
    ]:
        with pytest.raises(ModelError, match=message):
            find_model(tmp_path / path)
    shutil.copy(tmp_path / "broken.gguf", tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files: broken.gguf, other.gguf"):
        find_model(tmp_path)


def test_an_exported_directory_opens(tmp_path: Path, llama: Path) -> None:
    """OpenVINO itself can save what it has read from GGUF, in the form that optimum-cli writes."""
    import openvino_genai

    from specrej.engines.openvino import blank_tokenizer

    write_gguf(llama, llama / "model.gguf")
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 4
    openvino_genai.ContinuousBatchingPipeline(
        str(llama / "model.gguf"), blank_tokenizer(), scheduler, "CPU", enable_save_ov_model=True
    )
    (llama / "model.gguf").unlink()
    (llama / "model.safetensors").unlink()
    assert (llama / "openvino_model.xml").exists()
    engine = opened(llama, num_kv_blocks=20)
    assert engine.describe()["weights"] == "as exported"
    assert engine.context_tokens == 512
    prompt = make_ids(20)
    answers = run(engine, prompt, SamplingParams(max_new_tokens=8, ignore_eos=True), range(2))
    for token_ids, found in answers.values():
        assert found == pytest.approx(
            logprobs(rounded(make_model("llama")), prompt, token_ids), abs=0.05
        )


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            {"INFERENCE_NUM_THREAD": 1},
            "Unsupported property INFERENCE_NUM_THREAD",
            "did you mean INFERENCE_NUM_THREADS",
        ),
        ({"KV_CACHE_PRECISION": "f15"}, "Wrong value f15", "properties of CPU"),
        ({"cache_size": 10**6}, "larger than available memory", None),
        ({"device": "TPU"}, "cannot compute on 'TPU'", "known here: CPU"),
    ],
)
def test_what_openvino_refuses_is_told(
    llama: Path, arguments: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        opened(llama, **arguments)
    assert hint is None or hint in (caught.value.hint or "")


def test_check_gguf_takes_what_write_gguf_writes(tmp_path: Path, llama: Path) -> None:
    write_gguf(llama, tmp_path / "model.gguf")
    check_gguf(tmp_path / "model.gguf")
