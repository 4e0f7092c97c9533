"""Running a row: a bench with the protocol's settings, then its judge, then its figures.

    check(protocol, loaded, judge)                       # before a model is opened
    methods = parse_methods(protocol.methods, settings)
    for row in generate(protocol, loaded, methods, engine, reward, "out", settings=settings):
        ...
    answered = read_answered("out", loaded, methods[0].name, judge)
    for judgement in ask_judge(protocol, answered, judge, "out"):
        ...
    answered = read_answered("out", loaded, methods[0].name, judge)
    outcome = conclude(protocol, answered, settings, judge)
    write_outcome("out", outcome)                        # out/NAME.json

All of it is resumed by the same calls: answers and judgements that are on the disk are not asked
for again.
"""

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

from specrej.engines.base import Engine
from specrej.errors import UsageError
from specrej.evaluation.bench import Method, run_bench
from specrej.evaluation.folder import METHODS_OWN, locked, read_bench
from specrej.evaluation.judge import JUDGEMENTS, VerdictRow
from specrej.evaluation.judge_client import CallsRow, JudgeClient, JudgeServer, total_calls
from specrej.evaluation.judge_grade import GRADES, GradeRow
from specrej.evaluation.judge_scores import SCORES_FILE, ScoresRow
from specrej.evaluation.judge_weighted import PREFERENCES, PreferenceRow
from specrej.evaluation.metrics import Cost, cost_of
from specrej.evaluation.prompts import Loaded
from specrej.evaluation.reproduce.protocol import (
    Answered,
    Judgement,
    Measured,
    Protocol,
    Question,
)
from specrej.evaluation.rows import BenchRow
from specrej.files.journal import Journal, read_rows, write_json
from specrej.rewards.base import Reward
from specrej.settings import Settings

_JOURNALS = {
    GRADES: GradeRow.__required_keys__,
    JUDGEMENTS: VerdictRow.__required_keys__,
    PREFERENCES: PreferenceRow.__required_keys__,
    SCORES_FILE: ScoresRow.__required_keys__,
}
"""The fields of each."""
_KEY = ("prompt_id", "method", "baseline", "turn", "template", "judge")
"""The fields that tell one judgement in a journal from another, where it has them."""


class RowOutcome(TypedDict):
    """What a row came to: NAME.json."""

    row: str
    title: str
    known: str
    """What the seed or the paper says."""
    judge: str | None
    prompts: str
    num_prompts: int
    num_failed: int
    """Answers that did not come about, of all methods."""
    methods: list[str]
    baseline: str
    figures: list[Measured]
    """Those of the method that the row is about come first."""
    notes: list[str]
    differences: list[str]
    """What was other than the protocol has it; nothing where it is the protocol's run."""
    open_points: list[str]
    cost: dict[str, Cost]
    """By method, generation and reward."""
    num_judgements: int
    num_asked: int
    """Of them, those that took a judge: the same text twice, and a failed answer, take none."""
    num_unread: int
    """Judgements that the judge did not give, or not so that they could be read."""
    calls: CallsRow
    """Of the judge: all that the folder's journals hold, what was asked again included."""


def check(
    protocol: Protocol,
    loaded: Loaded,
    judge: JudgeServer | None,
    disagreement: Mapping[str, float] | None = None,
) -> None:
    """See to what a row needs, before a model is opened.

    Raises:
        UsageError: it asks a judge and there is none, takes single questions and there are
            others, compares with references that the prompts do not have, or has no use for
            numbers of disagreement.
    """
    if disagreement is not None and not protocol.by_variance:
        raise UsageError(
            f"the row {protocol.name!r} is over all prompts, whatever is disagreed on them",
            hint="leave --disagreement out",
        )
    if protocol.needs_judge and judge is None:
        raise UsageError(
            f"the row {protocol.name!r} asks a judge", hint="give its name by --judge MODEL"
        )
    longer = [task.id for task in loaded.tasks if len(task.turns) > 1]
    if protocol.single_turn and longer:
        raise UsageError(
            f"the row {protocol.name!r} takes single questions, prompt {longer[0]!r} has several "
            "turns"
        )
    lacking = [task.id for task in loaded.tasks if not task.references]
    if protocol.needs_references and lacking:
        raise UsageError(
            f"the row {protocol.name!r} compares with references, which {len(lacking)} prompts "
            f"lack, such as {lacking[0]!r}",
            hint=f"take the prompts {protocol.prompts}, or give each row of the file a reference",
        )


def read_disagreement(path: str | Path, loaded: Loaded) -> dict[str, float]:
    """How much is disagreed on each prompt, from lines of JSON: {"id": "a", "disagreement": 0.7}.

    Raises:
        UsageError: the file cannot be read, lacks a prompt or a number, has a prompt twice, or a
            number below 0.
    """
    known: dict[str, float] = {}
    for row in read_rows(path):
        name, value = str(row.get("id")), row.get("disagreement")
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            continue
        if name in known:
            raise UsageError(
                f"{path} has the prompt {name!r} twice", hint="give each prompt one line"
            )
        if value < 0:
            raise UsageError(
                f"{path} has a disagreement of {value:g} on the prompt {name!r}",
                hint="expected 0, where all agree, or more",
            )
        known[name] = float(value)
    for task in loaded.tasks:
        if task.id not in known:
            raise UsageError(
                f"{path} has no disagreement of the prompt {task.id!r}",
                hint='expected a line such as {"id": "a", "disagreement": 0.7} for each prompt',
            )
    return {task.id: known[task.id] for task in loaded.tasks}


def generate(
    protocol: Protocol,
    loaded: Loaded,
    methods: Sequence[Method],
    engine: Engine,
    reward: Reward,
    directory: str | Path,
    *,
    settings: Settings,
    resume: bool = False,
) -> Generator[BenchRow, None, None]:
    """The row's answers; see `run_bench`."""
    return run_bench(
        loaded,
        methods,
        engine,
        reward,
        directory,
        settings=settings,
        resume=resume,
        temperatures=protocol.temperatures,
    )


def read_answered(
    directory: str | Path,
    loaded: Loaded,
    baseline: str,
    judge: JudgeServer | None = None,
    disagreement: Mapping[str, float] | None = None,
) -> Answered:
    """What is there of a run: its answers, and what this judge has said of them; of what it was
    asked again, the last.

    Raises:
        UsageError: the folder holds no bench, or what is there cannot be read.
    """
    said: dict[str, list[dict[str, Any]]] = {}
    for file, fields in _JOURNALS.items():
        path = Path(directory) / file
        rows = read_rows(path, fields) if judge is not None and path.exists() else []
        said[file] = [row for row in rows if judge is not None and row["judge"] == judge.name]
    return Answered(
        loaded=loaded,
        rows=read_bench(directory)[1],
        baseline=baseline,
        judgements={
            file: list({_key(row): row for row in rows}.values()) for file, rows in said.items()
        },
        calls=total_calls(row for rows in said.values() for row in rows),
        disagreement=disagreement,
    )


def unasked(protocol: Protocol, answered: Answered) -> list[Question]:
    """What the judge has still to be asked, or asked again: of these questions no judgement is
    there that could be read.
    """
    done = {
        (file, _key({**row, "judge": None}))
        for file, rows in answered.judgements.items()
        for row in rows
        if row["error"] is None
    }
    return [one for one in protocol.questions(answered) if (one.file, _key(one.key)) not in done]


def ask_judge(
    protocol: Protocol, answered: Answered, judge: JudgeServer, directory: str | Path
) -> Iterator[Judgement]:
    """Ask what is `unasked`; each judgement is on the disk when it is yielded.

    Args:
        protocol: the row.
        answered: read with this judge, so that what it has said before is known.
        judge: is asked.
        directory: the run's.

    Raises:
        UsageError: the endpoint cannot be reached, or refuses the key or the model; or another
            process is writing to the folder.
    """
    directory = Path(directory)
    left = unasked(protocol, answered)
    with ExitStack() as stack:
        stack.enter_context(locked(directory))
        journals = {
            file: stack.enter_context(Journal(directory / file))
            for file in dict.fromkeys(question.file for question in left)
        }
        client = JudgeClient(judge, directory / "judge_cache")
        rows = client.ask_all([question.ask for question in left])
        for question, row in zip(left, rows, strict=True):
            journals[question.file].append(row)
            yield row


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row.get(name) for name in _KEY)


def conclude(
    protocol: Protocol, answered: Answered, settings: Settings, judge: JudgeServer | None
) -> RowOutcome:
    """The row's figures and all that belongs beside them."""
    methods = answered.methods
    chief = protocol.chief if protocol.chief in methods else methods[-1]
    figures = protocol.figures(answered)
    asked = {(one.file, _key(one.key)) for one in protocol.questions(answered)}
    judged = [
        row
        for file, rows in answered.judgements.items()
        for row in rows
        if (file, _key({**row, "judge": None})) in asked
    ]
    return RowOutcome(
        row=protocol.name,
        title=protocol.title,
        known=protocol.known,
        judge=judge.name if protocol.needs_judge and judge is not None else None,
        prompts=answered.loaded.source,
        num_prompts=len(answered.loaded.tasks),
        num_failed=sum(row["error"] is not None for row in answered.rows),
        methods=methods,
        baseline=answered.baseline,
        figures=sorted(figures, key=lambda figure: figure["method"] != chief),
        notes=protocol.notes(answered),
        differences=_differences(protocol, answered, settings),
        open_points=list(protocol.open_points),
        cost={
            method: cost_of(
                [row for row in answered.rows if row["method"] == method and not row["error"]]
            )
            for method in methods
        },
        num_judgements=len(judged),
        num_asked=sum(map(_was_asked, judged)),
        num_unread=sum(row["error"] is not None for row in judged),
        calls=answered.calls,
    )


def _was_asked(row: Judgement) -> bool:
    return row["error"] is not None or row["calls"]["requests"] + row["calls"]["cached"] > 0


def _differences(protocol: Protocol, answered: Answered, settings: Settings) -> list[str]:
    """What the run has other than the protocol."""
    own = (*METHODS_OWN, "memory", "seed", "strict")
    expected = Settings(**protocol.settings).to_dict()  # type: ignore[arg-type]
    given = settings.to_dict()
    found = [
        f"{name} is {json.dumps(given[name])}, not {json.dumps(value)}"
        for name, value in expected.items()
        if name not in own and given[name] != value
    ]
    if sorted(answered.methods) != sorted(protocol.methods):
        found.append(
            f"methods are {', '.join(answered.methods)}, not {', '.join(protocol.methods)}"
        )
    if len(answered.loaded.tasks) != protocol.num_prompts:
        found.append(f"prompts are {len(answered.loaded.tasks)}, not {protocol.num_prompts}")
    if protocol.prompts and answered.loaded.source != protocol.prompts:
        found.append(f"prompts are those of {answered.loaded.source}, not {protocol.prompts}")
    return found


def write_outcome(directory: str | Path, outcome: RowOutcome) -> None:
    """Write DIRECTORY/NAME.json.

    Raises:
        UsageError: the file cannot be written.
    """
    write_json(Path(directory) / f"{outcome['row']}.json", outcome)
