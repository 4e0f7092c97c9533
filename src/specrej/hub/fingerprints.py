"""By what files in the cache that were made of others are known, and how they are written.

    key = fingerprint([directory / "config.json"], "2.13.0")      # 12 digits
    write_whole(directory / f"{key}.json", text)

Sizes and times tell whether a file is another one. Its content would have to be read for that,
which takes as long as opening a model.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def fingerprint(paths: Iterable[Path], *beside: Any) -> str:
    """Of the names, sizes and times of files, and of what else the result depends on, as JSON's
    types. A link is what it leads to; what is not there, or no file, does not count.
    """
    found = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in paths
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps([found, *beside]).encode()).hexdigest()[:12]


def write_whole(path: Path, text: str) -> None:
    """Write a small file that other processes see whole or not at all; of two that write it at
    once, the last one stays.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
