"""What a row of the benchmark table is made of: settings, questions to a judge, figures.

ROW = Protocol(name="reward", ..., figures=figures)      # one a module, all of them in `ROWS`

A protocol adds nothing to a bench but this: which settings it has, what it asks a judge when all
answers are there, and which figures it makes of rows and judgements.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

from specrej.evaluation.comparison import Comparison, align
from specrej.evaluation.intervals import Estimate
from specrej.evaluation.judge_client import CallsRow, JudgeClient, total_calls
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.rows import BenchRow

Judgement = Mapping[str, Any]
"""A row of any of the judges; see their modules."""


class Measured(TypedDict):
    """One figure of a row."""

    name: str
    method: str
    unit: str
    """Of the estimate: "%", "reward", ..."""
    estimate: Estimate
    num: int
    """Prompts, or judgements, that it rests on."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked, once.

    Attributes:
        file: the journal of its judgement.
        key: the fields by which the judgement is found there again.
        ask: asks.
    """

    file: str
    key: Mapping[str, object]
    ask: Callable[[JudgeClient], Judgement]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A bench that has all its answers, and what judges have said of them.

    Attributes:
        loaded: the prompts.
        rows: of the bench.
        baseline: the method that others are compared with.
        judgements: by the journal's name; of each question the last.
        calls: what all tries cost, those that were asked again included.
        disagreement: by prompt, from a user's file; None where rewards say on which prompts
            candidates differ.
    """

    loaded: Loaded
    rows: Sequence[BenchRow]
    baseline: str
    judgements: Mapping[str, Sequence[Judgement]] = field(default_factory=dict)
    calls: CallsRow = field(default_factory=lambda: total_calls([]))
    disagreement: Mapping[str, float] | None = None

    @cached_property
    def comparison(self) -> Comparison:
        """The rows that can be compared."""
        return align(self.rows, self.baseline)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The prompts by id."""
        return {task.id: task for task in self.loaded.tasks}

    @property
    def methods(self) -> list[str]:
        """All, in the order of the rows."""
        return list(self.comparison.rows)

    def judged(self, file: str, method: str, prompt_ids: Sequence[str]) -> list[Judgement]:
        """What was said of a method's answers to these prompts."""
        wanted = set(prompt_ids)
        return [
            row
            for row in self.judgements.get(file, ())
            if row["method"] == method and row["prompt_id"] in wanted
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """One row.

    Attributes:
        name: of the row.
        title: what is measured, in a line.
        known: what the seed or the paper says, with its source.
        prompts: the named set; None where the protocol's own are no set, and a file is needed.
        num_prompts: that the protocol has.
        methods: of a bench; the first is what the others are compared with.
        chief: the method that the row is about.
        settings: those that differ from the defaults of specrej.
        temperatures: by category of the prompt.
        own_reward: the reward's name with "{model}", where the protocol has one of its own.
        needs_judge: a judge is asked.
        needs_references: the prompts must come with reference answers.
        single_turn: the prompts must have one turn each.
        by_variance: some figure is of the prompts on which candidates differ most.
        needs: what a real reproduction takes.
        open_points: what the protocol does not say, and what is done here.
        questions: to a judge, when all answers are there.
        figures: of all that is there; the first is the row's.
        notes: what is to be known of them, in words.
    """

    name: str
    title: str
    known: str
    prompts: str | None
    num_prompts: int
    methods: tuple[str, ...]
    chief: str
    settings: Mapping[str, object]
    needs: str
    open_points: tuple[str, ...]
    figures: Callable[[Answered], list[Measured]]
    temperatures: Mapping[str, float] = field(default_factory=dict)
    own_reward: str | None = None
    needs_judge: bool = False
    needs_references: bool = False
    single_turn: bool = False
    by_variance: bool = False
    questions: Callable[[Answered], list[Question]] = field(default=lambda answered: [])
    notes: Callable[[Answered], list[str]] = field(default=lambda answered: [])
