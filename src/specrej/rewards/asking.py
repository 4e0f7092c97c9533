"""What rewards that ask a service have in common: a session that asks in batches, and the options
of their specs.

session = RemoteSession(name, Remote(service, connections), messages, ask, batch_size=16)
score_concurrently([(session, candidates), (other_session, other_candidates)])
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from specrej.errors import RewardError, UsageError
from specrej.remote.client import Remote, RemoteError
from specrej.remote.services import key_from, without_secrets
from specrej.rewards.base import Scores
from specrej.rewards.scores import check_count
from specrej.types import Candidate, Message, Reuse

Ask = Callable[
    [Remote, Sequence[Message], Sequence[Candidate]], Coroutine[Any, Any, tuple[Sequence[Any], int]]
]
"""Asks for the scores of a batch in one exchange: what the server gave, and the tokens it read.

Raises RemoteError where nothing came that can be read.
"""

SERVICE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout_s": float,
    "concurrency": int,
    "tries": int,
    "key_env": key_from,
}
"""Those of every reward that asks a service; `key_env` names the environment variable that holds
the API key."""


class RemoteSession:
    """One prompt's candidates, scored by a service in batches, several at a time.

    Attributes:
        remote: what it asks through: the connections are its reward's.
    """

    def __init__(
        self, name: str, remote: Remote, messages: Sequence[Message], ask: Ask, batch_size: int = 1
    ) -> None:
        self.num_tokens = 0
        self.reuse: Reuse = "none"
        self.peak_kv_bytes = 0
        self.remote = remote
        self._name = name
        self._messages = messages
        self._ask = ask
        self._batch_size = batch_size

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """The service's number for each candidate.

        Raises:
            RewardError: the service failed, or gave a wrong count or what is no finite number;
                names the candidate.
        """
        return self.remote.wait(self.ask_for(candidates, self.remote))

    def drop(self, indices: Sequence[int]) -> None:
        """Nothing is held for a candidate."""

    def close(self) -> None:
        """End what is under way for it."""
        self.remote.close()

    async def ask_for(self, candidates: Sequence[Candidate], remote: Remote) -> list[float]:
        """What `score` gives, through any connections to the service. The first failure ends
        what else is asked for.
        """
        starts = range(0, len(candidates), self._batch_size)
        batches = [candidates[start : start + self._batch_size] for start in starts]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._score_batch(batch, remote)) for batch in batches]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [score for task in tasks for score in task.result()]

    async def _score_batch(self, batch: Sequence[Candidate], remote: Remote) -> list[float]:
        try:
            values, num_tokens = await self._ask(remote, self._messages, batch)
        except RemoteError as error:
            indices = [candidate.index for candidate in batch]
            which = f"candidate {indices[0]}" if len(indices) == 1 else f"candidates {indices}"
            raise RewardError(
                f"the reward {self._name!r} failed on {which}: {error}", hint=error.hint
            ) from None
        self.num_tokens += num_tokens
        check_count(self._name, batch, len(values))
        return [
            self._number(value, candidate, remote)
            for value, candidate in zip(values, batch, strict=True)
        ]

    def _number(self, value: Any, candidate: Candidate, remote: Remote) -> float:
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise RewardError(
            f"the reward {self._name!r} gave {remote.quote(json.dumps(value))} for candidate "
            f"{candidate.index}, "
            "not a finite number"
        )


def score_concurrently(asked: Sequence[tuple[RemoteSession, Sequence[Candidate]]]) -> list[Scores]:
    """The scores of each prompt's candidates, or what it failed with, from requests of all prompts
    at once.

    The first prompt's `remote` carries them all, so that the service's limit holds for all
    together.
    """
    remote = asked[0][0].remote

    async def outcome(session: RemoteSession, candidates: Sequence[Candidate]) -> Scores:
        try:
            return await session.ask_for(candidates, remote)
        except Exception as error:
            return error

    return remote.run(outcome(session, candidates) for session, candidates in asked)


def as_keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a spec string as arguments: the key in place of the variable that holds it."""
    return {"api_key" if name == "key_env" else name: value for name, value in options.items()}


def shown_url(url: str) -> str:
    """The URL without what may be secret: credentials and query.

    Raises:
        UsageError: it is no URL of a web server.
    """
    shown = without_secrets(url)
    if re.match(r"https?://[^/:]", shown) is None:
        raise UsageError(
            f"the reward needs a URL that begins with http:// or https://, got {shown!r}",
            hint="http:URL#?batch_size=16, vllm-classify:URL#MODEL, judge:URL#MODEL",
        )
    return shown
