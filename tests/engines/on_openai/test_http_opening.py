"""Opening a server: what it serves, how it is asked, what it holds, and what is told where that
fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import specrej
from completions_server import BLOCKS, PAGE, CompletionsServer, playing
from fakes import FakeReward
from servers import record_waits
from specrej.cli import app
from specrej.engines.openai import OpenAIEngine
from specrej.errors import EngineError, ModelError, UsageError
from tiny import CHAT_TEMPLATE, make_tokenizer, save_model

KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model")
    return save_model(directory)


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with playing() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return record_waits(monkeypatch)


def open_engine(model: str, address: CompletionsServer | str, **arguments: Any) -> OpenAIEngine:
    url = address if isinstance(address, str) else address.base
    opened = specrej.open_engine(model, engine=f"openai:{url}", engine_args=arguments)
    assert isinstance(opened, OpenAIEngine)
    return opened


def test_an_engine_says_what_it_is(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server)
    assert engine.describe() == {
        "engine": "openai",
        "model": model,
        "served_model": "tiny",
        "url": server.base,
        "special_tokens": "text",
        "continued_by": "token ids",
        "chunk_tokens": "32",
        "logprobs": "reported",
        "cached_tokens": "reported",
        "kv_bytes": "16 bits a number, assumed",
    }
    assert engine.versions()["server"] == "0.0.1"
    assert engine.context_tokens == 400
    # Keys and values of 2 layers with 2 heads of 8 numbers, of 2 bytes each.
    assert engine.layout.bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert engine.flops is not None


def test_a_url_without_a_path_is_completed(model: str, server: CompletionsServer) -> None:
    assert open_engine(model, server.url).describe()["url"] == server.base
    assert open_engine(model, f"{server.base}/").describe()["url"] == server.base


def test_one_of_several_models_is_named(model: str, server: CompletionsServer) -> None:
    server.models = [{"id": "first"}, {"id": "second", "max_model_len": 77}]
    with pytest.raises(UsageError, match="serves 2 models: first, second") as caught:
        open_engine(model, server)
    assert "#MODEL" in str(caught.value.hint)
    engine = open_engine(model, f"{server.base}#second")
    assert engine.context_tokens == 77
    assert {request["model"] for request in server.requests} == {"second"}


def test_a_server_need_not_list_its_models(model: str, server: CompletionsServer) -> None:
    server.models = None
    with pytest.raises(UsageError, match="does not list its models"):
        open_engine(model, server)
    assert (
        open_engine(model, f"{server.base}#mine").context_tokens == 512
    )  # the model's configuration says so


def test_budgets_are_what_is_free_on_the_server(model: str, server: CompletionsServer) -> None:
    engine = open_engine(model, server)
    whole = BLOCKS * PAGE * engine.layout.bytes_per_token
    assert (engine.capacity_bytes, engine.default_total(10), engine.default_budget(5, 10)) == (
        whole,
        whole,
        whole,
    )
    server.usage = 0.75
    assert engine.default_total(10) == engine.default_budget(5, 10) == whole // 4
    assert engine.default_budget(5, 10, 8000) == 1000
    assert (
        open_engine(model, server, kv_tokens=100).default_total(10)
        == 100 * engine.layout.bytes_per_token
    )
    assert open_engine(model, server, kv_tokens=10**9).default_total(10) == whole


def test_a_server_that_does_not_say_what_it_holds_needs_a_budget(
    model: str, server: CompletionsServer
) -> None:
    server.has_metrics = False
    engine = open_engine(model, server)
    assert engine.capacity_bytes is None
    with pytest.raises(UsageError, match="no default budget") as caught:
        specrej.generate("Why?", model=engine, reward=FakeReward(), n=2, max_new_tokens=4)
    assert "--memory" in str(caught.value.hint)
    assert "kv_tokens" in str(caught.value.hint)
    result = specrej.generate(
        "Why?", model=engine, reward=FakeReward(), n=2, max_new_tokens=4, memory="1MiB"
    )
    assert len(result.candidates) == 2
    assert (
        open_engine(model, server, kv_tokens=50).default_total(4)
        == 50 * engine.layout.bytes_per_token
    )


def test_a_tokenizer_is_enough(server: CompletionsServer, tmp_path: Path) -> None:
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path)
    engine = open_engine(str(tmp_path), server)
    assert engine.describe()["kv_bytes"] == "counted in tokens"
    assert (engine.layout.bytes_per_token, engine.flops) == (1, None)
    assert engine.default_total(8) == BLOCKS * PAGE


@pytest.mark.parametrize(
    ("refuses", "takes"),
    [
        ({"top_k"}, {"return_token_ids", "prompt_ids", "logprobs", "seed"}),
        ({"logprobs"}, {"extensions", "return_token_ids", "prompt_ids", "seed"}),
        ({"seed", "min_p", "return_token_ids"}, {"prompt_ids", "logprobs"}),
    ],
)
def test_what_a_server_refuses_is_left_out(
    model: str, server: CompletionsServer, refuses: set[str], takes: set[str]
) -> None:
    server.refuses = refuses
    engine = open_engine(model, server)
    assert engine._server.takes == takes
    assert not refuses & server.requests[-1].keys()


def test_refusals_that_name_nothing_are_found_out(model: str, server: CompletionsServer) -> None:
    server.intercept = lambda request: (422, {}, b"no") if "logprobs" in request else None
    engine = open_engine(model, server)
    assert engine._server.takes == {"seed"}
    assert engine.describe()["continued_by"] == "text"


def test_servers_that_cannot_be_used_are_told(model: str, server: CompletionsServer) -> None:
    server.has_completions = False
    with pytest.raises(ModelError, match="has no /completions for the model 'tiny'") as caught:
        open_engine(model, server)
    assert "only chats" in str(caught.value.hint)
    server.has_completions = True
    server.intercept = lambda request: (400, {}, b"never")
    with pytest.raises(EngineError, match="does not answer: status 400: 'never'"):
        open_engine(model, server)
    server.intercept = lambda request: (200, {}, b"<html>")
    with pytest.raises(ModelError, match="no completions that can be read"):
        open_engine(model, server)
    with pytest.raises(EngineError, match="cannot be reached"):
        open_engine(model, "http://127.0.0.1:1/v1")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://["])
def test_what_is_no_url_is_told(model: str, url: str) -> None:
    with pytest.raises(UsageError, match="needs the URL of a server"):
        open_engine(model, url)


def test_keys_are_sent_and_never_shown(
    model: str, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = KEY
    with pytest.raises(UsageError, match="wants another API key") as caught:
        open_engine(model, server)
    assert "OPENAI_API_KEY" in str(caught.value.hint)
    monkeypatch.setenv("MINE", KEY)
    with pytest.raises(UsageError, match="'ABSENT' holds no API key"):
        open_engine(model, server, key_env="ABSENT")
    assert open_engine(model, server, key_env="MINE").context_tokens == 400
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert KEY not in str(open_engine(model, server).describe())
    server.key = ""  # credentials in a URL take a key's place
    engine = open_engine(model, f"http://me:pass@{server.base.removeprefix('http://')}")
    assert "pass" not in engine.describe()["url"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_token": 3}, "no argument 'chunk_token'"),
        ({"chunk_tokens": 0}, "chunk_tokens must be a whole number"),
        ({"kv_tokens": 1.5}, "kv_tokens must be a whole number"),
        ({"concurrency": True}, "concurrency must be a whole number"),
        ({"tries": None}, "tries must be a whole number"),
        ({"timeout_s": "long"}, "timeout_s must be a number"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
    ],
)
def test_arguments_are_checked(model: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_engine(model, "http://127.0.0.1:1/v1", **arguments)
    if "chunk_token" in arguments:
        assert "did you mean chunk_tokens" in str(caught.value.hint)


def test_weights_and_devices_are_the_servers_affair(model: str) -> None:
    for name in ("weights", "device"):
        with pytest.raises(UsageError, match=f"takes no {name}"):
            specrej.open_engine(model, engine="openai:http://127.0.0.1:1/v1", **{name: "cpu"})  # type: ignore[arg-type]


def test_another_tokenizer_than_the_servers_is_noticed(
    model: str, server: CompletionsServer, caplog: pytest.LogCaptureFixture
) -> None:
    def tamper(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0] |= {"text": "zebra", "finish_reason": "length"}
        return reply

    server.eos = 0.0
    open_engine(model, server)
    assert not caplog.records
    server.tamper = tamper
    open_engine(model, server)
    assert "see that" in caplog.text


def test_a_server_may_be_the_engine_of_a_command(model: str, server: CompletionsServer) -> None:
    engine = [
        "--engine",
        f"openai:{server.base}",
        "--engine-args",
        '{"chunk_tokens": 4}',
        "--model",
        model,
    ]
    run = ["--reward", "logprob", "--n", "2", "--max-new-tokens", "6", "--json"]
    done = CliRunner().invoke(app, ["generate", "Why?", *engine, *run])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["settings"]["served_model"] == "tiny"
