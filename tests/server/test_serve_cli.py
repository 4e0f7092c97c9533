"""`specrej serve`: a process of its own that is asked, stopped, and started wrongly."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import specrej
from endpoint import WAIT_S, client, until
from specrej.cli import app
from specrej.opening import Opening
from tiny import save_model

SOURCES = str(Path(specrej.__file__).parents[1])
SLOW_REWARD = """
import pathlib, time

def rate(prompt, texts):
    pathlib.Path("scoring").touch()
    print("a reward that prints")
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    return [float(len(text)) for text in texts]
"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


class Process:
    """A running server: where it is, and what it said on stderr."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        until(lambda: self.url is not None or process.poll() is not None)

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.lines.extend(iter(self._process.stderr.readline, ""))

    @property
    def url(self) -> Any:
        found = [re.search(r"http://127\.0\.0\.1:\d+", line) for line in list(self.lines)]
        return next((match[0] for match in found if match), None)

    def signal(self, kind: signal.Signals) -> None:
        self._process.send_signal(kind)

    def end(self) -> int:
        code = self._process.wait(WAIT_S)
        self._reader.join()
        return code


@contextmanager
def serving(*arguments: str, cwd: Path, **environment: str) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-m", "specrej", "serve", "--port", "0", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": SOURCES,
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            running = Process(process)
            yield running
            process.kill()
            running.end()
        finally:
            process.kill()  # one that is not up in time would be waited for without end


def options(model: str, reward: str = "logprob") -> list[str]:
    return ["--model", model, "--reward", reward, "--n", "4", "--max-new-tokens", "8"]


def test_a_server_is_asked_and_ends_on_sigterm(tiny_model: str, tmp_path: Path) -> None:
    with serving(*options(tiny_model), cwd=tmp_path, SPECREJ_API_KEYS="one, two,") as server:
        asking = client(server.url, api_key="two")
        assert [model.id for model in asking.models.list()] == ["tiny"]
        answer = asking.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], seed=1
        )
        assert answer.model_extra["specrej"]["num_candidates"] == 4  # type: ignore[index]
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        asking.close()
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    [up, *log] = server.lines
    assert up == f"serving tiny with the reward logprob at {server.url}\n"
    assert [json.loads(line)["status"] for line in log] == [200, 200, 401]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_may_end_and_what_comes_is_turned_away(
    kind: signal.Signals, tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    with serving(*options(tiny_model, "slow:rate"), cwd=tmp_path) as server:
        body = {"model": "tiny", "prompt": "Hi"}
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=WAIT_S)
            )
        )
        asking.start()
        until(lambda: (tmp_path / "scoring").exists())
        server.signal(kind)
        until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        (tmp_path / "go").touch()
        asking.join()
        assert answers[0].status_code == 200
        assert server.end() == 0


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_does_not_end_within_the_grace_is_told(
    is_streamed: bool, tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    with serving(
        *options(tiny_model, "slow:rate"), "--grace", "0.2", "--reward-timeout", "3", cwd=tmp_path
    ) as server:
        body = {"model": "tiny", "prompt": "Hi", "stream": is_streamed}
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=WAIT_S)
            )
        )
        asking.start()
        until(lambda: (tmp_path / "scoring").exists())
        server.signal(signal.SIGTERM)
        asking.join()
        assert server.end() == 0
    assert answers[0].status_code == (200 if is_streamed else 503)
    assert '"code": "shutting_down"' in answers[0].text.replace('":"', '": "')


def test_a_second_signal_ends_it_on_the_spot(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    body = b'{"model": "tiny", "prompt": "Hi"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        serving(*options(tiny_model, "slow:rate"), "--grace", "600", cwd=tmp_path) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection,
    ):
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: (tmp_path / "scoring").exists())
        server.signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        server.signal(signal.SIGTERM)
        assert server.end() == -signal.SIGTERM


BREAKING = """
from specrej.engines.torch.engine import TorchEngine

def close(self, prompt):
    raise RuntimeError("the device is gone")

TorchEngine.close = close

def rate(prompt, texts):
    print("scoring")
    return [float(len(text)) for text in texts]
"""
ENDING = """
def rate(prompt, texts):
    if "end" in prompt:
        raise SystemExit(3)
    return [float(len(text)) for text in texts]
"""


def test_a_server_that_cannot_go_on_ends_with_an_error_and_says_why(
    tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    with serving(*options(tiny_model, "breaking:rate"), cwd=tmp_path) as server:
        asked = httpx.post(
            f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "Hi"}, timeout=WAIT_S
        )
        assert (asked.status_code, asked.json()["error"]["code"]) == (500, "internal")
        assert server.end() == 1
    log = [json.loads(line) for line in server.lines[1:]]
    assert {"scoring", "the thread cannot go on"} <= {line["event"] for line in log}
    assert "critical" in {line["level"] for line in log}


def test_a_reward_that_ends_programs_does_not_end_the_server(
    tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    with serving(*options(tiny_model, "ending:rate"), cwd=tmp_path) as server:
        for prompt, status in {"the end": 500, "Hi": 200}.items():
            body = {"model": "tiny", "prompt": prompt}
            response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=WAIT_S)
            assert response.status_code == status, response.text
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    log = [json.loads(line) for line in server.lines[1:]]
    [failure] = [line for line in log if line["event"] == "failure"]
    assert [error["type"] for error in failure["exception"]] == ["RewardError", "SystemExit"]


def invoke(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments], env=environment)


@pytest.mark.parametrize("given", ["", ",", " , ,"])
def test_keys_that_are_none_are_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opening, "open_engine", None)
    result = invoke("--port", "0", SPECREJ_API_KEYS=given)
    assert result.exit_code == 2
    assert "SPECREJ_API_KEYS is set, and holds no key" in result.stderr


def test_a_port_in_use_is_said_before_the_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opening, "open_engine", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("--port", str(port))
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 is in use" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--model", "[b]smolm2"], "unknown model '[b]smolm2'"),
        (["--reward", "no-such-reward"], "no-such-reward"),
        (["--api-key", "two words"], "printable ASCII"),
        (["--max-body", "much"], "max_body must be like"),
        (["--deadline", "0"], "the limit deadline_s must be above 0"),
        (["--max-candidates", "0"], "the limit candidates must be above 0"),
        (["--alpha", "2"], "alpha must be in"),
        (["--max-new-tokens", "50", "--new-tokens-limit", "40"], "exceeds the 40"),
        (["--n", "50", "--max-candidates", "40"], "n=50 exceeds the 40 candidates"),
        (["--memory", "8MiB", "--total-memory", "4MiB"], "does not hold one request"),
        (["--port", "70000"], "65535"),
    ],
)
def test_a_server_that_cannot_be_is_refused(
    arguments: list[str], reason: str, tiny_model: str
) -> None:
    result = invoke("--port", "0", "--model", tiny_model, "--reward", "logprob", *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--api-key", "two words"], "printable ASCII"),
        (["--max-new-tokens", "50", "--new-tokens-limit", "40"], "exceeds the 40"),
        (["--n", "50", "--max-candidates", "40"], "n=50 exceeds the 40 candidates"),
        (["--memory", "8MiB", "--total-memory", "4MiB"], "does not hold one request"),
        (["--total-memory", "much"], "total_memory must be like"),
        (["--policy", "no_such_module:policy"], "no_such_module"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_opened(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Opening, "open", None)
    result = invoke("--port", "0", *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda given: None if given == name else found(given)
    )
    result = invoke()
    assert result.exit_code == 2
    assert f"the server needs {name}, which is not installed" in result.stderr
    assert "specrej[server]" in result.stderr


def test_a_limit_of_thoughts_that_no_chat_could_have_is_said_at_once(tiny_model: str) -> None:
    given = ["serve", "--model", tiny_model, "--reward", "logprob", "--port", "0"]
    done = CliRunner().invoke(app, [*given, "--max-thinking-tokens", "5"])
    assert done.exit_code == 2
    assert "max_thinking_tokens cannot be honoured, got 5" in done.stderr


def test_help_names_every_option() -> None:
    said = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    own = (
        "host",
        "port",
        "api-key",
        "log-prompts",
        "grace",
        "total-memory",
        "in-flight",
        "max-queue",
        "deadline",
    )
    limits = (
        "reward-timeout",
        "max-body",
        "max-prompt-tokens",
        "max-candidates",
        "new-tokens-limit",
    )
    for name in (
        *own,
        *limits,
        "model",
        "reward",
        "memory",
        "max-new-tokens",
        "temperature",
        "seed",
    ):
        assert f"--{name} " in said, name
    assert "--stop" not in said
