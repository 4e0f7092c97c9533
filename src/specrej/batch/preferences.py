"""From the answers of a batch job to training data in TRL's formats
(https://huggingface.co/docs/trl/dataset_formats).

    counts = write_pairs("out.jsonl", "pairs.jsonl", form="conversational", min_margin=0.5)

    # {"messages": [..., the best answer]}
    num_written, num_failed = write_sft("out.jsonl", "sft.jsonl")

A pair sets the best answer to a prompt against the finished one of the lowest reward. The batch
must have kept at least two answers a prompt, in plain rows: OpenAI's do not hold what was asked.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from specrej.errors import UnknownNameError, UsageError
from specrej.files.journal import read_rows, write_rows
from specrej.messages import as_messages, with_answer

PairForm = Literal["conversational", "standard"]
FORMS = ("conversational", "standard")


class PairCounts(NamedTuple):
    """Pairs, and rows without one, by the reason."""

    pairs: int
    failed: int
    """The prompt failed."""
    alone: int
    """Only one answer came to its end; one that the engine lost did not."""
    equal: int
    """Best and lowest answer have the same text or the same reward: nothing is preferred."""
    close: int
    """Their rewards differ by less than the margin."""
    unscored: int
    """One of the two has no reward."""


def to_pair(row: Mapping[str, Any], form: str = "conversational") -> dict[str, Any]:
    """The best answer of a row against its lowest, with the prompt apart ("explicit prompt").

    Args:
        row: of a batch job, with a `lowest` answer.
        form: "conversational": prompt and answers are messages, and the trainer applies the model's
            chat template. "standard": they are texts, which the trainer puts together as they are.

    Raises:
        UsageError: a conversation of several messages does not fit the standard form.
    """
    best, lowest = row["answers"][0], row["lowest"]
    if form == "conversational":
        messages = _messages(row)
        *prompt, chosen = with_answer(messages, best["text"])
        texts: dict[str, Any] = {
            "prompt": prompt,
            "chosen": [chosen],
            "rejected": with_answer(messages, lowest["text"])[-1:],
        }
    else:
        texts = {"prompt": _text(row), "chosen": best["text"], "rejected": lowest["text"]}
    return {
        **texts,
        "chosen_reward": best["reward"],
        "rejected_reward": lowest["reward"],
        "id": row["id"],
    }


def write_pairs(
    source: str | Path, output: str | Path, *, form: str = "conversational", min_margin: float = 0.0
) -> PairCounts:
    """Write a JSONL file of pairs, whole or not at all, in the order of the rows.

    Args:
        source: what a batch job wrote.
        output: the file to write; one that is there is replaced.
        form: see `to_pair`.
        min_margin: least difference of the two rewards; equal rewards make no pair in any case.

    Raises:
        UnknownNameError: no such form.
        UsageError: the source cannot be read or holds no answers to pair, or the output cannot be
            written.
    """
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    if not min_margin >= 0:
        raise UsageError(f"min_margin must be 0 or more, got {min_margin}")
    rows = _read(source, output)
    fates = [_fate(row, min_margin) for row in rows]
    pairs = (to_pair(row, form) for row, fate in zip(rows, fates, strict=True) if fate == "pairs")
    write_rows(output, pairs)
    return PairCounts(*(fates.count(name) for name in PairCounts._fields))


def write_sft(source: str | Path, output: str | Path) -> tuple[int, int]:
    """Write each conversation with its best answer, for fine-tuning on the best of n.

    Returns:
        How many were written, and how many prompts had failed.

    Raises:
        UsageError: as `write_pairs`.
    """
    rows = _read(source, output)
    written = list(sft(rows))
    write_rows(output, written)
    return len(written), len(rows) - len(written)


def sft(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For fine-tuning on the best of n: each conversation with its best answer. Prompts that failed
    are left out.

    Raises:
        UsageError: a row in OpenAI's form, which does not hold what was asked.
    """
    for row in rows:
        _check_plain(row)
        if row["error"] is None:
            yield {
                "messages": with_answer(_messages(row), row["text"]),
                "reward": row["reward"],
                "id": row["id"],
            }


def _read(source: str | Path, output: str | Path) -> list[dict[str, Any]]:
    if Path(output).resolve() == Path(source).resolve():
        raise UsageError(f"{output} holds the answers; give what is made of them a file of its own")
    return read_rows(source)


def _fate(row: Mapping[str, Any], min_margin: float) -> str:
    """What becomes of a row: a field of `PairCounts`."""
    _check_plain(row)
    if row["error"] is not None:
        return "failed"
    if "lowest" not in row:
        raise UsageError(
            f"the row {row['id']!r} holds one answer, a pair takes two",
            hint="run the batch again and keep at least 2 answers a prompt",
        )
    best, lowest = row["answers"][0], row["lowest"]
    if lowest is None or lowest["finish_reason"] == "lost":
        return "alone"
    if best["reward"] is None or lowest["reward"] is None:
        return "unscored"
    if best["text"] == lowest["text"] or best["reward"] == lowest["reward"]:
        return "equal"
    return "close" if best["reward"] - lowest["reward"] < min_margin else "pairs"


def _check_plain(row: Mapping[str, Any]) -> None:
    if "custom_id" in row:
        raise UsageError(
            f"the row {row['custom_id']!r} is in OpenAI's form, which does not hold what was asked",
            hint='give the batch plain rows, such as {"id": "a", "prompt": "Why is the sky blue?"}',
        )
    if not {"id", "answers", "error"} <= row.keys():
        raise UsageError(
            f"a row of a batch job holds id, answers and error, got {', '.join(row) or 'nothing'}"
        )


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return as_messages(row["prompt"] if row.get("prompt") is not None else row["messages"])


def _text(row: Mapping[str, Any]) -> str:
    """What was asked, as one text."""
    messages = _messages(row)
    if len(messages) > 1 or messages[0]["role"] != "user":
        raise UsageError(
            f"the row {row['id']!r} is a conversation, which is no text",
            hint="write the pairs in the conversational form",
        )
    return messages[0]["content"]
