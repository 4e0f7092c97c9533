"""A real `vllm serve` on a loopback port, started for the tests and stopped by them.

with serving(locate("smollm2")) as url:
    ...                                 # f"{url}/v1/completions" answers
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

_PATIENCE_S = 300
_ARGUMENTS = [
    "--dtype",
    "float32",
    "--enforce-eager",
    "--block-size",
    "32",
    "--max-model-len",
    "2048",
]
_GENERATOR = [
    *(
        "--max-num-batched-tokens",
        "65536",
    ),  # a prompt in pieces fails on a CPU where requests have seeds
    *("--max-num-seqs", "64"),
    "--enable-prompt-tokens-details",
]


@contextmanager
def serving(model: Path, *arguments: str) -> Iterator[str]:
    """The server's URL once it answers; a generator's where no arguments are given."""
    port = _free_port()
    # What `vllm serve` runs; that command itself asks for a package named vllm, which the one for
    # CPUs is not.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        *_ARGUMENTS,
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), *(arguments or _GENERATOR)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with TemporaryFile() as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, output)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(server)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """The server and the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(url: str, server: "subprocess.Popen[bytes]", output: object) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    output.seek(0)  # type: ignore[attr-defined]
    said = output.read().decode(errors="replace")[-3000:]  # type: ignore[attr-defined]
    raise AssertionError(f"vllm serve did not answer (exit code {server.poll()}): {said}")
