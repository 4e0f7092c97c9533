"""What every judge here stands on: one OpenAI-compatible chat endpoint, a cache of its replies, and
what they cost.

    endpoint = JudgeServer(base_url="http://localhost:8000/v1", model="some-judge", api_key=None)
    client = JudgeClient(endpoint, "out/judge_cache")
    calls = total_calls([])
    # {"letter": "A", "prompt_tokens": 100, ...}
    reply = client.ask(messages, read_letter, calls, as_json=True)
    for row in client.ask_all(questions):      # each a function of the client, in their order
        print(row)

What is asked, and what a reply means, is each judge's own: `judge` (both orders), `judge_grade`
(one answer), `judge_scores` (two answers in one request), `judge_weighted` (log-probabilities).
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from specrej.errors import UsageError
from specrej.files.journal import write_json
from specrej.remote.client import Remote, RemoteError, Reply
from specrej.remote.services import RemoteService, without_secrets
from specrej.rewards.judge import OPENAI_URL, JsonChat, read_completion

Row = TypeVar("Row")
ReadReply = Callable[[str], dict[str, Any] | None]
"""What the body of a reply says, in JSON's types; None where it cannot be read."""


class CallsRow(TypedDict):
    """What a verdict cost."""

    requests: int
    """Sent in this run, repeated ones included."""
    cached: int
    """Replies that the cache held."""
    prompt_tokens: int
    """Of all replies, the cached ones included, as the endpoint counted them; 0 where it does
    not count."""
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeServer:
    """Where the judge is.

    Attributes:
        base_url: up to the version, such as "https://api.openai.com/v1".
        model: its name there.
        api_key: sent as a bearer token, never written or shown; None sends none.
        timeout_s: seconds from asking to the end of the reply.
        concurrency: prompts judged at a time, one request each.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]", self.base_url):
            raise UsageError(
                f"{without_secrets(self.base_url)!r} is no address of a judge",
                hint="expected http:// or https:// and a host, such as http://localhost:8000/v1",
            )
        self.service()

    @property
    def name(self) -> str:
        """What tells one judge from another: the model, and where it is unless that is OpenAI's
        own endpoint.
        """
        url = without_secrets(self.base_url).rstrip("/")
        return self.model if url == OPENAI_URL else f"{self.model} at {url}"

    def service(self) -> RemoteService:
        """What is posted to.

        Raises:
            UsageError: a value cannot be honoured.
        """
        return RemoteService(
            url=f"{self.base_url.rstrip('/')}/chat/completions",
            api_key=self.api_key,
            timeout_s=self.timeout_s,
            concurrency=self.concurrency,
        )


def total_calls(rows: Iterable[Mapping[str, Any]]) -> CallsRow:
    """What all judgements cost, of any judge."""
    calls = [row["calls"] for row in rows]
    return CallsRow(
        requests=sum(call["requests"] for call in calls),
        cached=sum(call["cached"] for call in calls),
        prompt_tokens=sum(call["prompt_tokens"] for call in calls),
        completion_tokens=sum(call["completion_tokens"] for call in calls),
    )


class JudgeClient:
    """Asks one endpoint. A reply that could be read is never asked for again, not even by two
    threads that have the same question at a time.

    Attributes:
        endpoint: where the judge is.
    """

    def __init__(self, endpoint: JudgeServer, cache: str | Path) -> None:
        self.endpoint = endpoint
        self._remote = Remote(endpoint.service())
        self._chat = JsonChat(endpoint.model)
        self._cache = Path(cache)
        self._asking: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def ask_all(self, questions: Sequence[Callable[["JudgeClient"], Row]]) -> Iterator[Row]:
        """What each question comes to, in their order, several at a time; the connections are
        closed at the end.
        """
        with self._remote, ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            try:
                yield from pool.map(lambda question: question(self), questions)
            finally:
                self._remote.stop()

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        read: ReadReply,
        calls: CallsRow,
        *,
        wanted: str = "verdict",
        as_json: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """What the judge's reply says; adds to `calls` what it cost.

        Args:
            messages: the request.
            read: what to make of a reply's body.
            calls: of the judgement that this is for.
            wanted: what `read` looks for, in an error's words.
            as_json: a JSON object is asked for, by `response_format` where the endpoint has that.
            fields: of the request, beside model, messages and a temperature of 0; not with
                `as_json`.

        Raises:
            RemoteError: no reply, or none that can be read in two tries.
            UsageError: the endpoint refuses every request, or the cache cannot be written.
        """
        request = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": 0,
            **fields,
        }
        asked = [self._remote.service.url, request]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        with self._lock:
            one_at_a_time = self._asking.setdefault(key, threading.Lock())
        with one_at_a_time:
            path = self._cache / f"{key}.json"
            if (kept := _kept(path)) is not None:
                calls["cached"] += 1
                _add_tokens(calls, kept)
                return kept
            reply = self._ask_twice(request, read, calls, wanted=wanted, as_json=as_json)
            write_json(path, reply)
            return reply

    def _ask_twice(
        self,
        request: dict[str, Any],
        read: ReadReply,
        calls: CallsRow,
        *,
        wanted: str,
        as_json: bool,
    ) -> dict[str, Any]:
        """What the first reply that can be read says, and its tokens; see `ask`."""
        for _ in range(2):
            body = self._fetch(request, calls, as_json=as_json)
            completion = read_completion(body)
            tokens = {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            }
            _add_tokens(calls, tokens)
            if (said := read(body)) is not None:
                return {**said, **tokens}
        quoted = self._remote.quote(completion.text or body)
        raise RemoteError(f"no {wanted} in the judge's reply {quoted}")

    def _fetch(self, request: dict[str, Any], calls: CallsRow, *, as_json: bool) -> str:
        """The body of a reply."""
        try:
            reply: Reply = self._remote.wait(
                self._chat.ask(self._remote, request["messages"])
                if as_json
                else self._remote.post(request)
            )
        except RemoteError as error:
            calls["requests"] += error.num_requests
            if error.is_common:
                raise UsageError(
                    f"the judge at {without_secrets(self.endpoint.base_url)!r} {error}",
                    hint=error.hint,
                ) from None
            raise
        calls["requests"] += reply.num_requests
        return reply.text


def _kept(path: Path) -> dict[str, Any] | None:
    """A reply of the cache: what it says, and its tokens. None where there is none, or a damaged
    one.
    """
    try:
        reply = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tokens = {"prompt_tokens", "completion_tokens"}
    return reply if isinstance(reply, dict) and reply.keys() > tokens else None


def _add_tokens(calls: CallsRow, reply: Mapping[str, Any]) -> None:
    calls["prompt_tokens"] += reply["prompt_tokens"]
    calls["completion_tokens"] += reply["completion_tokens"]
