"""Rewards that a server computes: our own JSON protocol, and vLLM's /classify and /pooling.

    HttpReward("http://localhost:9000/score", batch_size=16, timeout_s=30)
    VllmReward("http://localhost:8000", "org/reward-model", endpoint="classify")

    http:URL    http:URL#?batch_size=16&timeout_s=30&key_env=MY_KEY
    vllm-classify:URL#MODEL    vllm-pooling:URL#MODEL?output=1&partial=open

In a spec string the "#" ends the URL, which may have a "?" of its own; what follows a "#" never
travels to a server.

The protocol. Each request is a POST of

    {"messages": [{"role": "user", "content": "..."}],
     "answers": [{"index": 3, "text": "...", "is_complete": false}]}

where `index` names the candidate and `is_complete` says that nothing will be added to the text. The
reply holds one finite number for each answer, in order, higher is better: `{"scores": [0.7]}`, and,
where the server counts them, the tokens it read: `{"scores": [0.7], "num_tokens": 412}`. A score
may depend on the conversation and the answer, not on what else is in the request.

All requests go through `specrej.remote.client`. A failure is a RewardError that names the
candidate.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, cast, get_args

from specrej.errors import UsageError
from specrej.remote.client import Connections, Remote, RemoteError
from specrej.remote.services import RemoteService, ServiceOptions
from specrej.rewards.asking import (
    SERVICE_OPTIONS,
    RemoteSession,
    as_keywords,
    score_concurrently,
    shown_url,
)
from specrej.rewards.conversations import Partial
from specrej.rewards.spec import check_sizes, parse_options
from specrej.types import Candidate, Message

Endpoint = Literal["classify", "pooling"]


class HttpReward:
    """Scores by any server that speaks our protocol.

    Attributes:
        name: `http:URL`, without the URL's credentials and query.
        flops_per_token: None: what a server computes is not known.
    """

    flops_per_token: float | None = None

    def __init__(
        self, url: str, *, batch_size: int = 16, **options: Unpack[ServiceOptions]
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: posted to.
            batch_size: answers in a request.
            options: see `specrej.remote.services.RemoteService`.

        Raises:
            UsageError: no such URL, a value that cannot be honoured.
        """
        check_sizes(batch_size=batch_size)
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
        {
            "index": candidate.index,
            "text": candidate.text,
            "is_complete": candidate.finish_reason is not None,
        }
        for candidate in candidates
    ]
    reply = await remote.post(
        {"messages": [dict(message) for message in messages], "answers": answers}
    )
    match read_json(remote, reply.text):
        case {"scores": [*scores]} as given:
            return scores, num_tokens(given)
    raise RemoteError(
        f'its reply is not of the form {{"scores": [...]}}: {remote.quote(reply.text)}'
    )


class VllmReward:
    """Scores by a reward model that vLLM serves; written for the API of vLLM 0.13 to 0.33.

    The conversation is sent as chat messages with the answer as the last turn, one request a
    candidate. `use_activation` false asks for raw logits: the model's default activation saturates
    rewards. The prefix cache of vLLM spares most of what it has read before, where the model pools
    the last token.

    Attributes:
        name: `vllm-classify:URL#MODEL` or `vllm-pooling:URL#MODEL`, without the URL's credentials
            and query.
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
            endpoint: "classify" for sequence classifiers; "pooling" serves them too, and models
                that give numbers for each token, of which the last token's count.
            output: which of the model's numbers is the score, needed where there are several.
            partial: "closed" shows an unfinished answer as if it were complete, "open" without the
                template's end of the turn (`continue_final_message`, from vLLM 0.15 on; earlier
                ones ignore it).
            options: see `specrej.remote.services.RemoteService`.

        Raises:
            UsageError: no such URL, no model, a value that cannot be honoured.
        """
        if not model:
            raise UsageError(
                f"the reward 'vllm-{endpoint}' needs a model", hint=f"vllm-{endpoint}:URL#MODEL"
            )
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
        return RemoteSession(
            self.name, Remote(self._service, self._connections), messages, self._ask
        )

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
            raise RemoteError(
                f"the model gives {len(outputs)} numbers", hint="choose one with output=NUMBER"
            )
        if (output := self._output or 0) >= len(outputs):
            raise RemoteError(
                f"the model gives {len(outputs)} numbers, none with the number {output}"
            )
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
        raise UsageError(
            f"{model!r} in the reward 'http:{argument}' is no option",
            hint="http:URL#?batch_size=16",
        )
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
