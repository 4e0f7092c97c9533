"""Rewards that compare two answers at a time: a classifier of pairs, or a function of your own.

    as_reward("pairwise:org/pair-ranker")                    # see `pair_classifier`
    as_reward("pairwise:my_ranker:better?scheme=knockout")   # a function of a module
    PairwiseReward(FunctionComparer(better))                 # better(prompt, a, b) -> 0.0 to 1.0

At each decision the answers of a prompt are compared among themselves, as `ranking` says. Each pair
is asked about in both orders, and the two are averaged: so which stands first does not matter. Of
equal texts none is better, and nobody is asked. What the last decision has compared and did not
change is not asked about again.

Such scores are relative: see `specrej.rewards.base.RelativeReward`.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from specrej.errors import RewardError, UnknownNameError, UsageError
from specrej.registry import import_attribute
from specrej.rewards.function import last_question
from specrej.rewards.ranking import SCHEMES, Comparer, Pair
from specrej.rewards.spec import parse_options
from specrej.types import Candidate, Message, Reuse

Better = Callable[[str, str, str], Any]
"""`(prompt, a, b)` -> the probability that a is better than b, from 0 to 1."""


Play = Generator[list[Pair], list[tuple[float, int]], list[float]]
"""Yields pairs, is sent the probability and the tokens read of each, and returns scores."""


class FunctionComparer:
    """Compares by a function of the last user message and two texts, unfinished ones as well."""

    flops_per_token: float | None = None

    def __init__(self, better: Better, name: str | None = None) -> None:
        self._better = better
        self.name = name or str(getattr(better, "__name__", type(better).__name__))

    def compare(self, pairs: Sequence[Pair]) -> tuple[list[float], list[int]]:
        """See `Comparer`; no tokens: what a function reads is not known.

        Raises:
            RewardError: the function raised, or gave no number from 0 to 1; names the candidates.
        """
        return [self._ask(pair) for pair in pairs], [0] * len(pairs)

    def _ask(self, pair: Pair) -> float:
        given: Any = None
        try:
            prompt = last_question(pair.messages)
            given = self._better(prompt, pair.first.text, pair.second.text)
            if 0 <= (probability := float(given)) <= 1:
                return probability
            problem = f"it returned {given!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        raise RewardError(
            f"the function {self.name!r} failed to compare candidates {pair.first.index} and "
            f"{pair.second.index}: {problem}",
            hint="it is called as (prompt, a, b) and returns the probability that a is better, "
            "from 0 to 1; 1 / (1 + exp(-x)) makes one of a preference x on any scale",
        )

    def close(self) -> None:
        """Nothing is held."""


class PairwiseReward:
    """Scores answers by comparing them with each other.

    Attributes:
        name: `pairwise:` and the comparer's name, with the scheme where it is not round_robin.
        flops_per_token: the comparer's.
        is_relative: True, see `specrej.rewards.base.RelativeReward`.
    """

    is_relative = True

    def __init__(self, comparer: Comparer, *, scheme: str = "round_robin") -> None:
        """Take a comparer, which is closed with the reward.

        Args:
            comparer: compares.
            scheme: "round_robin" (all pairs) or "knockout" (one pair fewer than answers).

        Raises:
            UnknownNameError: there is no such scheme.
        """
        check_scheme(scheme)
        self.name = f"pairwise:{comparer.name}"
        if scheme != "round_robin":
            self.name += f"{'&' if '?' in comparer.name else '?'}scheme={scheme}"
        self.flops_per_token = comparer.flops_per_token
        self._comparer, self._scheme = comparer, scheme

    def open(self, messages: Sequence[Message]) -> "PairwiseSession":
        """Begin with a prompt."""
        return PairwiseSession(self, messages)

    def close(self) -> None:
        """Close the comparer."""
        self._comparer.close()

    def score_together(
        self, asked: Sequence[tuple["PairwiseSession", Sequence[Candidate]]]
    ) -> list[list[float]]:
        """Answers to several prompts, with the pairs of all of them as one batch, round by round.

        Raises:
            RewardError: the comparer failed.
        """
        plays = [session.play(candidates, self._scheme) for session, candidates in asked]
        scores: list[list[float]] = [[] for _ in plays]
        found: dict[int, Any] = dict.fromkeys(range(len(plays)))  # None begins a generator
        while found:
            wanted: dict[int, list[Pair]] = {}
            for number, compared in found.items():
                try:
                    wanted[number] = plays[number].send(compared)
                except StopIteration as end:
                    scores[number] = end.value
            every = iter(self._both_orders([pair for pairs in wanted.values() for pair in pairs]))
            found = {number: [next(every) for _ in pairs] for number, pairs in wanted.items()}
        return scores

    def _both_orders(self, pairs: Sequence[Pair]) -> list[tuple[float, int]]:
        """The probability that the first is better, and the tokens that were read to say so."""
        if not pairs:
            return []
        turned = [Pair(messages, second, first) for messages, first, second in pairs]
        probabilities, num_tokens = self._comparer.compare([*pairs, *turned])
        half = len(pairs)
        return [
            # So written that equal ones are even to the last bit: a knockout asks for more or less.
            (0.5 + (there - back) / 2, num_there + num_back)
            for there, back, num_there, num_back in zip(
                probabilities[:half],
                probabilities[half:],
                num_tokens[:half],
                num_tokens[half:],
                strict=True,
            )
        ]


class PairwiseSession:
    """One prompt's candidates.

    Attributes:
        num_comparisons: pairs that the comparer was shown, each order counted.
    """

    def __init__(self, reward: PairwiseReward, messages: Sequence[Message]) -> None:
        self.num_tokens = self.num_comparisons = 0
        self.reuse: Reuse = "none"
        self.peak_kv_bytes = 0
        self._reward = reward
        self._messages = messages
        self._known: dict[tuple[str, str], float] = {}

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Scores among these candidates.

        Raises:
            RewardError: the comparer failed.
        """
        return self._reward.score_together([(self, candidates)])[0]

    def play(self, candidates: Sequence[Candidate], scheme: str) -> "Play":
        """Yields pairs to be compared, is sent what is found of each, and returns the scores.

        Candidates play in the order of their indices, whatever their order here.
        """
        places = sorted(range(len(candidates)), key=lambda place: candidates[place].index)
        known, asked = self._known, set[tuple[str, str]]()
        game = SCHEMES[scheme](len(places))
        probabilities: Any = None  # what a generator begins with
        while True:
            try:
                wanted = game.send(probabilities)
            except StopIteration as end:
                # Not before: after a failure with other prompts it is played again, alone.
                self._known = {key: known[key] for key in asked}
                by_place = dict(zip(places, end.value, strict=True))
                return [by_place[place] for place in range(len(places))]
            met = [(candidates[places[one]], candidates[places[other]]) for one, other in wanted]
            shown = {
                (first.text, second.text): Pair(self._messages, first, second)
                for first, second in (sorted(two, key=lambda one: one.text) for two in met)
                if first.text != second.text
            }
            new = [key for key in shown if key not in known]
            found = yield [shown[key] for key in new]
            for key, (probability, num_tokens) in zip(new, found, strict=True):
                known[key] = probability
                self.num_tokens += num_tokens
                self.num_comparisons += 2
            asked |= shown.keys()
            probabilities = [self._probability(one.text, other.text) for one, other in met]

    def _probability(self, one: str, other: str) -> float:
        if one == other:
            return 0.5
        return self._known[one, other] if one < other else 1 - self._known[other, one]

    def drop(self, indices: Sequence[int]) -> None:
        """What is known of pairs goes with the next decision that does not ask for it."""

    def close(self) -> None:
        """Nothing is held for a prompt."""


def check_scheme(scheme: str) -> None:
    """See that there is such a scheme, before a model is opened.

    Raises:
        UnknownNameError: there is not.
    """
    if scheme not in SCHEMES:
        raise UnknownNameError("scheme of a pairwise reward", scheme, SCHEMES)


def parse_pairwise(argument: str = "") -> PairwiseReward:
    """The reward of `pairwise:MODEL#LABEL?option=value&...` or `pairwise:module:function`, with the
    option `scheme`; those of a model are `template`, `batch_size` and `max_tokens`.

    Raises:
        UsageError: no model, a module without this function; see also `PairwiseReward` and
            `specrej.rewards.pair_classifier.PairClassifier`.
    """
    named, options = parse_options(
        argument,
        {"scheme": str, "template": str, "batch_size": int, "max_tokens": int},
    )
    if not named:
        raise UsageError(
            "the reward 'pairwise' needs a model or a function",
            hint="give it as pairwise:PATH_OR_ID or pairwise:module:function",
        )
    check_scheme(scheme := options.pop("scheme", "round_robin"))
    if ":" not in named or Path(named.partition("#")[0]).is_dir():
        from specrej.rewards.pair_classifier import PairClassifier

        model, _, label = (named, "", "") if Path(named).is_dir() else named.partition("#")
        return PairwiseReward(PairClassifier(model, label=label or None, **options), scheme=scheme)
    if options:
        raise UsageError(
            f"the function {named!r} takes no {' and '.join(options)}",
            hint="these are options of a model of pairs",
        )
    return PairwiseReward(FunctionComparer(import_attribute("reward", named), named), scheme=scheme)
