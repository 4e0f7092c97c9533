"""Servers of these tests end at once. Uvicorn looks ten times a second whether it is to end, and
waits another tenth when it does: with a server for each of hundreds of tests, minutes.
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
        hurried = SimpleNamespace(**{**vars(asyncio), "sleep": _sleep})
        patch.setattr("uvicorn.server.asyncio", hurried)
        yield
