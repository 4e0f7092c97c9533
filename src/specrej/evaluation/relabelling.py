"""Traces with another reward: the candidates that were recorded, scored as a live run would have
scored them.

    codec = load_codec(locate_model(read_info(source)["engine"]["model"]))
    for step in relabel(source, reward, codec.detokenizer, directory):
        print(step.num_done, step.num_tasks, step.error)

Rejecting nobody, a recorded run's candidates do not depend on its reward. So nothing is generated:
tokens, texts, log-probabilities and hidden states stay as they are. The reward is asked for what it
would have been asked for: one session a prompt, and at each decision of the recorded run the same
candidates, in the same order, on their text at that length. What comes out is the trace that a live
run with this reward would have left, but for the seconds.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from specrej.errors import SpecrejError, UsageError
from specrej.evaluation.folder import open_run, read_info
from specrej.evaluation.recording import RecordedPrompt, lost, reward_columns, write_table
from specrej.evaluation.replay import ReplayedDecision, Replayer
from specrej.evaluation.rows import RunInfo
from specrej.evaluation.trace import (
    FAILURES,
    METADATA,
    Trace,
    failure_row,
    load_failures,
    load_file,
    read_table,
    trace_files,
)
from specrej.files.journal import Journal
from specrej.messages import as_messages
from specrej.rewards.base import Reward, check_absolute
from specrej.search.clock import Clock
from specrej.search.rewarding import PromptReward
from specrej.search.scoring import ask
from specrej.search.stopping import AnswerText
from specrej.types import Candidate, Detokenizer, FinishReason, Prompt, Usage

AnswerReaders = Callable[[Prompt], Detokenizer]
"""What reads an answer to a prompt, as the engine of the trace does."""


def relabel(
    source: str | Path,
    reward: Reward,
    detokenizer: AnswerReaders,
    directory: str | Path,
    *,
    resume: bool = False,
) -> Generator[RecordedPrompt, None, None]:
    """Score every trace that the directory does not hold yet; yield when it is on the disk.

    Prompts that failed when they were recorded have failed here as well. A prompt on which the
    reward fails has a line in failures.jsonl.

    Args:
        source: a folder of traces, of which nothing is changed.
        reward: scores.
        detokenizer: of the model that was recorded.
        directory: gets run.json, a Parquet file for each trace, and failures.jsonl.
        resume: go on with the run that the directory holds, with traces that came since as well.

    Raises:
        UsageError: `source` is no folder of traces; rewards are relative; the directory holds
            something else, or cannot be written.
    """
    check_absolute(reward, "a trace")
    directory, paths = Path(directory), trace_files(source)
    info = _describe(source, reward)
    with open_run(directory, info, resume=resume), Journal(directory / FAILURES) as journal:
        failed = {row["prompt_id"] for row in journal.rows}
        for row in load_failures(source):
            if row["prompt_id"] not in failed:
                journal.append(row)
        left = [path for path in paths if not (directory / path.name).exists()]
        for num_done, path in enumerate(left, len(paths) - len(left) + 1):
            trace = load_file(path)
            if trace.prompt_id in failed:
                continue
            error = _relabel(trace, reward, detokenizer, directory / path.name)
            if error is not None:
                journal.append(failure_row(trace.prompt_id, trace.settings["seed"], error))
            yield RecordedPrompt(num_done, len(paths), trace.prompt_id, error)


def _describe(source: str | Path, reward: Reward) -> RunInfo:
    """What run.json says: the run that was recorded, with this reward."""
    info = read_info(source)
    return RunInfo(
        **info
        | {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {**info["settings"], "reward": reward.name},
            "relabelled": {
                "reward": str(info["settings"]["reward"]),
                "created": info["created"],
            },
        }
    )


def _relabel(
    trace: Trace, reward: Reward, detokenizer: AnswerReaders, path: Path
) -> SpecrejError | None:
    """Write the trace with its new rewards, or say why there is none."""
    usage = _generating(trace)
    try:
        decisions = Replayer(trace).recorded()
        candidates = _score(trace, decisions, reward, detokenizer, usage)
    except SpecrejError as error:
        return error
    table = read_table(trace.path)
    scored_at = [decision.num_tokens for decision in decisions]
    columns = reward_columns(candidates, scored_at, trace.checkpoints)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    about = json.loads(table.schema.metadata[METADATA])
    about["settings"]["reward"] = reward.name
    about |= {"reward_flops_per_token": reward.flops_per_token, "usage": usage.to_dict()}
    write_table(path, table.replace_schema_metadata({METADATA: json.dumps(about)}))
    return None


def _generating(trace: Trace) -> Usage:
    """What the recorded run cost without its reward."""
    names = {field.name for field in fields(Usage) if not field.name.startswith("reward_")}
    return Usage(**{name: value for name, value in trace.usage.items() if name in names})


def _score(
    trace: Trace,
    decisions: Sequence[ReplayedDecision],
    reward: Reward,
    detokenizer: AnswerReaders,
    usage: Usage,
) -> list[Candidate]:
    """The complete candidates, with their rewards by decision; the reward's cost goes to `usage`.

    Raises:
        RewardError: the reward failed.
        DeviceMemoryError: it filtered a candidate.
        UsageError: the tokenizer does not give the texts that were recorded.
    """
    clock = Clock(usage)
    asked = PromptReward(reward, as_messages(trace.messages), usage, clock)
    answers = [_Answer(trace, index, detokenizer) for index in range(trace.num_candidates)]
    try:
        asked.open()
        for number, decision in enumerate(decisions):
            batch = [answers[index].at(decision.num_tokens) for index in decision.scored]
            [(given, seconds)] = ask([asked.to_score(batch)])
            clock.add("reward_s", seconds)
            scores = asked.checked(batch, given)
            if min(scores) == float("-inf"):
                raise lost({"filter"})
            for candidate, score in zip(batch, scores, strict=True):
                candidate.rewards[number] = score
    finally:
        asked.close()
    return [answer.candidate for answer in answers]


class _Answer:
    """One candidate of a trace, as it grew."""

    def __init__(self, trace: Trace, index: int, detokenizer: AnswerReaders) -> None:
        self.candidate = Candidate(index)
        self._trace = trace
        self._text = AnswerText(detokenizer(trace.messages), trace.settings["stop"])

    def at(self, num_tokens: int) -> Candidate:
        """The candidate with so many tokens, or complete where it has no more.

        Raises:
            UsageError: complete, its text is not the one that was recorded.
        """
        candidate, trace, index = self.candidate, self._trace, self.candidate.index
        candidate.token_ids = trace.token_ids[index][:num_tokens].tolist()
        candidate.logprobs = trace.logprobs[index][:num_tokens].tolist()
        self._text.read(candidate.token_ids)
        candidate.text = self._text.text
        if num_tokens >= trace.lengths[index]:
            if candidate.text != trace.texts[index]:
                raise UsageError(
                    f"the tokenizer of {trace.settings['model']!r} does not give the text that "
                    f"was recorded of candidate {index}",
                    hint="relabel where the model is that was recorded",
                )
            candidate.state = "complete"
            candidate.finish_reason = cast("FinishReason", trace.finish_reasons[index])
        return candidate
