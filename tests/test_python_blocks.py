"""The Python of README and docs runs as it stands, page by page, in the order of the page; only
models are fakes. A block that a page marks is parsed only."""

import ast
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from documents import DOCUMENTS, blocks
from endpoint import live
from fakes import FakeEngine, FakeReward
from specrej import rewards
from specrej.engines import opening
from specrej.search.pool import Pool
from specrej.server.service import Service
from specrej.settings import Settings

ELSEWHERE = {
    "docs/extending.md": "test_extending.py",
    "docs/ratings.md": "cli/test_cli_ratings.py",
    "docs/server.md": "with_clients/test_openai_client.py",
}
"""Pages whose blocks another test runs."""
PAGES = {page: list(blocks(text)) for page, text in DOCUMENTS.items() if "```python" in text}


@contextlib.contextmanager
def served() -> Iterator[str]:
    service = Service(FakeEngine(), FakeReward(), Pool(200_000))
    service.start()
    with live(service, model="smollm2", defaults=Settings(n=4, memory=20_000)) as url:
        yield url


@pytest.mark.parametrize("page", PAGES.keys() - ELSEWHERE.keys())
def test_a_pages_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "open_engine", lambda *_, **__: FakeEngine())
    monkeypatch.setattr(rewards, "_named", lambda _: FakeReward())
    names: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for block in PAGES[page]:
            code = block.code.replace('"64MiB"', '"16KiB"')
            if "127.0.0.1:8000" in code:
                code = code.replace("http://127.0.0.1:8000", stack.enter_context(served()))
            if block.why_not:
                ast.parse(code)
            else:
                exec(code, names)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_another_test_has_the_rest(page: str) -> None:
    assert PAGES[page]
