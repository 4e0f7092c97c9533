"""What a user gives to a bench or a trace, as tasks: a JSONL file, stdin, or a well-known set by
name.

    loaded = load_prompts("prompts.jsonl", limit=10)     # or "-", or "mt_bench"
    for task in loaded.tasks:
        # answer it; then add the answer and as_messages(task.turns[1])
        conversation = as_messages(task.turns[0])
    for line, reason in loaded.broken:
        ...                                              # said, and left out; the rest runs

A row holds `prompt` (a text), `messages` (a conversation) or `turns` (a user's texts, asked one
after the other as in MT-Bench). It may hold `reference`, an answer (or one for each turn) that a
judge is to compare with, and what makes an answer right: see `accuracy`. Nothing is asked of a
model here.
"""

import codecs
import hashlib
import json
import math
import os
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.evaluation.accuracy import NOTHING_CHECKED, Checks, read_checks
from specrej.evaluation.prompt_sets import NAMED_SETS, download
from specrej.files.jsonlines import check_lines
from specrej.files.reading import check_characters, places, without_mark
from specrej.messages import as_messages
from specrej.types import Prompt

_FORM = 'one JSON object a line, such as {"id": "a", "prompt": "Why is the sky blue?"}'
_KINDS: dict[str, tuple[type[Any], str]] = {
    "prompt": (str, "a text"),
    "messages": (list, "a list of messages"),
    "turns": (list, "a list of texts"),
}
_IDS = ("id", "prompt_id", "question_id", "key")
_SEED_BITS = 53
"""A number that every reader of JSON keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One prompt.

    Attributes:
        id: unique among the tasks that were loaded.
        turns: what is asked: a text or a conversation, then the texts of the turns that follow. A
            first turn given as a text stays one: a model without a chat template takes nothing
                else.
        category: for example "writing"; None where the source has none.
        line: where it came from, counted from 1: a line of the file, or a row of the set.
        references: an answer to each turn that a judge compares with; none where the source has
            none. No part of what is asked.
        checks: what makes an answer right.
    """

    id: str
    turns: tuple[Prompt, ...]
    category: str | None
    line: int
    references: tuple[str, ...] = ()
    checks: Checks = NOTHING_CHECKED


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The tasks of one source.

    Attributes:
        source: as given.
        tasks: at least one, in the order of the source.
        broken: line and reason of what could not be taken.
        sha256: of the tasks' ids and messages, whatever the file looks like.
    """

    source: str
    tasks: tuple[Task, ...]
    broken: tuple[tuple[int, str], ...]
    sha256: str

    def sha256_of_first(self, num: int) -> str:
        """What `sha256` is where only the first `num` tasks are loaded."""
        return _hash(self.tasks[:num])

    def seeds(self, seed: int) -> dict[str, int]:
        """A seed for each task, by id, so that no two prompts share their random numbers.

        It depends on the run's seed and on what is asked, neither on ids nor on the other tasks.
        Of tasks that ask the same, each has a seed of its own, by their order.

        Args:
            seed: of the run.
        """
        found: dict[str, int] = {}
        num_before: Counter[str] = Counter()
        for task in self.tasks:
            asked = json.dumps([as_messages(turn) for turn in task.turns], sort_keys=True)
            content = json.dumps([seed, asked, num_before[asked]])
            num_before[asked] += 1
            digest = hashlib.sha256(content.encode()).digest()
            found[task.id] = int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
        return found


def load_prompts(source: str | Path, limit: int | None = None) -> Loaded:
    """The tasks of a JSONL file, of stdin ("-") or of a set in `NAMED_SETS`.

    Args:
        source: a path, "-", or a name.
        limit: take the first so many good rows and read no further; None takes all.

    Raises:
        UnknownNameError: neither a file nor a set.
        UsageError: the source cannot be read, or holds no good row.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    tasks: dict[str, Task] = {}
    broken: list[tuple[int, str]] = []
    for line, read in _rows(source):
        if len(tasks) == limit:
            break
        try:
            task = _to_task(read(), line)
            if task.id in tasks:
                raise PromptError(f"the id {task.id!r} is that of line {tasks[task.id].line}")
            tasks[task.id] = task
        except KeyError as error:
            broken.append((line, f"the set has no column {error}"))
        except (PromptError, ValueError, RecursionError) as error:
            broken.append((line, str(error)[:300]))
    if not tasks:
        first = "it is empty" if not broken else "line {}: {}".format(*broken[0])
        raise UsageError(
            f"no prompt can be read from {source!r}: {first}", hint=f"expected {_FORM}"
        )
    return Loaded(
        source=source,
        tasks=tuple(tasks.values()),
        broken=tuple(broken),
        sha256=_hash(tasks.values()),
    )


def _rows(source: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Each row's number and what reads it: a broken row is to fail on its own."""
    if source in NAMED_SETS:
        named = NAMED_SETS[source]
        for number, row in enumerate(download(source, named), 1):
            yield number, partial(named.to_row, row)
        return
    for number, line in number_lines(_lines(source), "stdin" if source == "-" else source):
        yield number, partial(parse_line, line)


def number_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, counted from 1; blank ones are left out.

    A byte-order mark may begin any line, of files that were put one behind the other.

    Raises:
        UsageError: the source, of this name, is not UTF-8 by its mark, or no JSON lines by its
            first ones.
    """

    def numbered() -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(lines, 1):
            text = (
                (without_mark(line, name) if number == 1 else line)
                .removeprefix(codecs.BOM_UTF8)
                .strip()
            )
            if text:
                yield number, text

    ahead, texts = tee(numbered())
    check_lines((text for _, text in ahead), name)
    del ahead  # which would keep all that is read from here on
    yield from texts


def _lines(source: str) -> Iterator[bytes]:
    """The lines of a file or of stdin."""
    if source == "-":
        yield from sys.stdin.buffer
        return
    hint = f"give a JSONL file, - for stdin, or one of {', '.join(NAMED_SETS)}"
    path = Path(source)
    if not path.suffix and os.sep not in source and not path.exists():
        raise UnknownNameError("prompt set", source, NAMED_SETS, hint=hint)
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UsageError(
            f"cannot read prompts from {source!r}: {error.strerror}", hint=hint
        ) from error


def parse_line(line: bytes) -> Any:
    """What a line holds.

    Raises:
        PromptError: it is no JSON, or JSON that Python cannot hold.
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise PromptError(f"no JSON: {error.msg} at column {error.colno}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of thousands of digits, a thousand brackets
        raise PromptError(f"cannot be read: {error}") from error


def _to_task(row: Any, line: int) -> Task:
    """A row as a task.

    Raises:
        PromptError: says what is wrong with the row.
    """
    if not isinstance(row, Mapping):
        raise PromptError(f"expected {_FORM}, got {reprlib.repr(row)}")
    name = _given(row)
    value = row[name]
    category = row.get("category")
    if not isinstance(category, str | None):
        raise PromptError(f"category must be a text, got {reprlib.repr(category)}")
    turns = tuple(value) if name == "turns" else (value,)
    if not turns or not (name == "messages" or all(isinstance(turn, str) for turn in turns)):
        raise PromptError(f"turns must be a list of texts, got {reprlib.repr(value)}")
    messages = [as_messages(turn) for turn in turns]
    if messages[0][-1]["role"] == "assistant":
        raise PromptError("the conversation ends in an answer, expected a question")
    task_id = read_id(row, line)
    references = _references(row.get("reference"))
    check_writable(
        {"id": task_id, "category": category, name: list(turns) if name == "turns" else value}
    )
    return Task(
        id=task_id,
        turns=turns,
        category=category,
        line=line,
        references=references,
        checks=read_checks(row),
    )


def _references(given: Any) -> tuple[str, ...]:
    """A text is that of one turn; lists of nothing but empty texts hold none."""
    listed = [given] if isinstance(given, str) else given or []
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise PromptError(f"reference must be a text or a list of texts, got {reprlib.repr(given)}")
    check_characters(listed, "reference")
    return tuple(listed) if any(listed) else ()


def _given(row: Mapping[str, Any]) -> str:
    """The one field that holds what is asked."""
    given = [name for name in _KINDS if row.get(name) is not None]
    if len(given) != 1:
        raise PromptError(
            f"give one of prompt, messages and turns, got {' and '.join(given) or 'none of them'}"
        )
    [name] = given
    kind, words = _KINDS[name]
    if not isinstance(row[name], kind):
        raise PromptError(f"{name} must be {words}, got {reprlib.repr(row[name])}")
    return name


def read_id(row: Mapping[str, Any], line: int) -> str:
    """The id that a row gives under one of several names; the line's number where it gives none.

    Raises:
        PromptError: it is no text and no whole number, or holds half a surrogate pair.
    """
    name = next((name for name in _IDS if row.get(name) is not None), "")
    given = row[name] if name else line
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        raise PromptError(f"an id must be a text or a whole number, got {reprlib.repr(given)}")
    check_characters(given, name)
    return str(given)


def check_writable(content: object, name: str = "") -> None:
    r"""See that a file can take what JSON could spell: half a character ("\ud83d"), or 1e999.

    Raises:
        PromptError: it cannot; names the field.
    """
    check_characters(content, name)
    for one, where in places(content, name):
        if isinstance(one, float) and not math.isfinite(one):
            raise PromptError(f"{where} must be a finite number, got {one}")


def _hash(tasks: Iterable[Task]) -> str:
    content = [[task.id, [as_messages(turn) for turn in task.turns]] for task in tasks]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
