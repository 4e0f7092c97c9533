r"""A bench's answers in the formats of other evaluators.

alpaca_eval (https://github.com/tatsu-lab/alpaca_eval) compares two methods by a judge of its own:

    specrej export out --method speculative_rejection:0.5 --output method.json
    specrej export out --method best_of_n:120 --output baseline.json
    pip install alpaca-eval
    export OPENAI_API_KEY=...
    alpaca_eval --model_outputs method.json --reference_outputs baseline.json

Without --reference_outputs it compares with its own reference, on its own 805 questions (the prompt
set alpaca_eval).

FastChat (https://github.com/lm-sys/FastChat, fastchat/llm_judge) grades answers to MT-Bench (the
set mt_bench):

    specrej export out --to mt_bench --method speculative_rejection:0.5 \
        --output data/mt_bench/model_answer/sr.jsonl
    python gen_judgment.py --model-list sr
    python show_result.py --model-list sr

A prompt on which the method failed has empty answers: it stays in the denominator.

Both need more than pip brings: docs/measuring.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.prompts import Task
from specrej.evaluation.rows import BenchRow
from specrej.files.journal import write_json, write_rows
from specrej.messages import as_messages

FORMATS = ("alpaca_eval", "mt_bench")


class AlpacaOutput(TypedDict):
    """One entry of alpaca_eval's model_outputs.json."""

    instruction: str
    output: str
    generator: str
    dataset: str


class Choice(TypedDict):
    """One attempt at a question: the answers turn by turn."""

    index: int
    turns: list[str]


class MtBenchAnswer(TypedDict):
    """One line of FastChat's model_answer."""

    question_id: int | str
    answer_id: str
    model_id: str
    choices: list[Choice]


def to_alpaca_eval(
    rows: Sequence[BenchRow], method: str, tasks: Iterable[Task] = ()
) -> list[AlpacaOutput]:
    """The answers of one method, in the order of its rows. The row's category is the entry's
    dataset.

    Args:
        rows: a bench's rows, of all methods: a question is found in any row that was answered.
        method: as the rows call it.
        tasks: the prompts, needed only where all methods failed on one.

    Raises:
        UnknownNameError: no row is of the method.
        UsageError: a prompt has several turns or messages, or no row says what was asked.
    """
    asked = {task.id: [as_messages(turn) for turn in task.turns] for task in tasks}
    for row in rows:
        if len(row["turns"]) > len(asked.get(row["prompt_id"], [])):
            asked[row["prompt_id"]] = [turn["messages"] for turn in row["turns"]]
    return [
        AlpacaOutput(
            instruction=_instruction(row["prompt_id"], asked),
            output="" if row["error"] else row["turns"][0]["text"],
            generator=method,
            dataset=row["category"] or "",
        )
        for row in _rows_of(rows, method)
    ]


def to_mt_bench(rows: Sequence[BenchRow], method: str, model_id: str) -> list[MtBenchAnswer]:
    """The answers of one method, as many turns each as the longest conversation of the rows.

    Args:
        rows: a bench's rows.
        method: as the rows call it.
        model_id: what FastChat is to call it.

    Raises:
        UnknownNameError: no row is of the method.
    """
    chosen = _rows_of(rows, method)
    num_turns = max(1, *(len(row["turns"]) for row in rows))
    return [
        MtBenchAnswer(
            question_id=_question_id(row["prompt_id"]),
            answer_id=f"{model_id}-{row['prompt_id']}",
            model_id=model_id,
            choices=[Choice(index=0, turns=_texts(row, num_turns))],
        )
        for row in chosen
    ]


class Exported(NamedTuple):
    """What an export came to."""

    answers: int
    failed: int
    """Of these; the method failed there, and the answer is empty."""
    flattened: str
    """What the bench holds and the format does not, in words; "" where nothing was left out."""


def export(
    path: str | Path, rows: Sequence[BenchRow], method: str, to: str, tasks: Iterable[Task] = ()
) -> Exported:
    """Write a method's answers in the format of `FORMATS` that `to` names. The file's folder is
    made.

    Raises:
        UnknownNameError: no row is of the method, or the format is not known.
        UsageError: the answers do not fit the format, or the file cannot be written.
    """
    if to == "alpaca_eval":
        outputs = to_alpaca_eval(rows, method, tasks)
        write_alpaca_eval(path, outputs)
        flattened = _flattened_outputs(outputs)
    elif to == "mt_bench":
        write_mt_bench(path, to_mt_bench(rows, method, Path(path).stem))
        flattened = _flattened_answers(_rows_of(rows, method))
    else:
        raise UnknownNameError("format", to, FORMATS)
    chosen = _rows_of(rows, method)
    return Exported(len(chosen), sum(row["error"] is not None for row in chosen), flattened)


def _flattened_outputs(outputs: Sequence[AlpacaOutput]) -> str:
    """What alpaca_eval has no place for."""
    told = "ids, which alpaca_eval does not have"
    num_again = len(outputs) - len({output["instruction"] for output in outputs})
    if num_again:
        told += f"; {num_again} ask what another does, and alpaca_eval judges all pairs of those"
    return told


def _flattened_answers(rows: Sequence[BenchRow]) -> str:
    """What FastChat's format has no place for."""
    answered = [row for row in rows if row["error"] is None]
    most = max((len(row["turns"]) for row in rows), default=0)
    counts = {
        "began with messages before the question, which FastChat takes from a file of its own": sum(
            len(row["turns"][0]["messages"]) > 1 for row in answered
        ),
        "had fewer turns than others, and got empty ones": sum(
            len(row["turns"]) < most for row in answered
        ),
        "had a category": sum(bool(row["category"]) for row in rows),
    }
    return "; ".join(f"{count} {words}" for words, count in counts.items() if count)


def write_alpaca_eval(path: str | Path, outputs: Sequence[AlpacaOutput]) -> None:
    """Write model_outputs.json, whole or not at all. The file's folder is made.

    Raises:
        UsageError: the file cannot be written.
    """
    write_json(path, outputs)


def write_mt_bench(path: str | Path, answers: Sequence[MtBenchAnswer]) -> None:
    """Write a model's answers, whole or not at all. The file's folder is made.

    Raises:
        UsageError: the file cannot be written.
    """
    write_rows(path, answers)


def _rows_of(rows: Sequence[BenchRow], method: str) -> list[BenchRow]:
    chosen = [row for row in rows if row["method"] == method]
    if not chosen:
        raise UnknownNameError("method", method, {row["method"] for row in rows})
    return chosen


def _question_id(prompt_id: str) -> int | str:
    """FastChat's ids are numbers; one that a number would spell otherwise ("007") stays a text."""
    number = int(prompt_id) if prompt_id.isdecimal() else None
    return number if number is not None and str(number) == prompt_id else prompt_id


def _instruction(prompt_id: str, asked: Mapping[str, list[list[dict[str, str]]]]) -> str:
    if prompt_id not in asked:
        raise UsageError(
            f"no row says what prompt {prompt_id!r} asks: all methods failed on it",
            hint="give the prompts as well",
        )
    first, *later = asked[prompt_id]
    if later or len(first) > 1:
        raise UsageError(
            f"alpaca_eval takes single questions, prompt {prompt_id!r} is a conversation",
            hint="export it for MT-Bench, or judge it here",
        )
    return first[0]["content"]


def _texts(row: BenchRow, num_turns: int) -> list[str]:
    """An answer a turn; the ones that a failed row has are left out as well, for its
    conversation has no end.
    """
    texts = [] if row["error"] else [turn["text"] for turn in row["turns"]]
    return texts + [""] * (num_turns - len(texts))
