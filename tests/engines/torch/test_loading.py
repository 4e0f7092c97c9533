"""What opens, and what is refused by name: directories of tiny models, broken in one way each."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers

from specrej.engines.torch.loading import load_engine, wrap
from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.hub import defaults
from specrej.types import SamplingParams
from tiny import (
    CHAT_TEMPLATE,
    EOS_ID,
    VOCABULARY,
    decode,
    full_logits,
    make_config,
    make_ids,
    make_model,
    make_tokenizer,
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody has is looked up on no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    def write(model: Any) -> Path:
        directory = tmp_path / "model"
        model.save_pretrained(directory)
        make_tokenizer(CHAT_TEMPLATE).save_pretrained(directory)
        capfd.readouterr()
        return directory

    return write


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def seq2seq() -> Any:
    make: Any = transformers.T5ForConditionalGeneration
    return make(
        transformers.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
        )
    )


def bart() -> Any:
    make: Any = transformers.BartForConditionalGeneration
    sizes: dict[str, Any] = {
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in BART_SIZES.items()
    }
    return make(
        transformers.BartConfig(
            vocab_size=VOCABULARY, d_model=32, max_position_embeddings=64, **sizes
        )
    )


BART_SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


def bert() -> Any:
    make: Any = transformers.BertForMaskedLM
    return make(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )


def classifier() -> Any:
    make: Any = transformers.LlamaForSequenceClassification
    return make(make_config("llama", num_labels=1, pad_token_id=EOS_ID))


def headless() -> Any:
    make: Any = transformers.LlamaModel
    return make(make_config("llama"))


@pytest.mark.parametrize("weights", ["fp32", "fp16", None])
def test_a_directory_opens_in_silence(
    weights: str | None, save: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model("llama")
    directory = save(model)
    engine = load_engine(directory, weights=weights, device="cpu")
    assert capfd.readouterr() == ("", "")
    described = engine.describe()
    assert described["engine"] == "torch"
    assert described["model"] == str(directory)
    assert described["device"] == "cpu"
    assert described["weights"].startswith(weights or "fp16")
    assert engine.context_tokens == 512
    assert set(engine.versions()) == {"python", "torch", "transformers"}
    prompt_ids = engine.encode("Hi")
    prompt = engine.open(prompt_ids, SamplingParams(max_new_tokens=1), 2**20)
    engine.add(prompt, [0])
    (token,) = engine.step()
    expected = full_logits(model, prompt_ids)[-1].log_softmax(-1)[token.token_id].item()
    assert token.logprob is not None
    assert abs(token.logprob - expected) < (1e-4 if weights == "fp32" else 1e-1)


def test_a_relative_directory_opens(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save(make_model("gpt2"))
    monkeypatch.chdir(directory.parent)
    assert load_engine("model", device="cpu").describe()["model"] == "model"


def test_a_cpu_never_computes_in_bfloat16(save: Callable[..., Path]) -> None:
    directory = save(make_model("llama", dtype=torch.bfloat16))
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    engine = load_engine(directory, weights="fp32", device="cpu")
    assert engine.model.dtype == torch.float32
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.float32}


def test_weights_are_for_float32_on_a_cpu() -> None:
    engine = wrap(make_model("llama", dtype=torch.float64), make_tokenizer())
    assert engine.describe()["weights"] == "float64"
    assert engine.describe()["fused"] == "by torch", "what is compiled is for float32"
    with pytest.raises(UsageError, match="'fp32' is for float32 models on a CPU, got"):
        wrap(make_model("llama", dtype=torch.float64), make_tokenizer(), weights="fp32")


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown weights 'int3'") as caught:
        wrap(make_model("llama"), make_tokenizer(), weights="int3")
    assert caught.value.hint == "known: fp16, fp32"


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_an_unknown_device_is_refused(device: str, save: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=f"cannot compute on the device '{device}'"):
        load_engine(save(make_model("llama")), device=device)


@pytest.mark.parametrize(("name", "guess"), [("smolm2", "did you mean 'smollm2'? "), ("xyzzy", "")])
def test_an_unknown_name_is_refused_with_a_guess(name: str, guess: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'") as caught:
        load_engine(name)
    assert caught.value.hint == f"{guess}known: smollm2; or a Hugging Face id, or a local directory"


def test_a_reward_is_no_generator() -> None:
    (name, *_) = [key for key, entry in defaults.DEFAULT_MODELS.items() if entry.kind == "reward"]
    with pytest.raises(UsageError, match=f"'{name}' is a reward, not a generator"):
        load_engine(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "./nothing/here", "/nowhere/at/all"])
def test_an_id_or_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=f"cannot open the model '{name}'"):
        load_engine(name)


def test_a_directory_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelError, match=r"holds no model: neither config\.json nor a GGUF file"):
        load_engine(tmp_path)


def test_two_gguf_files_in_a_directory(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files: a\.gguf, b\.gguf") as caught:
        load_engine(tmp_path)
    assert caught.value.hint == "name one of them, or keep one of them there"


def test_a_broken_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF then nothing")
    with pytest.raises(ModelError, match="is not a causal language model"):
        load_engine(tmp_path)


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def remove_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut weights": (cut_weights, "is not a causal language model"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a layer too few": (
        lambda d: edit_json(d / "config.json", num_hidden_layers=3),
        "weights are missing, model.lay",
    ),
    "another width": (
        lambda d: edit_json(d / "config.json", hidden_size=64),
        "is not a causal language model",
    ),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "not a valid JSON file"),
    "broken tokenizer": (
        lambda d: (d / "tokenizer.json").write_text("{}"),
        "is not a causal language model",
    ),
    "no tokenizer": (remove_tokenizer, "tokenizer"),
    "unknown type": (lambda d: edit_json(d / "config.json", model_type="nosuch"), "`nosuch`"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_directory_is_refused(
    breakage: str, save: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    break_it, message = BREAKAGES[breakage]
    directory = save(make_model("llama"))
    break_it(directory)
    with pytest.raises(ModelError, match=message):
        load_engine(directory)
    assert capfd.readouterr() == ("", "")


def test_code_of_a_checkpoint_is_never_run(
    save: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = save(make_model("llama"))
    edit_json(
        directory / "config.json",
        model_type="nosuch",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    (directory / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="custom code"):
        load_engine(directory)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (seq2seq, "not a causal language model .*T5Config"),
        (bart, "weights are missing, lm_head.weight"),
        (bert, "BertLMHeadModel is not causal"),
        (classifier, "weights are missing, lm_head.weight"),
        (headless, "weights are missing, lm_head.weight"),
        (lambda: make_model("gpt_oss"), "GptOssAttention needs .*s_aux"),
        (lambda: make_model("bloom"), "BloomForCausalLM is not supported"),
        (lambda: make_model("mamba"), "MambaForCausalLM is of kind 'linear_attention'"),
    ],
)
def test_another_kind_of_model_is_refused(
    make: Callable[[], Any],
    message: str,
    save: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = save(make())
    with pytest.raises(ModelError, match=message):
        load_engine(directory)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("eos", "expected"),
    [([70, 80, 90], {70, 80, 90}), (75, {75}), (None, {EOS_ID})],
)
def test_eos_ids_of_the_generation_config_are_honoured(
    eos: list[int] | int | None, expected: set[int], save: Callable[..., Path]
) -> None:
    directory = save(make_model("llama", eos_token_id=None))
    edit_json(directory / "generation_config.json", eos_token_id=eos)
    engine = load_engine(directory, weights="fp32")
    prompt = engine.open(
        make_ids(10), SamplingParams(max_new_tokens=120, top_k=0, temperature=3.0), 2**24
    )
    engine.add(prompt, range(12))
    answers = decode(engine)
    tokens = [token for answer in answers.values() for token in answer]
    assert {token.token_id for token in tokens if token.finish_reason == "eos"} == expected
    assert not [
        token for token in tokens if token.token_id in expected and token.finish_reason != "eos"
    ]


def test_a_model_without_eos_ends_at_the_limit() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    model = make_model("llama", eos_token_id=None)
    model.generation_config = None
    engine = wrap(model, tokenizer, weights="fp32")
    prompt = engine.open(make_ids(5), SamplingParams(max_new_tokens=5), 2**20)
    engine.add(prompt, [0])
    answers = decode(engine)
    assert [token.finish_reason for token in answers[prompt, 0]] == [None] * 4 + ["length"]
