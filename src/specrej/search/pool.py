"""The memory that prompts in flight share: who may take the next step, and when another prompt may
begin.

    pool = Pool(2**30)
    limits = pool.allot(searches)  # oldest first; a search that is left out waits, its KV stays
    engine.step(limits)
    pool.record(searches, seconds)

Every search decides against a budget of its own, so a pool changes no result: it says only who
continues when.

The rule is that of safe states (Dijkstra's banker's algorithm), in the order in which searches
began. A state is safe if the oldest can run to its end while all others wait, then the second with
what the first gave back, and so on. That is: for each search, the most it will ever hold and what
all younger ones hold now are within the pool. A step that would leave the safe states waits. So the
youngest give way first, the oldest always continues, no search starves, and what was decoded is
never thrown away. Only one search's future is set aside at a time; the rest of the memory is in
use.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate

from specrej.attention.layout import Demand
from specrej.errors import BudgetError
from specrej.memory import format_bytes
from specrej.search.budget import Total
from specrej.search.search import Search


class Pool:
    """KV memory for many searches.

    Args:
        total_bytes: what all searches in flight may hold together.
        grows: to what a search needs that is larger, where nobody has said how much there is.

    Attributes:
        total_bytes: see above; what it has grown to.
        mean_share: share of it that was reserved, over the seconds of all steps.
        reserved_bytes: what was reserved after the last step.
        peak_bytes: most that was reserved at any step.
    """

    def __init__(self, total_bytes: int, *, grows: bool = False) -> None:
        self.total_bytes = total_bytes
        self._grows = grows
        self.mean_share = 0.0
        self.reserved_bytes = 0
        self.peak_bytes = 0
        self._seconds = 0.0
        self._is_waited_for = False

    @property
    def total(self) -> Total:
        """What a search is told of it."""
        return Total(self.total_bytes, self._grows)

    def grow(self, total_bytes: int) -> None:
        """Hold at least so much from now on, if the pool may grow."""
        if self._grows:
            self.total_bytes = max(self.total_bytes, total_bytes)

    def check(self, search: Search) -> None:
        """See that a search can run at all; a pool that may grow does so.

        Raises:
            BudgetError: its own budget exceeds the pool.
        """
        self.grow(search.budget_bytes)
        if search.budget_bytes > self.total_bytes:
            raise BudgetError(
                f"a prompt may hold {format_bytes(search.budget_bytes)}, all prompts in flight "
                "together "
                f"{format_bytes(self.total_bytes)}",
                hint="give a total_memory of at least the memory of one prompt, or a smaller "
                "memory",
            )

    def admits(self, searches: Sequence[Search], newcomer: Search) -> bool:
        """Whether another search may begin beside these: nobody waits, and its first tokens fit."""
        if not searches:
            return True
        return not self._is_waited_for and newcomer.first_bytes() <= min(
            self._slacks(searches, _demands(searches))
        )

    def allot(self, searches: Sequence[Search], busy: Collection[int] = ()) -> dict[int, int]:
        """The bytes that each search may hold in the next step, by its handle; those that must wait
        are left out.

        Args:
            searches: all in flight, in the order in which they began.
            busy: handles of those that are being scored, and take no step.
        """
        limits: dict[int, int] = {}
        free, demands = self.total_bytes, _demands(searches)
        slacks = self._slacks(searches, demands)
        for search, (now, least, wanted, _), slack in zip(searches, demands, slacks, strict=True):
            if search.handle not in busy and least - now <= free:
                limits[search.handle] = min(wanted, now + free)
                free -= limits[search.handle] - now
            free = min(free, slack)
        self._is_waited_for = len(limits) + len(busy) < len(searches)
        return limits

    def record(self, searches: Sequence[Search], seconds: float) -> None:
        """Count what is reserved, after a step that took so long."""
        self.reserved_bytes = sum(demand.now for demand in _demands(searches))
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        self._seconds += seconds
        self.mean_share += (
            (self.reserved_bytes / self.total_bytes - self.mean_share)
            * seconds
            / max(self._seconds, 1e-9)
        )

    def _slacks(self, searches: Sequence[Search], demands: Sequence[Demand]) -> list[int]:
        """For each search, what those younger than it may still take before it could not run to
        its end.
        """
        younger = accumulate((demand.now for demand in reversed(demands)), initial=0)
        return [
            self.total_bytes - max(search.most_bytes() - demand.shared, demand.now) - held
            for search, demand, held in zip(
                searches, demands, reversed(list(younger)[:-1]), strict=True
            )
        ]


def _demands(searches: Sequence[Search]) -> list[Demand]:
    return [search.demand() for search in searches]
