"""A bench's answers as items for people to rate, blinded and shuffled, and the key to them.

    made = export_sheet("out", ["sheet.csv", "sheet.html"], seed=7)
    # sheet.csv and sheet.html are for raters; out/ratings/<sheet>.json is for nobody but you

An item is an answer to a prompt; of a conversation it is all of it. An answer that several methods
chose is one item, which belongs to all of them. A prompt on which one of the methods failed has no
item, so that all methods are rated on the same prompts. Such prompts are counted.

Nothing in a sheet tells of methods. Items are put in the order of hashes of their texts before the
seed shuffles them. So whoever knows the seed does not know the methods either.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from specrej.errors import UnknownNameError, UsageError
from specrej.evaluation.folder import read_bench
from specrej.evaluation.ratings.forms import FORMS, Item
from specrej.evaluation.rows import BenchRow, RunInfo
from specrej.files.journal import write_json, write_text

KEYS = "ratings"
"""The folder in a bench's folder that holds a key for each sheet."""
MOST_STEPS = 20
"""The page has a button for each score."""


class KeyItem(TypedDict):
    """What an item of a sheet is."""

    item: int
    prompt_id: str
    answer: str
    """A hash of prompt and answer: the same answer has the same one in all sheets of a folder."""
    methods: list[str]
    """Those that gave this answer, in the run's order."""


class SheetKey(TypedDict):
    """DIR/ratings/SHEET.json: it stays with the researcher."""

    sheet: str
    scale: list[int]
    """The lowest and the highest score."""
    seed: int
    methods: list[str]
    failed: dict[str, list[str]]
    """By method, the prompts that it failed on; they are in no sheet."""
    unfinished: list[str]
    """Prompts that not all of the methods have ended yet; neither are they."""
    items: list[KeyItem]


class MadeSheet(NamedTuple):
    """What an export came to."""

    key: Path
    num_items: int
    num_prompts: int
    num_answers: int
    """Of all methods; more than items where methods gave the same answer."""
    failed: dict[str, int]
    """By method, how many prompts it failed on; only methods that did."""
    num_left_out: int
    """Prompts that are in no sheet: a method failed, or has not ended them."""


def export_sheet(
    directory: str | Path,
    outputs: Sequence[str | Path],
    *,
    methods: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    scale: str = "1-10",
) -> MadeSheet:
    """Write a sheet for raters in one form or several, and its key in the bench's folder.

    The same arguments give the same sheet. Another seed gives the items in another order: a sheet
    for each rater, and all of them can be imported together.

    Args:
        directory: of a bench.
        outputs: files to write, each a .csv or an .html. Their folders are made.
        methods: whose answers are rated, as the run calls them; all where none is named.
        limit: only the first so many prompts.
        seed: of the order.
        scale: the lowest and the highest score, such as "1-10".

    Raises:
        UnknownNameError: the run has no such method.
        UsageError: there is no bench, nothing to rate, no such scale, a file of another form, or
            one that is there already, or cannot be written.
    """
    paths = [Path(output) for output in outputs]
    for path in paths:
        _check_output(path)
    low, high = parse_scale(scale)
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")
    info, rows = read_bench(directory)
    key, items = make_sheet(info, rows, methods, limit=limit, seed=seed, scale=(low, high))
    path = Path(directory) / KEYS / f"{key['sheet']}.json"
    # The key goes first: a sheet without one would be rated for nothing.
    write_json(path, key)
    for output in paths:
        write_text(output, FORMS[output.suffix](key["sheet"], (low, high), items))
    return MadeSheet(
        key=path,
        num_items=len(items),
        num_prompts=len({item["prompt_id"] for item in key["items"]}),
        num_answers=sum(len(item["methods"]) for item in key["items"]),
        failed={method: len(ids) for method, ids in key["failed"].items() if ids},
        num_left_out=len({*key["unfinished"], *(p for ids in key["failed"].values() for p in ids)}),
    )


def make_sheet(
    info: RunInfo,
    rows: Iterable[BenchRow],
    methods: Sequence[str] = (),
    *,
    limit: int | None = None,
    seed: int = 0,
    scale: tuple[int, int] = (1, 10),
) -> tuple[SheetKey, list[Item]]:
    """The key, and what a rater sees of the same items in the same order; see `export_sheet`.

    Raises:
        UnknownNameError: the run has no such method.
        UsageError: no prompt was answered by all of the methods.
    """
    for name in methods:
        if name not in info["methods"]:
            raise UnknownNameError("method", name, info["methods"])
    chosen = [name for name in info["methods"] if name in methods or not methods]
    by_prompt: dict[str, dict[str, BenchRow]] = {}
    for row in rows:
        if row["method"] in chosen:
            by_prompt.setdefault(row["prompt_id"], {})[row["method"]] = row
    failed = {
        method: [
            prompt_id
            for prompt_id, ended in by_prompt.items()
            if method in ended and ended[method]["error"] is not None
        ]
        for method in chosen
    }
    unfinished = [prompt_id for prompt_id, ended in by_prompt.items() if len(ended) < len(chosen)]
    left_out = {*unfinished, *(prompt_id for ids in failed.values() for prompt_id in ids)}
    rated = [prompt_id for prompt_id in by_prompt if prompt_id not in left_out][:limit]
    if not rated:
        raise UsageError(
            "there is nothing to rate: no prompt has answers of all of the methods",
            hint="choose among them by --methods, or end the run by bench --resume",
        )
    known, items = _items({prompt_id: by_prompt[prompt_id] for prompt_id in rated}, chosen)
    known.sort(key=lambda one: one["answer"])
    random.Random(seed).shuffle(known)
    for number, one in enumerate(known, 1):
        one["item"] = number
    made = [info["created"], chosen, scale, seed, [one["answer"] for one in known]]
    key: SheetKey = {
        # A letter first: a spreadsheet would read 12 digits, or 12e345678901, as a number.
        "sheet": f"s{_digest(made)[:12]}",
        "scale": list(scale),
        "seed": seed,
        "methods": chosen,
        "failed": failed,
        "unfinished": unfinished,
        "items": known,
    }
    return key, [items[one["answer"]]._replace(item=one["item"]) for one in known]


def _items(
    by_prompt: dict[str, dict[str, BenchRow]], methods: Sequence[str]
) -> tuple[list[KeyItem], dict[str, Item]]:
    """Each answer once, not numbered yet, with the methods that gave it, and its text by hash."""
    known: dict[str, KeyItem] = {}
    items: dict[str, Item] = {}
    for prompt_id, ended in by_prompt.items():
        for method in methods:
            turn = ended[method]["turns"][-1]
            answer = _digest([prompt_id, turn["messages"], turn["text"]])[:16]
            if answer not in known:
                known[answer] = {
                    "item": 0,
                    "prompt_id": prompt_id,
                    "answer": answer,
                    "methods": [],
                }
                items[answer] = Item(0, turn["messages"], turn["text"])
            known[answer]["methods"].append(method)
    return list(known.values()), items


def read_keys(directory: str | Path) -> dict[str, SheetKey]:
    """The keys of all sheets that were made from a bench, by sheet.

    Raises:
        UsageError: there is none, or one cannot be read.
    """
    keys: dict[str, SheetKey] = {}
    for path in sorted((Path(directory) / KEYS).glob("*.json")):
        try:
            key = cast("SheetKey", json.loads(path.read_text(encoding="utf-8")))
            keys[key["sheet"]] = key
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{path} is no key of a sheet, or cannot be read") from error
    if not keys:
        raise UsageError(
            f"{directory} has no sheet for raters",
            hint="give a folder that specrej ratings export has read",
        )
    return keys


def parse_scale(words: str) -> tuple[int, int]:
    """The lowest and the highest score of a scale such as "1-10".

    Raises:
        UsageError: it is none, or has more steps than `MOST_STEPS`.
    """
    found = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", words.strip())
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < high - low <= MOST_STEPS:
        raise UsageError(
            f"a scale must be two whole numbers, the lowest and the highest score, got {words!r}",
            hint=f"give one such as 1-10, 0-4 or 1-7, with at most {MOST_STEPS} steps",
        )
    return low, high


def _check_output(path: Path) -> None:
    if path.suffix not in FORMS:
        raise UsageError(
            f"a sheet is a {' or an '.join(FORMS)} file, got {path}",
            hint="end its name with one of them",
        )
    if path.exists():
        raise UsageError(
            f"{path} is there already, and may hold a rater's scores", hint="give another name"
        )


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
