"""Ctrl-C is heeded in all tests, and they have a cache of their own. Tests of pages share a
browser, and a server that plays a race; those of compiled parts what is compiled here.
"""

import functools
import shutil
import signal
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from browsing import RACE
from scripted import Script, serving
from specrej.hub.defaults import cache_dir

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from specrej.attention.fused import Fused

CHROMIUM = shutil.which("chromium")

# A shell that runs the tests in the background has told them to ignore Ctrl-C,
# and the processes that they start would do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each client of httpx reads all certificates, which takes 20 ms, and hundreds of tests ask a server
# of this process a question each.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests leave in the cache is not the user's; the default models there are."""
    theirs, own = cache_dir(), tmp_path_factory.mktemp("cache")
    for name in ("models", "gguf"):
        (theirs / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(theirs / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECREJ_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> "Fused":
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    from specrej.attention.fused import compile_fused

    compiled = compile_fused(tmp_path_factory.mktemp("kernels"))
    assert compiled is not None
    return compiled


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=60_000)
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet]
        )
        yield browser
        browser.close()


@pytest.fixture
def script() -> Script:
    return Script(RACE)


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with serving(script) as address:
        yield address
