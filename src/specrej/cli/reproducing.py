"""The steps that `specrej reproduce NAME` and `specrej reproduce paper` have in common: prompts,
options, answers, judgements.

settings = generate_answers(protocol, loaded, given, words, Path("out"), resume=False)
answered = judge_answers(protocol, loaded, words[0], server, None, Path("out"))
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specrej.cli.options import note_greedy, open_given, settings_of, stdout_for_results
from specrej.errors import UsageError

if TYPE_CHECKING:
    from specrej.evaluation.judge_client import JudgeServer
    from specrej.evaluation.prompts import Loaded
    from specrej.evaluation.reproduce.protocol import Answered, Protocol
    from specrej.settings import Settings


def judge_of(model: str | None, url: str, variable: str, concurrency: int) -> "JudgeServer | None":
    """The judge; None where no model is named."""
    from specrej.evaluation.judge_client import JudgeServer

    if model is None:
        return None
    return JudgeServer(
        base_url=url, model=model, api_key=os.environ.get(variable), concurrency=concurrency
    )


def prompts_of(name: str, protocol: "Protocol", prompts: str | None, limit: int | None) -> "Loaded":
    """The prompts of what is called so; what is left out of a file is said."""
    from specrej.cli import display
    from specrej.evaluation.prompts import load_prompts

    source = prompts or protocol.prompts
    if source is None:
        raise UsageError(
            f"the prompts of the row {name!r} are no set that can be loaded",
            hint="give a JSONL file by --prompts",
        )
    loaded = load_prompts(source, protocol.num_prompts if limit is None else limit)
    for line, reason in loaded.broken:
        display.print_note(f"line {line} is left out: {reason}")
    return loaded


def with_protocol(protocol: "Protocol", given: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The options, those that the user did not give as the protocol has them.

    Raises:
        UsageError: another reward where the protocol has one of its own.
    """
    own = {**given, **{key: v for key, v in protocol.settings.items() if key not in asked}}
    if protocol.own_reward is not None:
        own["reward"] = protocol.own_reward.format(model=given["model"])
        if "reward" in asked and given["reward"] != own["reward"]:
            raise UsageError(
                f"the row {protocol.name!r} has a reward of its own, {own['reward']!r}, got "
                f"{given['reward']!r}",
                hint="leave --reward out",
            )
    return own


def disagreement_of(path: Path | None, loaded: "Loaded") -> dict[str, float] | None:
    """The numbers of a user's file, if there is one."""
    from specrej.evaluation.reproduce.running import read_disagreement

    return None if path is None else read_disagreement(path, loaded)


def generate_answers(
    protocol: "Protocol",
    loaded: "Loaded",
    given: dict[str, Any],
    words: list[str],
    output: Path,
    *,
    resume: bool,
) -> "Settings":
    """All answers; the settings that they have in common."""
    from specrej.cli.progress import RowProgress, follow_rows
    from specrej.evaluation.bench import parse_methods
    from specrej.evaluation.folder import check_free, count_rows
    from specrej.evaluation.reproduce.running import generate

    settings = settings_of(given)
    note_greedy(settings)
    methods = parse_methods(words, settings)
    check_free(output, resume=resume)
    total, num_before = len(methods) * len(loaded.tasks), count_rows(output) if resume else 0
    with (
        stdout_for_results(),
        RowProgress(total=total, unit="rows", num_done=num_before) as progress,
        open_given(given, [method.settings for method in methods]) as (engine, reward),
    ):
        progress.begin()
        run = generate(
            protocol, loaded, methods, engine, reward, output, settings=settings, resume=resume
        )
        follow_rows(run, progress)
    return settings


def judge_answers(
    protocol: "Protocol",
    loaded: "Loaded",
    baseline: str,
    server: "JudgeServer | None",
    known: dict[str, float] | None,
    output: Path,
) -> "Answered":
    """The answers with all that the judge says of them."""
    from specrej.cli.progress import RowProgress
    from specrej.evaluation.reproduce.running import ask_judge, read_answered, unasked

    answered = read_answered(output, loaded, baseline, server, known)
    if server is None:
        return answered
    total, num_left = len(protocol.questions(answered)), len(unasked(protocol, answered))
    with RowProgress(total=total, unit="judgements", num_done=total - num_left) as progress:
        for judgement in ask_judge(protocol, answered, server, output):
            progress.advance(judgement["prompt_id"], judgement["error"])
    return read_answered(output, loaded, baseline, server, known)


def say_lines(titled: Mapping[str, Sequence[str]]) -> None:
    """Each line behind what it is."""
    for title, lines in titled.items():
        for one in lines:
            typer.echo(f"{title}: {one}")
