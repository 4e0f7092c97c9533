"""A batch job on the fake engine: in this process, or in one of its own that can be killed.

rows = run_job(requests, output, resume=True)
python tests/jobs.py IN.jsonl OUT.jsonl [SECONDS A STEP]       # goes on with what is there
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fakes import FakeEngine, FakeReward
from specrej.batch.description import describe_job
from specrej.batch.job import FinishedRequest, local_rows, read_all, run_batch
from specrej.batch.output import open_output
from specrej.batch.rows import row_id
from specrej.engines.base import Token
from specrej.files.journal import read_rows
from specrej.rewards.base import Reward
from specrej.search.pool import Pool
from specrej.settings import Settings

SETTINGS = Settings(memory="3KiB", max_new_tokens=24, min_tokens=6, seed=5)
TOTAL_BYTES = 8 << 10


class SlowEngine(FakeEngine):
    """Takes so many seconds for each step."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        time.sleep(self._seconds)
        return super().step(limits)


def plain(number: int) -> dict[str, Any]:
    return {"id": f"p{number}", "prompt": f"Question {number}?"}


def openai(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {number}?"}]
    given = {"model": "bytes", "messages": messages, **body}
    return {
        "custom_id": f"o{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": given,
    }


def write_requests(path: Path, rows: Iterable[Any]) -> Path:
    """A row that is a text is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def run_job(
    source: Path,
    output: Path,
    *,
    resume: bool = False,
    settings: Settings = SETTINGS,
    num_kept: int = 2,
    engine: FakeEngine | None = None,
    reward: Reward | None = None,
    in_flight: int = 4,
) -> list[FinishedRequest]:
    """Run a job to its end; what was run now."""
    engine = engine or FakeEngine()
    requests = read_all(str(source), settings, num_kept, "bytes")
    job = describe_job(requests, settings, num_kept, model="bytes", reward="fake")
    rows_of = local_rows(engine, reward or FakeReward(), Pool(TOTAL_BYTES), in_flight)
    try:
        with (
            open_output(output, job, resume=resume) as there,
            closing(run_batch(requests, rows_of, there)) as ended,
        ):
            return list(ended)
    finally:
        assert not engine.groups


def without_seconds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as lines, in the order of their ids, without what was measured: seconds, and how far KV
    blocks grew.

    A block grows as far as the memory lets it that prompts in flight share, so its peak depends on
    who ran beside it.
    """
    return [json.dumps(_unmeasured(row), ensure_ascii=False) for row in sorted(rows, key=row_id)]


def rows_in(output: Path) -> list[str]:
    return without_seconds(read_rows(output))


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        measured = {
            "seconds",
            "peak_kv_bytes",
            "shared_prompt_tokens",
            *(key for key in value if key.endswith("_s")),
        }
        return {key: _unmeasured(own) for key, own in value.items() if key not in measured}
    return [_unmeasured(own) for own in value] if isinstance(value, list) else value


if __name__ == "__main__":
    run_job(
        Path(sys.argv[1]), Path(sys.argv[2]), resume=True, engine=SlowEngine(float(sys.argv[3]))
    )
