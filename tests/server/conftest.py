"""Servers of these tests end at once. Uvicorn sleeps a tenth of a second between looks at whether it
is to end, and another one when it ends: with a server for each of hundreds of tests, minutes.
"""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds / 20)


@pytest.fixture(scope="package", autouse=True)
def _quick_uvicorn() -> Iterator[None]:
    pytest.importorskip("uvicorn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.server.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": _sleep}))
        yield
