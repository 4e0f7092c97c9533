"""What was written before settings were added to those of 2026-11-27, which were these."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from specrej.settings import Settings

KNOWN = {
    *("algorithm", "n", "alpha", "keep", "decide", "min_tokens", "memory", "max_new_tokens"),
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed"),
}


def older(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, without the settings that were added since."""
    added = Settings().to_dict().keys() - KNOWN
    settings = {name: value for name, value in info["settings"].items() if name not in added}
    return {**info, "settings": settings}


def make_older(path: Path) -> None:
    """Rewrite a JSON file (run.json, or that of a job), or a trace, with no other settings."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"specrej"])
        pq.write_table(table.replace_schema_metadata({"specrej": json.dumps(older(about))}), path)
    else:
        path.write_text(json.dumps(older(json.loads(path.read_text()))))
