"""The prompts that the page tells.

chosen = choose(align(rows, "best_of_n:8"), "speculative_rejection:0.5")
for prompt in chosen:
    runners, decisions = runners_of(prompt.row)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from specrej.evaluation.comparison import Comparison, failed, rewards
from specrej.evaluation.plots import Fate, Runner
from specrej.evaluation.report.headline import is_rejecting, number, spoken
from specrej.evaluation.report.page import Story, StoryAnswer
from specrej.evaluation.rows import BenchRow, CandidateRow, TurnRow
from specrej.search.choosing import rank


@dataclass(frozen=True, slots=True)
class Chosen:
    """A prompt and why it is told: `gain` is the reward of the method minus that of the
    baseline.
    """

    why: str
    gain: float
    row: BenchRow

    @property
    def title(self) -> str:
        return f"{self.why.capitalize()}, {'+' if self.gain > 0 else ''}{number(self.gain, 3)}"


def telling_prompts(comparison: Comparison, method: str) -> list[Chosen]:
    """The prompts of the largest, the median and the smallest gain; of equal ones the first in the
    bench.

    Fewer where the method has fewer answers.
    """
    gains = (rewards(comparison, method) - rewards(comparison, comparison.baseline)).tolist()
    has_failed = failed(comparison, method).tolist()
    ordered = sorted(
        (place for place in range(len(gains)) if not has_failed[place]),
        key=lambda place: -gains[place],
    )
    if not ordered:
        return []
    places = {
        0: "largest gain",
        len(ordered) // 2: "median gain",
        len(ordered) - 1: "smallest gain",
    }
    rows = comparison.rows[method]
    return [
        Chosen(why, gains[ordered[rank]], rows[ordered[rank]])
        for rank, why in sorted(places.items())
    ]


def runners_of(turn: TurnRow) -> tuple[list[Runner], list[tuple[int, int]]]:
    """The race of a turn's candidates, and its decisions as (tokens, how many stayed)."""
    lengths = [decision["num_tokens"] for decision in turn["decisions"]]
    winner = _winner(turn)
    runners = [
        Runner(
            [
                min(lengths[int(decision)], candidate["num_tokens"])
                for decision in candidate["rewards"]
            ],
            list(candidate["rewards"].values()),
            _fate(candidate, winner),
        )
        for candidate in turn["candidates"]
        if candidate["rewards"]
    ]
    stayed = [
        (decision["num_tokens"], len(decision["scored"]) - len(decision["rejected"]))
        for decision in turn["decisions"]
        if decision["cause"] != "filter"  # which comes just before the decision on the others
    ]
    return runners, stayed


def _winner(turn: TurnRow) -> int:
    if "best" in turn:
        return turn["best"]
    complete = [candidate for candidate in turn["candidates"] if candidate["state"] == "complete"]
    return min(complete, key=lambda candidate: rank(_last(candidate), candidate["index"]))["index"]


def _last(candidate: CandidateRow) -> float | None:
    return next(reversed(candidate["rewards"].values()), None)


def _fate(candidate: CandidateRow, winner: int) -> Fate:
    if candidate["index"] == winner:
        return "winner"
    return "rejected" if candidate["state"] == "rejected" else "complete"


def story(chosen: Chosen, rows: Sequence[BenchRow], methods: Sequence[str]) -> Story:
    """The prompt's question, and every method's answer to its last turn."""
    prompt_id = chosen.row["prompt_id"]
    by_method = {
        row["method"]: row for row in rows if row["prompt_id"] == prompt_id and not row["error"]
    }
    answers: list[StoryAnswer] = []
    seen: dict[str, str] = {}
    for method in (method for method in methods if method in by_method):
        turn = by_method[method]["turns"][-1]
        twin = seen.setdefault(turn["text"], method)
        answers.append(_answer(method, turn, twin))
    question = chosen.row["turns"][-1]["messages"][-1]["content"]
    return Story(f"{chosen.title}: prompt {prompt_id}", question, answers)


def _answer(method: str, turn: TurnRow, twin: str) -> StoryAnswer:
    """`twin` is the first method with the same answer."""
    is_alone = sum(candidate["state"] == "complete" for candidate in turn["candidates"]) == 1
    return StoryAnswer(
        method=spoken(method),
        rejects=is_rejecting(method),
        reward=number(turn["reward"], 3),
        text=turn["text"],
        same_as="" if twin == method else spoken(twin),
        lowest_reward=number(turn["lowest_reward"], 3),
        lowest_text="" if is_alone else turn["lowest_text"],
    )
