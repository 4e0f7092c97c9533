"""Rewards that a server computes: our own JSON protocol, and vLLM's /classify and /pooling.

    HttpReward("http://localhost:9000/score", batch_size=16, timeout_s=30)
    VllmReward("http://localhost:8000", "org/reward-model", endpoint="classify")

    http:URL    http:URL#?batch_size=16&timeout_s=30&key_env=MY_KEY
    vllm-classify:URL#MODEL    vllm-pooling:URL#MODEL?output=1&partial=open

In a spec string the "#" ends the URL, which may have a "?" of its own; what follows a "#" never travels to a server.

The protocol. Each request is a POST of

    {"messages": [{"role": "user", "content": "..."}],
     "answers": [{"index": 3, "text": "...", "is_complete": false}]}

where `index` names the candidate and `is_complete` says that nothing will be added to the text. The reply holds one
finite number for each answer, in order, higher is better: `{"scores": [0.7]}`, and, where the server counts them, the
tokens it read: `{"scores": [0.7], "num_tokens": 412}`. A score may depend on the conversation and the answer, not on
what else is in the request.

All requests go through `specrej.remote`. A failure is a RewardError that names the candidate.
"""

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, Unpack, cast, get_args

from specrej.errors import RewardError, UsageError
from specrej.remote import Connections, Remote, RemoteError, RemoteService, ServiceOptions, key_from, without_secrets
from specrej.rewards.base import Scores
from specrej.rewards.conversations import Partial
from specrej.rewards.scores import check_count
from specrej.rewards.spec import parse_options
from specrej.types import Candidate, Message, Reuse

Endpoint = Literal["classify", "pooling"]

Ask = Callable[[Remote, Sequence[Message], Sequence[Candidate]], Coroutine[Any, Any, tuple[Sequence[Any], int]]]
"""Asks for the scores of a batch in one exchange: what the server gave, and the tokens it read.

Raises RemoteError where nothing came that can be read.
"""

SERVICE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout_s": float,
    "concurrency": int,
    "tries": int,
    "key_env": key_from,
}
"""Those of every reward that asks a service; `key_env` names the environment variable that holds the API key."""


class RemoteSession:
    """One prompt's candidates, scored by a service in batches, several at a time.

    Attributes:
        remote: what it asks through: the connections are its reward's.
    """

    def __init__(self, name: str, remote: Remote, messages: Sequence[Message], ask: Ask, batch_size: int = 1) -> None:
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
            RewardError: the service failed, or gave a wrong count or what is no finite number; names the candidate.
        """
        return self.remote.wait(self.ask_for(candidates, self.remote))

    def drop(self, indices: Sequence[int]) -> None:
        """Nothing is held for a candidate."""

    def close(self) -> None:
        """End what is under way for it."""
        self.remote.close()

    async def ask_for(self, candidates: Sequence[Candidate], remote: Remote) -> list[float]:
        """What `score` gives, through any connections to the service. The first failure ends what else is asked for."""
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
            raise RewardError(f"the reward {self._name!r} failed on {which}: {error}", hint=error.hint) from None
        self.num_tokens += num_tokens
        check_count(self._name, batch, len(values))
        return [self._number(value, candidate, remote) for value, candidate in zip(values, batch, strict=True)]

    def _number(self, value: Any, candidate: Candidate, remote: Remote) -> float:
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise RewardError(
            f"the reward {self._name!r} gave {remote.quote(json.dumps(value))} for candidate {candidate.index}, "
            "not a finite number"
        )


def score_concurrently(asked: Sequence[tuple[RemoteSession, Sequence[Candidate]]]) -> list[Scores]:
    """The scores of each prompt's candidates, or what it failed with, from requests of all prompts at once.

    The first prompt's `remote` carries them all, so that the service's limit holds for all together.
    """
    remote = asked[0][0].remote

    async def outcome(session: RemoteSession, candidates: Sequence[Candidate]) -> Scores:
        try:
            return await session.ask_for(candidates, remote)
        except Exception as error:
            return error

    return remote.run(outcome(session, candidates) for session, candidates in asked)


class HttpReward:
    """Scores by any server that speaks our protocol.

    Attributes:
        name: `http:URL`, without the URL's credentials and query.
        flops_per_token: None: what a server computes is not known.
    """

    flops_per_token: float | None = None

    def __init__(self, url: str, *, batch_size: int = 16, **options: Unpack[ServiceOptions]) -> None:
        """Nothing is sent yet.

        Args:
            url: posted to.
            batch_size: answers in a request.
            options: see `specrej.remote.RemoteService`.

        Raises:
            UsageError: no such URL, a value that cannot be honoured.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        self.name = f"http:{shown_url(url)}"
        self._service = RemoteService(url=url, **options)
        self._connections = Connections(self._service)
        self._batch_size = batch_size

    def open(self, messages: Sequence[Message]) -> RemoteSession:
        """Begin with a prompt."""
        remote = Remote(self._service, self._connections)
        return RemoteSession(self.name, remote, messages, _ask_http, self._batch_size)

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    score_together = staticmethod(score_concurrently)


async def _ask_http(
    remote: Remote, messages: Sequence[Message], candidates: Sequence[Candidate]
) -> tuple[list[Any], int]:
    answers = [
        {"index": candidate.index, "text": candidate.text, "is_complete": candidate.finish_reason is not None}
        for candidate in candidates
    ]
    reply = await remote.post({"messages": [dict(message) for message in messages], "answers": answers})
    match read_json(remote, reply.text):
        case {"scores": [*scores]} as given:
            return scores, num_tokens(given)
    raise RemoteError(f'its reply is not of the form {{"scores": [...]}}: {remote.quote(reply.text)}')


class VllmReward:
    """Scores by a reward model that vLLM serves; written for the API of vLLM 0.13 to 0.33.

    The conversation is sent as chat messages with the answer as the last turn, one request a candidate, and
    `use_activation` false asks for raw logits: the model's default activation saturates rewards. vLLM's prefix cache
    spares most of what it has read before, where the model pools the last token.

    Attributes:
        name: `vllm-classify:URL#MODEL` or `vllm-pooling:URL#MODEL`, without the URL's credentials and query.
        flops_per_token: None: what a server computes is not known.
    """

    flops_per_token: float | None = None

    def __init__(
        self,
        url: str,
        model: str,
        *,
        endpoint: Endpoint = "classify",
        output: int | None = None,
        partial: Partial = "closed",
        **options: Unpack[ServiceOptions],
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: the server's, up to the endpoint: "http://localhost:8000".
            model: its name there.
            endpoint: "classify" for sequence classifiers; "pooling" serves them too, and models that give numbers for
                each token, of which the last token's count.
            output: which of the model's numbers is the score, needed where there are several.
            partial: "closed" shows an unfinished answer as if it were complete, "open" without the template's end of
                the turn (`continue_final_message`, from vLLM 0.15 on; earlier ones ignore it).
            options: see `specrej.remote.RemoteService`.

        Raises:
            UsageError: no such URL, no model, a value that cannot be honoured.
        """
        if not model:
            raise UsageError(f"the reward 'vllm-{endpoint}' needs a model", hint=f"vllm-{endpoint}:URL#MODEL")
        if partial not in get_args(Partial):
            raise UsageError(f"partial must be 'closed' or 'open', got {partial!r}")
        if output is not None and output < 0:
            raise UsageError(f"output must be at least 0, got {output}")
        self.name = f"vllm-{endpoint}:{shown_url(url)}#{model}"
        self._service = RemoteService(url=f"{url.rstrip('/')}/{endpoint}", **options)
        self._connections = Connections(self._service)
        self._model, self._output, self._partial = model, output, partial
        self._read = _READERS[endpoint]

    def open(self, messages: Sequence[Message]) -> RemoteSession:
        """Begin with a prompt."""
        return RemoteSession(self.name, Remote(self._service, self._connections), messages, self._ask)

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    score_together = staticmethod(score_concurrently)

    async def _ask(
        self, remote: Remote, messages: Sequence[Message], candidates: Sequence[Candidate]
    ) -> tuple[list[Any], int]:
        (candidate,) = candidates
        turns = [*map(dict, messages), {"role": "assistant", "content": candidate.text}]
        body: dict[str, Any] = {"model": self._model, "messages": turns, "use_activation": False}
        if self._partial == "open" and candidate.finish_reason is None:
            body["continue_final_message"] = True
        reply = await remote.post(body)
        given = read_json(remote, reply.text)
        outputs = self._read(given)
        if outputs is None:
            raise RemoteError(f"its reply holds no scores: {remote.quote(reply.text)}")
        if self._output is None and len(outputs) != 1:
            raise RemoteError(f"the model gives {len(outputs)} numbers", hint="choose one with output=NUMBER")
        if (output := self._output or 0) >= len(outputs):
            raise RemoteError(f"the model gives {len(outputs)} numbers, none with the number {output}")
        return [outputs[output]], num_tokens(given.get("usage"), "prompt_tokens")


def _read_classify(reply: Mapping[str, Any]) -> list[Any] | None:
    match reply:
        case {"data": [{"probs": [*outputs]}]}:
            return outputs
    return None


def _read_pooling(reply: Mapping[str, Any]) -> list[Any] | None:
    """Numbers of the sequence, or of its last token."""
    match reply:
        case {"data": [{"data": [*_, [*outputs]]}]} | {"data": [{"data": [*outputs]}]}:
            return outputs
    return None


_READERS: dict[str, Callable[[Mapping[str, Any]], list[Any] | None]] = {
    "classify": _read_classify,
    "pooling": _read_pooling,
}


def parse_http(argument: str = "") -> HttpReward:
    """The reward of `http:URL` or `http:URL#?option=value&...`.

    Raises:
        UsageError: the argument is of another form; see also `HttpReward`.
    """
    url, _, rest = argument.partition("#")
    model, options = parse_options(rest, {"batch_size": int, **SERVICE_OPTIONS})
    if model:
        raise UsageError(f"{model!r} in the reward 'http:{argument}' is no option", hint="http:URL#?batch_size=16")
    return HttpReward(url, **as_keywords(options))


def parse_vllm_classify(argument: str = "") -> VllmReward:
    """The reward of `vllm-classify:URL#MODEL` or `vllm-classify:URL#MODEL?option=value&...`.

    Raises:
        UsageError: the argument is of another form; see also `VllmReward`.
    """
    return _parse_vllm(argument, "classify")


def parse_vllm_pooling(argument: str = "") -> VllmReward:
    """The reward of `vllm-pooling:URL#MODEL` or `vllm-pooling:URL#MODEL?option=value&...`.

    Raises:
        UsageError: the argument is of another form; see also `VllmReward`.
    """
    return _parse_vllm(argument, "pooling")


def _parse_vllm(argument: str, endpoint: Endpoint) -> VllmReward:
    url, _, rest = argument.partition("#")
    model, options = parse_options(rest, {"output": int, "partial": str, **SERVICE_OPTIONS})
    return VllmReward(url, model, endpoint=endpoint, **as_keywords(options))


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


def read_json(remote: Remote, text: str) -> dict[str, Any]:
    """A reply that is a JSON object; all its numbers are floats.

    Raises:
        RemoteError: it is none.
    """
    try:
        reply = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict):
        return cast("dict[str, Any]", reply)
    raise RemoteError(f"its reply is no JSON object: {remote.quote(text)}")


def num_tokens(counts: Any, name: str = "num_tokens") -> int:
    """What the server counted; 0 where it does not count."""
    match counts:
        case {**given} if isinstance(number := given.get(name), float) and 0 <= number < math.inf:
            return int(number)
    return 0
