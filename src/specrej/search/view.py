"""What an algorithm sees of a prompt's search, and all that it can do to it.

for wave in search.waves(n, num_tokens=None):
    search.start(wave)
    while search.live:
        scores = yield never                 # those of search.batch, in its order
        search.keep([score > 0 for score in scores])

With forks, a wave says how many candidates it will have live together:

search.wait_after(separated(PARAGRAPH, 128))   # decisions come where all have ended a step
search.start(4, most=16)
scores = yield never
search.keep(...)
search.fork(3 * search.live)                 # three copies of each that is left
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from specrej.types import Candidate, Decision, SamplingParams, Standing, StepRule

_Algorithm = TypeVar("_Algorithm", bound=Callable[..., Any])


def reads_top_logprobs(num: int) -> Callable[[_Algorithm], _Algorithm]:
    """Say of an algorithm that it reads `Candidate.top_logprobs`, of so many tokens in each place:
    they are asked of the engine, whatever the settings say.
    """

    def mark(algorithm: _Algorithm) -> _Algorithm:
        algorithm.top_logprobs = num  # type: ignore[attr-defined]
        return algorithm

    return mark


def needs_absolute_rewards(algorithm: _Algorithm) -> _Algorithm:
    """Say of an algorithm that it compares rewards of several decisions, or with a number: it is
    refused with a relative reward.
    """
    algorithm.needs_absolute_rewards = True  # type: ignore[attr-defined]
    return algorithm


def ignores_policy(algorithm: _Algorithm) -> _Algorithm:
    """Say of an algorithm that it does not read its policy: a result has a note where one was
    described.
    """
    algorithm.ignores_policy = True  # type: ignore[attr-defined]
    return algorithm


class SearchView(Protocol):
    """One prompt's candidates, within one memory budget. What it shows is to be read, not
    changed, but for `notes` and `votes`.
    """

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All that were ever started, by index."""

    @property
    def batch(self) -> Sequence[Candidate]:
        """Those of the current wave that are not rejected and not done with: they are scored
        next.
        """

    @property
    def live(self) -> Sequence[Candidate]:
        """Those that are being decoded."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """What was decided so far, oldest first."""

    @property
    def sampling(self) -> SamplingParams:
        """How candidates are drawn."""

    @property
    def budget_bytes(self) -> int:
        """KV that the prompt and its candidates may hold."""

    notes: list[str]
    """What the result is to say of itself in words; an algorithm adds its own."""

    votes: Mapping[str, float] | None
    """What each answer's votes sum to, for the result to say; None where nothing votes."""

    def waves(self, n: int | None, num_tokens: int | None) -> Iterator[int]:
        """Sizes of the waves in which n candidates begin, each as large as the budget carries to
        num_tokens.

        n None is one such wave; num_tokens None is the full length. A greedy run is one candidate:
        all would be alike.
        """

    def start(self, n: int, most: int | None = None) -> None:
        """Begin n new candidates; they are the batch.

        Of an algorithm that forks, `most` is how many are live together at any time of this wave.
        Their memory is set aside from here on, so that forks never wait for each other. As long as
        there are fewer, others may begin beside them, without `most`: these join the batch.

        Raises:
            UsageError: n is below 1 or no whole number, most is below n, or others are being
                decoded and no room was set aside.
            BudgetError: they do not fit in the budget beside others; says how many do.
        """

    def room(self, num_tokens: int) -> int:
        """How many more candidates the budget carries beside the live ones until all have so many
        tokens, or the full length where that is less. On engines that cannot hold prompts back
        (vLLM, OpenVINO) always the full length: they decode ahead while new candidates are read.
        """

    def fork(self, parents: Sequence[Candidate]) -> Sequence[Candidate]:
        """Begin a copy of each of these live candidates at its length; one may be named often.

        A copy has a number and a random stream of its own, and is a part of the batch. What it
        begins with costs no tokens.

        Raises:
            UsageError: one is not live, or more would be live than `start` was told.
            BudgetError: they do not fit in the budget; says how many do.
            SamplingError: the engine cannot fork under what is asked for.
        """

    def wait_after(self, ends: StepRule) -> None:
        """From now on a candidate whose step is over waits until all live ones do: then a decision
        comes, and they go on.

        `ends` is asked after each token: see `specrej.search.steps`.
        """

    def standing(self, scores: Sequence[float]) -> Standing:
        """How the batch stands with these scores: what a policy's rule goes by."""

    def keep(self, is_kept: Sequence[bool]) -> None:
        """Let these of the scored batch stay and reject the others, and so many more that the next
        step fits.

        Those that stay and are complete can win; those that stay and are live go on.

        Raises:
            UsageError: it is not one boolean for each candidate of the batch.
        """
