"""`generate --server`: what a server answers is the result of a run here."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live import SETTINGS, ForgetfulReward, Served, serving
from test_serve_cli import serving as serving_process
from typer.testing import CliRunner

import servers
from fakes import FakeEngine, by_hash
from specrej.api import run_observed
from specrej.cli import answer, app
from specrej.errors import EngineError, UsageError
from specrej.opening import Opening
from specrej.server.asking import ask
from specrej.settings import Settings
from specrej.types import Result
from tiny import save_model

FAKES = Opening(model="bytes", reward="by_hash")
QUESTION = "Why is the sky blue?"


def asked(call: Callable[[str], Any], **options: Any) -> Any:
    """What a call gets that asks a server on the fakes."""

    async def run() -> Any:
        async with serving(FakeEngine(), **options) as served:
            return await asyncio.to_thread(call, url_of(served))

    return asyncio.run(run())


def url_of(served: Served) -> str:
    return f"http://{served.address[0]}:{served.address[1]}"


def compared(result: Result) -> dict[str, Any]:
    return unhurried(json.loads(json.dumps(result.to_dict())))


def unhurried(whole: dict[str, Any]) -> dict[str, Any]:
    """A result without seconds, and whether a server was asked."""
    whole["usage"] = {name: n for name, n in whole["usage"].items() if not name.endswith("_s")}
    whole["settings"].pop("server", None)
    return whole


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, seed=5, alpha=0.25, decide="at:4,9"),
        replace(SETTINGS, algorithm="best_of_n", n=4, stop=("e", "zz"), temperature=0.5),
        replace(SETTINGS, n="auto", keep=2, memory=4000),
        replace(SETTINGS, algorithm="majority_vote", n=4, extract="text"),
    ],
)
@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": QUESTION}]])
def test_the_result_is_that_of_a_run_here(prompt: Any, settings: Settings) -> None:
    here = run_observed(FakeEngine(), ForgetfulReward(), prompt, settings, None)
    for suffix in ("", "/v1", "/"):
        there = asked(lambda url: ask(url + suffix, prompt, settings, FAKES))  # noqa: B023
        assert compared(there) == compared(here)


def test_the_defaults_of_the_server_do_not_count() -> None:
    defaults = replace(SETTINGS, seed=8, alpha=0.75, decide="every:3", temperature=0.3)
    here = run_observed(FakeEngine(), ForgetfulReward(), QUESTION, SETTINGS, None)
    there = asked(lambda url: ask(url, QUESTION, SETTINGS, FAKES), defaults=defaults)
    assert compared(there) == compared(here)


@pytest.mark.parametrize(
    ("default", "asks"),
    [
        ({"keep": 2}, {"keep": 3}),
        ({"max_thinking_tokens": 8}, {"max_thinking_tokens": 9}),
        ({"max_thinking_tokens": 8}, {"regex": "a+"}),
        ({"regex": "b+"}, {"json_schema": {"type": "object"}}),
        ({"grammar": 'start: "b"'}, {"grammar": 'start: "a"'}),
    ],
)
def test_a_default_that_a_request_cannot_turn_off_is_refused(
    default: dict[str, Any], asks: dict[str, Any]
) -> None:
    [(name, _)] = default.items()
    defaults = replace(SETTINGS, **default)

    words = f"has {name} .* by default, and a request cannot turn it off"

    def ask_both(url: str) -> None:
        with pytest.raises(UsageError, match=words):
            ask(url, QUESTION, SETTINGS, FAKES)
        try:
            ask(url, QUESTION, replace(SETTINGS, **asks), FAKES)
        except UsageError as error:  # the fake engine follows no grammar and limits no thought
            assert "refuses this" in str(error)  # noqa: PT017

    asked(ask_both, defaults=defaults)


def test_what_is_behind_the_reward_is_not_told() -> None:
    def secretly(text: str) -> float:
        return by_hash(text)

    secretly.__name__ = "http:secret.example"
    reward = ForgetfulReward(secretly)
    opening = replace(FAKES, reward="http")
    result = asked(lambda url: ask(url, QUESTION, SETTINGS, opening), reward=reward)
    assert result.settings["reward"] == "http"
    assert "secret" not in json.dumps(result.to_dict())


@pytest.mark.parametrize(
    ("opening", "settings", "words"),
    [
        ({"model": "other"}, {}, r"has the model 'bytes', not 'other'"),
        ({"reward": "logprob:sum"}, {}, r"has the reward 'by_hash', not 'logprob:sum'"),
        ({"engine": "vllm"}, {}, r"engine cannot be given to a server, got 'vllm'"),
        ({"weights": "fp32"}, {}, r"weights cannot be given to a server"),
        ({"device": "cpu"}, {}, r"device cannot be given to a server"),
        ({"reward_memory": "1GiB"}, {}, r"reward_memory cannot be given to a server"),
        ({}, {"strict": True}, r"strict cannot be given to a server"),
        ({}, {"n": 5000}, r"refuses this: .*5000"),
        ({}, {"memory": "1GiB"}, r"refuses this: .*memory"),
    ],
)
def test_what_a_server_cannot_do(
    opening: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        asked(
            lambda url: ask(url, QUESTION, replace(SETTINGS, **settings), replace(FAKES, **opening))
        )


def test_no_server_answers() -> None:
    with servers.serving() as server:
        url = server.url
    with pytest.raises(EngineError, match="no server answers at http://127") as caught:
        ask(url, QUESTION, SETTINGS, FAKES)
    assert caught.value.hint is not None
    assert "specrej serve" in caught.value.hint


def test_another_kind_of_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.Handler, "do_GET", lambda self: self.send_error(404), raising=False)
    with servers.serving() as server, pytest.raises(UsageError, match="refuses this"):
        ask(server.url, QUESTION, SETTINGS, FAKES)


@pytest.mark.parametrize("body", [{}, {"data": []}, {"data": [{"id": "bytes"}]}, []])
def test_a_list_of_models_that_is_none_of_ours(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(handler: Any) -> None:
        content = json.dumps(body).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    monkeypatch.setattr(servers.Handler, "do_GET", get, raising=False)
    with servers.serving() as server, pytest.raises(EngineError, match="no specrej server"):
        ask(server.url, QUESTION, SETTINGS, FAKES)


def test_the_command_prints_what_it_prints_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    options = [*("--model", "tiny", "--reward", "logprob", "--n", "4", "--max-new-tokens", "24")]
    asks = ["generate", "Hi", "--seed", "3", "--top-logprobs", "2", *options]
    here = [CliRunner().invoke(app, [*asks, *more]) for more in ([], ["--json"])]
    with serving_process("--model", "tiny", "--reward", "logprob", cwd=tmp_path) as process:
        monkeypatch.setattr(answer, "_LOCAL", process.url)
        there = CliRunner().invoke(app, [*asks, "--server", "local"])
        code = (
            "import sys; from specrej.cli import app;"
            f"app({[*asks, '--json', '--server', process.url]!r}, standalone_mode=False);"
            "print(sorted({'torch', 'transformers'} & sys.modules.keys()), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        process.signal(signal.SIGTERM)
    lines = [
        [line for line in one.stdout.splitlines() if not line.startswith("seconds")]
        for one in (here[0], there)
    ]
    assert lines[0] == lines[1]
    assert any("wins with reward" in line for line in lines[0])
    assert done.stderr.splitlines() == [f"asking {process.url}", "[]"]
    assert unhurried(json.loads(done.stdout)) == unhurried(json.loads(here[1].stdout))
