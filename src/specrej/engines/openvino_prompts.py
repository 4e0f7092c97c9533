"""Which prompts OpenVINO GenAI may hold in its prefix cache, as far as that can be known: it does
not tell.

    known = KnownPrompts(page_tokens=32, num_pages=400)
    known.add(prompt)
    known.count(longer)                 # tokens of it that are found there
    known.may_clash(prompt, longer)     # whether they are not to be begun in one step
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, takewhile
from operator import eq


class KnownPrompts:
    """The last prompts that were read, as many as there are pages."""

    def __init__(self, page_tokens: int, num_pages: int) -> None:
        self._page_tokens, self._most = page_tokens, num_pages
        self._pages: dict[int, None] = {}
        self._ends: dict[int, None] = {}

    def count(self, prompt: tuple[int, ...]) -> int:
        """Tokens of a prompt that are found there: all but the last, or the full pages that
        others began with.
        """
        prefixes = _prefixes(prompt)
        if prefixes[-1] in self._ends:
            return len(prompt) - 1
        num_pages = sum(
            1 for _ in takewhile(self._pages.__contains__, self._at_page_ends(prefixes))
        )
        return min(num_pages * self._page_tokens, len(prompt) - 1)

    def add(self, prompt: tuple[int, ...]) -> None:
        """A prompt has been read."""
        prefixes = _prefixes(prompt)
        for table, found in (
            (self._ends, prefixes[-1:]),
            (self._pages, self._at_page_ends(prefixes)),
        ):
            for prefix in found:
                table.pop(prefix, None)
                table[prefix] = None
            while len(table) > self._most:
                del table[next(iter(table))]

    def may_clash(self, some: tuple[int, ...], other: tuple[int, ...]) -> bool:
        """Whether two prompts may find a page that is full in part with what both begin with.

        Such pages hold the end of a prompt, with or without tokens that were drawn for it.
        """
        both = takewhile(
            lambda pair: eq(*pair), zip(_prefixes(some), _prefixes(other), strict=False)
        )
        return any(prefix in self._ends for prefix, _ in both)

    def _at_page_ends(self, prefixes: Sequence[int]) -> Sequence[int]:
        return prefixes[self._page_tokens - 1 :: self._page_tokens]


@lru_cache(maxsize=1024)
def _prefixes(prompt: tuple[int, ...]) -> list[int]:
    """A number for each token of a prompt that stands for all tokens up to it."""
    numbers = accumulate(prompt, lambda before, token_id: hash((before, token_id)), initial=0)
    return list(numbers)[1:]
