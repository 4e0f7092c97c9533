"""An engine under test, and what is to be expected of it.

subject = Subject(MyEngine(), flips=500)
result = subject.generate(n=8)
subject.compare(zip(ids(result), ids(again)))     # token for token, but for the flips
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import specrej
from specrej.engines.base import Engine
from specrej.engines.paged import PagedEngine
from specrej.types import Result

LENGTH = 32
ENDING = "Answer with one word: is water wet?"
"""SmolLM2's answers to this mostly end by themselves."""


@dataclass
class Subject:
    """An engine, and what is to be expected of it.

    Attributes:
        engine: to be tested; nothing is open on it.
        flips: one in so many tokens may flip because others were rejected or stand beside it; None
            where none may.
        reread: tokens that may be read again for each candidate: what of a prompt is not shared.
        reread_later: tokens that may be read again for each fork, and whenever a candidate that has
            waited goes on: what of its answer is not in the cache; None: as `reread`.
        unused: tokens that may be made and not used for each candidate: what an engine decodes
            ahead.
        prompts: of different lengths.
        ending: a prompt whose answers mostly end by themselves within LENGTH tokens.
        measured: bytes of KV in use as something else than the engine measures it.
        hottest: the highest temperature that it takes.
    """

    engine: Engine
    flips: int | None = None
    reread: int = 0
    reread_later: int | None = None
    unused: int = 0
    prompts: Sequence[str] = ("Why?", "Give three tips for staying healthy.", "Name a tree. " * 12)
    ending: str = "Why?"
    measured: Callable[[], int] | None = None
    hottest: float = 1e308
    num_flips: int = field(default=0, init=False)
    num_compared: int = field(default=0, init=False)

    def generate(self, prompt: str | None = None, **options: Any) -> Result:
        given = {"n": 8, "max_new_tokens": LENGTH, "seed": 3, "memory": self.room(8), **options}
        return specrej.generate(
            prompt or self.prompts[1], model=self.engine, reward=by_hash, **given
        )

    def room(self, num_candidates: int, num_tokens: int = LENGTH, prompt: str | None = None) -> int:
        """Bytes that so many candidates of that length take."""
        num_prompt = len(self.engine.encode(prompt or self.prompts[1]))
        return self.engine.kv_bytes(num_prompt, num_candidates, num_tokens)

    def compare(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
        """See that of each pair the first is a prefix of the second, but for the flips that are
        let pass.
        """
        for some, all_ in pairs:
            same = [one == other for one, other in zip(some, all_, strict=False)]
            num_same = same.index(False) if False in same else len(same)
            is_flipped = num_same < len(some)
            assert self.flips or not is_flipped, (
                f"token {num_same} of {list(some)} is not that of {list(all_)}"
            )
            self.num_flips += is_flipped
            self.num_compared += num_same + is_flipped
        if self.flips:
            assert self.num_flips <= 1 + self.num_compared / self.flips, (
                f"{self.num_flips} of {self.num_compared}"
            )


def in_pages(engine: Engine, **expected: Any) -> Subject:
    """What is to be expected of SmolLM2 in somebody else's engine, whose own count of pages is
    compared with ours.
    """
    assert isinstance(engine, PagedEngine)
    page, backend = engine.layout.page, engine.backend
    return Subject(
        engine,
        flips=500,
        reread=page,
        ending=ENDING,
        measured=lambda: backend.pages_in_use() * page * engine.layout.bytes_per_token,
        **expected,
    )


def by_hash(prompt: str, texts: list[str]) -> list[float]:
    """Scores without ties but for equal texts."""
    return [float(zlib.crc32(text.encode()) % 1_000_003) for text in texts]


def ids(result: Result) -> list[list[int]]:
    return [candidate.token_ids for candidate in result.candidates]
