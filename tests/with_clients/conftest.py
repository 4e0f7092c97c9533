"""One server for all clients. They have an environment of their own (`make test-clients`); the
server is a process of the one that has specrej."""

import importlib.util
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("instructor") is None:
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("SPECREJ_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""Of the environment that has specrej."""
OPTIONS = [
    "--reward",
    "logprob",
    "--n",
    "4",
    "--max-new-tokens",
    "96",
    "--seed",
    "1",
    "--port",
    "0",
]
"""With a seed, since some answers of a random model are empty."""
WAIT_S = 120

# A client that counts or prices tokens would look for its tables on the network, again and again.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model that is served will lie, under the name that it is served by."""
    return tmp_path_factory.mktemp("models") / "tiny"


@pytest.fixture(scope="session")
def url(model: Path) -> Iterator[str]:
    """Of the server's /v1, once it is up."""
    log = model.with_name("log")
    paths = [str(ROOT / "src"), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [PYTHON, str(Path(__file__).with_name("small_server.py")), str(model), *OPTIONS]
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stderr=file, cwd=model.parent)
    try:
        yield f"{_address(server, log)}/v1"
    finally:
        server.terminate()
        assert server.wait(WAIT_S) == 0, log.read_text()


def _address(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the server says that it is, on the first line of its log."""
    until_s = time.monotonic() + WAIT_S
    while time.monotonic() < until_s and server.poll() is None:
        if found := re.search(r"^serving .* at (http://\S+)$", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")
