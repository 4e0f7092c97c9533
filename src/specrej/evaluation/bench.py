"""Methods side by side on the same prompts: one engine, one memory budget, one seed a prompt,
everything inside the clock.

    methods = parse_methods(["best_of_n:8", "speculative_rejection:0.5"], settings)
    prompts = load_prompts("prompts.jsonl")
    for row in run_bench(prompts, methods, engine, reward, "out", settings=settings):
        print(row["prompt_id"], row["method"])

Each prompt runs all methods before the next prompt begins, and their order rotates from prompt to
prompt, so that a drift of the machine hits all alike. A prompt's seed is the same for all methods,
and no other prompt's (`Loaded.seeds`). Rows are on the disk when they are yielded.
`metrics` compares them.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from specrej.api import run_observed, run_one
from specrej.engines.base import Engine
from specrej.errors import SpecrejError, UnknownNameError, UsageError
from specrej.evaluation.accuracy import is_right
from specrej.evaluation.folder import METHODS_OWN, RESULTS, open_run
from specrej.evaluation.prompts import Loaded, Task
from specrej.evaluation.rows import BenchRow, CandidateRow, DecisionRow, RunInfo, TurnRow, UsageRow
from specrej.files.journal import Journal
from specrej.flops import flops_of
from specrej.messages import as_messages
from specrej.registry import is_name, names
from specrej.rewards.answers import extractor_of
from specrej.rewards.base import Reward, check_absolute
from specrej.search.calibrated import fingerprints
from specrej.search.choosing import rank
from specrej.search.events import Observer
from specrej.search.resolving import algorithm_of, policy_of
from specrej.settings import Settings
from specrej.types import Candidate, Decision, Prompt, Result
from specrej.version import __version__

NO_TEMPERATURES: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose an answer, by the name that rows carry."""

    name: str
    settings: Settings


_PARAMETERS = {
    "speculative_rejection": "alpha",
    "voted_rejection": "alpha",
    "deepconf": "alpha",
    "deepconf_online": "alpha",
    "threshold": "threshold",
}
"""The setting that stands before the N of a method's word."""


def parse_methods(words: Sequence[str], settings: Settings) -> list[Method]:
    """Methods as given on a command line: "best_of_n:N", or another algorithm in its place;
    "speculative_rejection:ALPHA" or "...:ALPHA:N", as for the others in `_PARAMETERS`;
    "module:function:N"; or "policy:" with a file or a name as `Settings.policy` has it.

    Without an N, one begins with as many candidates as the memory carries, or as its policy says.

    Raises:
        UsageError: a word that means no method, or the same method twice.
    """
    methods = [Method(word, _settings_of(word, settings)) for word in words]
    if not methods:
        raise UsageError(
            "a bench needs a method", hint="for example best_of_n:8,speculative_rejection:0.5"
        )
    if twice := [word for word in words if words.count(word) > 1]:
        raise UsageError(f"the method {twice[0]!r} is given twice")
    return methods


def _settings_of(word: str, settings: Settings) -> Settings:
    algorithm, *numbers = word.split(":")
    if algorithm == "policy" and numbers:
        # What decides for other methods is none of a policy's.
        usual = Settings()
        own = {name: getattr(usual, name) for name in ("alpha", "keep", "decide", "min_tokens")}
        settings = replace(settings, **own, policy=":".join(numbers))
        _ = policy_of(settings)  # a file is read before the model is opened
        return settings
    if not is_name("algorithm", algorithm):
        if len(numbers) < 2:  # else it is module:function:N
            raise UnknownNameError("method", algorithm, [*names("algorithm"), "policy"])
        algorithm, numbers = f"{algorithm}:{numbers[0]}", numbers[1:]
        _ = algorithm_of(replace(settings, algorithm=algorithm))  # before the model is opened
    try:
        if parameter := _PARAMETERS.get(algorithm):
            value, *rest = numbers
            n: int | str = int(*rest) if rest else "auto"
            said: dict[str, Any] = {parameter: float(value), "n": n}
            return replace(settings, algorithm=algorithm, **said)
        return replace(settings, algorithm=algorithm, n=_alone(numbers))
    except (TypeError, ValueError):
        raise UsageError(
            f"{word!r} is no method",
            hint="expected best_of_n:N, speculative_rejection:ALPHA, "
            "speculative_rejection:ALPHA:N, policy:FILE.json, module:function:N, or another of "
            "docs/algorithms.md",
        ) from None


def _alone(numbers: Sequence[str]) -> int:
    (n,) = numbers
    return int(n)


def describe_run(
    kind: Literal["bench", "trace"],
    loaded: Loaded,
    engine: Engine,
    reward: Reward,
    settings: Settings,
    methods: Sequence[str],
) -> RunInfo:
    """What is written to run.json: it tells one run from another.

    Raises:
        UsageError: rewards are relative: neither methods nor checkpoints could be compared.
    """
    check_absolute(reward, f"a {kind}")
    info = RunInfo(
        kind=kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompts={
            "source": loaded.source,
            "sha256": loaded.sha256,
            "num_prompts": len(loaded.tasks),
        },
        methods=list(methods),
        settings={
            name: value for name, value in settings.to_dict().items() if name not in METHODS_OWN
        }
        | {"model": engine.describe()["model"], "reward": reward.name},
        seeds="one for each prompt",
        engine=dict(engine.describe()),
        versions={"specrej": __version__, **engine.versions()},
    )
    named = [method.removeprefix("policy:") for method in methods]
    if files := fingerprints([settings.policy, *named]):
        info["policy_files"] = files
    return info


def run_bench(
    loaded: Loaded,
    methods: Sequence[Method],
    engine: Engine,
    reward: Reward,
    directory: str | Path,
    *,
    settings: Settings,
    resume: bool = False,
    observe: Observer | None = None,
    temperatures: Mapping[str, float] = NO_TEMPERATURES,
) -> Generator[BenchRow, None, None]:
    """Run every method on every prompt; yield each row when it is on the disk.

    A prompt on which a method fails is a row with the error. Rows that an earlier run has written
    are not run again, and not yielded.

    Args:
        loaded: the prompts.
        methods: see `parse_methods`.
        engine: decodes for all methods.
        reward: chooses for all methods.
        directory: gets run.json and results.jsonl.
        settings: what the methods have in common.
        resume: go on with the run that the directory holds, of these prompts or the first of them.
        observe: called with the events of each run: see `specrej.search.events`.
        temperatures: by category of the prompt, in place of that of the settings.

    Raises:
        UsageError: the directory holds something else, or cannot be written.
    """
    info = describe_run(
        "bench", loaded, engine, reward, settings, [method.name for method in methods]
    )
    if temperatures:
        info["temperatures"] = dict(temperatures)
    with (
        open_run(directory, info, resume=resume, sha256_of_first=loaded.sha256_of_first),
        Journal(Path(directory) / RESULTS, BenchRow.__required_keys__) as journal,
    ):
        done = {(row["prompt_id"], row["method"]) for row in journal.rows}
        seeds = loaded.seeds(settings.seed)
        _warm_up(engine, reward, settings)
        for number, task in enumerate(loaded.tasks):
            first = number % len(methods)
            for place, method in enumerate([*methods[first:], *methods[:first]]):
                if (task.id, method.name) not in done:
                    row = _run(
                        task,
                        _on_prompt(method, task, seeds[task.id], temperatures),
                        place,
                        engine,
                        reward,
                        observe,
                    )
                    journal.append(row)
                    yield row


def _on_prompt(method: Method, task: Task, seed: int, temperatures: Mapping[str, float]) -> Method:
    """The method with the task's seed, at the temperature of its category."""
    usual = method.settings.temperature
    temperature = temperatures.get(task.category or "", usual)
    return replace(method, settings=replace(method.settings, seed=seed, temperature=temperature))


def _warm_up(engine: Engine, reward: Reward, settings: Settings) -> None:
    """What is slow only the first time is not to be the cost of the method that comes first."""
    short = replace(settings, algorithm="best_of_n", n=2, max_new_tokens=8, memory=None)
    with contextlib.suppress(
        SpecrejError
    ):  # what fails here fails on the prompts as well, and is recorded there
        run_one(engine, reward, "Hello", short)


def _run(
    task: Task, method: Method, place: int, engine: Engine, reward: Reward, observe: Observer | None
) -> BenchRow:
    row = BenchRow(
        prompt_id=task.id,
        category=task.category,
        method=method.name,
        place=place,
        seed=method.settings.seed,
        turns=[],
        error=None,
    )
    try:
        memory = method.settings.memory_bytes or _default_memory(task, method.settings, engine)
        settings = replace(method.settings, memory=memory)
        prompt: Prompt = task.turns[0]
        for number, turn in enumerate(task.turns):
            if number:
                answered = row["turns"][-1]
                answer = {"role": "assistant", "content": answered["text"]}
                prompt = [*answered["messages"], answer, *as_messages(turn)]
            result = run_observed(engine, reward, prompt, settings, observe)
            row["turns"].append(_turn(prompt, result, engine, reward))
            if number < len(task.checks.answers) or (task.checks.instructions and not number):
                extract = extractor_of(settings.extract)
                row["turns"][-1]["is_right"] = is_right(task.checks, number, result.text, extract)
    except SpecrejError as error:
        row["error"] = {"kind": type(error).__name__, "message": str(error)}
    return row


def _default_memory(task: Task, settings: Settings, engine: Engine) -> int:
    """The engine's default for the longest conversation that this prompt can become: the same
    for all methods.
    """
    longest = sum(len(engine.encode(turn)) for turn in task.turns)
    longest += (len(task.turns) - 1) * settings.max_new_tokens
    return engine.default_budget(longest, settings.max_new_tokens)


def _turn(prompt: Prompt, result: Result, engine: Engine, reward: Reward) -> TurnRow:
    complete = [c for c in result.candidates if c.state == "complete"]
    lowest = max(complete, key=lambda c: rank(c.reward, c.index))
    assert result.reward is not None
    assert lowest.reward is not None
    return TurnRow(
        messages=as_messages(prompt),
        text=result.text,
        reward=result.reward,
        perplexity=result.best.perplexity,
        lowest_text=lowest.text,
        lowest_reward=lowest.reward,
        candidates=[_candidate(candidate) for candidate in result.candidates],
        decisions=[_decision(decision) for decision in result.decisions],
        usage=cast("UsageRow", result.usage.to_dict()),
        flops=flops_of(
            engine.flops,
            result.usage.prompt_tokens,
            [len(candidate.token_ids) for candidate in result.candidates],
            reward.flops_per_token,
            result.usage.reward_tokens,
            inherited=[candidate.num_inherited for candidate in result.candidates],
        ),
        memory_bytes=result.settings["memory_bytes"],
        best=result.best.index,
    )


def _candidate(candidate: Candidate) -> CandidateRow:
    row = CandidateRow(
        index=candidate.index,
        num_tokens=len(candidate.token_ids),
        state=candidate.state,
        finish_reason=candidate.finish_reason,
        perplexity=candidate.perplexity,
        rewards={str(decision): reward for decision, reward in candidate.rewards.items()},
    )
    if candidate.parent is not None:
        row |= {"parent": candidate.parent, "num_inherited": candidate.num_inherited}
    return row


def _decision(decision: Decision) -> DecisionRow:
    fields = asdict(decision) | {
        "scored": list(decision.scored),
        "rejected": list(decision.rejected),
    }
    return cast("DecisionRow", fields)
