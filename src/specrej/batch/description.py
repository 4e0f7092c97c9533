"""What makes a batch job the same job: it is written beside the output, and compared on resuming.

info = describe_job(requests, settings, 1, model="smollm2", reward="relevance")
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from specrej.batch.requests import BrokenRequest, Request
from specrej.engines.opening import installed_versions
from specrej.search.calibrated import fingerprints
from specrej.settings import Settings
from specrej.types import Conversation
from specrej.version import __version__


class RequestsInfo(TypedDict):
    """What is asked."""

    sha256: str
    """Of ids, conversations, and what rows set for themselves; whatever the file looks like."""
    num_rows: int


class JobInfo(TypedDict):
    """What makes a job the same job: all but `created` must be equal on resuming. A setting that an
    older version did not know counts as its default.

    What decides only the speed is left out: the memory that prompts share, how many are in flight,
        how many machines.
    """

    created: str
    settings: dict[str, Any]
    """See `specrej.settings.Settings`; rows in OpenAI's form may override them."""
    num_kept: int
    model: str
    engine: str
    engine_args: dict[str, Any]
    weights: str | None
    device: str | None
    special_tokens: str
    reward: str
    requests: RequestsInfo
    versions: dict[str, str]
    policy_files: NotRequired[dict[str, str]]
    """See `specrej.search.calibrated.fingerprints`."""
    budget_tokens: NotRequired[int]
    """See `specrej.batch.waves`; only where there is one."""


def describe_job(
    requests: Iterable[Request | BrokenRequest],
    settings: Settings,
    num_kept: int,
    *,
    model: str | Path,
    reward: str,
    engine: str = "torch",
    engine_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    device: str | None = None,
    special_tokens: str = "text",
    budget_tokens: int | None = None,
) -> JobInfo:
    """What is written beside the output: it tells one job from another. Model, engine and reward
    as the user says.
    """
    digest, num_rows, common = hashlib.sha256(), 0, settings.to_dict()
    for request in requests:
        digest.update(json.dumps(_asked(request, common), sort_keys=True).encode() + b"\n")
        num_rows += 1
    info = JobInfo(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings.to_dict(),
        num_kept=num_kept,
        model=str(model),
        engine=engine,
        engine_args=dict(engine_args or {}),
        weights=weights,
        device=device,
        special_tokens=special_tokens,
        reward=reward,
        requests=RequestsInfo(sha256=digest.hexdigest(), num_rows=num_rows),
        versions={"specrej": __version__, **installed_versions()},
    )
    if files := fingerprints([settings.policy]):
        info["policy_files"] = files
    if budget_tokens is not None:
        info["budget_tokens"] = budget_tokens
    return info


def _asked(request: Request | BrokenRequest, common: dict[str, Any]) -> list[Any]:
    """What decides a request's row beside the settings that all have in common."""
    if isinstance(request, BrokenRequest):
        return [request.id, request.form, str(request.error)]
    own = {
        name: value for name, value in request.settings.to_dict().items() if value != common[name]
    }
    wanted = request.completion
    shown = wanted and [wanted.kind, wanted.num_answers, wanted.has_logprobs, *wanted.returned]
    if shown and wanted and wanted.calls_one:
        shown.append("calls one")
    prompt: Any = request.prompt
    if isinstance(prompt, Conversation):
        prompt = asdict(prompt)
    return [request.id, prompt, own, shown]
