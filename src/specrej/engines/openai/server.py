"""A server of completions: where it is, what it takes and gives, and one request to it.

    server = CompletionsServer(Place("http://127.0.0.1:8000/v1"), options, model="org/model")
    server.probe([1, 2, 3], "some text")  # one token, to see what it understands
    with server.connect() as remote:
        chunk = remote.wait(server.ask(remote, [1, 2, 3], num_tokens=32, seed=7, sampling=sampling))
    server.close()

What a server refuses of the first request is left out from then on; what it ignores in silence
cannot be seen.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from specrej.engines.base import check_bias, refuse_ways
from specrej.engines.constraints import refuse_constraint
from specrej.engines.openai.replies import (
    Capacity,
    Chunk,
    UnreadableReplyError,
    read_capacity,
    read_completion,
    read_models,
)
from specrej.errors import EngineError, ModelError, SamplingError, SpecrejError, UsageError
from specrej.remote.client import Connections, Remote, RemoteError
from specrej.remote.services import RemoteService, ServiceOptions, without_secrets
from specrej.types import SamplingParams

_REFUSED = (400, 422)
_LEAVE_OUT = {
    "top_k": "give --top-k 0",
    "min_p": "give --min-p 0",
    "repetition_penalty": "give --repetition-penalty 1",
    "repeat_penalty": "give --repetition-penalty 1",
    "frequency_penalty": "give --frequency-penalty 0",
    "presence_penalty": "give --presence-penalty 0",
    "logit_bias": "leave out logit_bias",
    "return_tokens_as_token_ids": "leave out top_logprobs, or give --engine torch or vllm",
    "ignore_eos": "do not ask for ignore_eos",
}
_FEATURES = {
    # What may be left out of a request, in this order, where a server refuses one without naming a
    # field.
    "extensions": ("top_k", "min_p", "repetition_penalty", "repeat_penalty"),
    "return_token_ids": ("return_token_ids",),
    "prompt_ids": ("prompt",),
    "logprobs": ("logprobs",),
    "seed": ("seed",),
}


class Place:
    """A server's URLs.

    Args:
        url: up to "/v1", which is added where there is no path.

    Raises:
        UsageError: it is no URL of a web server.
    """

    def __init__(self, url: str) -> None:
        self.shown = without_secrets(url)
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_url = False
        if not is_url:
            raise UsageError(
                f"the engine 'openai' needs the URL of a server, got {self.shown!r}",
                hint="--engine openai:http://127.0.0.1:8000/v1, or openai:URL#MODEL",
            )
        self._parts: SplitResult = parts
        self._path = parts.path.rstrip("/") or "/v1"
        self.shown = without_secrets(self.of(""))

    def of(self, endpoint: str) -> str:
        """Of an endpoint of the API."""
        return self._parts._replace(path=f"{self._path}{endpoint}").geturl()

    def beside(self, endpoint: str) -> str:
        """Of what lies beside the API, not in it."""
        return self._parts._replace(path=f"{self._path.removesuffix('/v1')}{endpoint}").geturl()


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A model, as a server lists it."""

    name: str
    owner: str = ""
    context_tokens: int | None = None


class CompletionsServer:
    """One model on one server.

    Args:
        place: where it is.
        options: of `specrej.remote.services.RemoteService`.
        model: what the server calls the model.
        owner: what the server calls itself.

    Attributes:
        takes: the features that a request may have.
        gives_ids: whether tokens come as ids; otherwise there is only text.
        gives_logprobs, gives_cached: what else replies tell.
    """

    def __init__(self, place: Place, options: ServiceOptions, model: str, owner: str = "") -> None:
        self.place, self.model = place, model
        self.takes = set(_FEATURES)
        self.gives_ids = self.gives_logprobs = self.gives_cached = False
        self._service = RemoteService(url=place.of("/completions"), **options)
        self._connections = Connections(self._service)
        self._penalty = "repeat_penalty" if owner == "llamacpp" else "repetition_penalty"

    def connect(self) -> Remote:
        """What asks it, to be closed by whoever asked for it; all share the connections."""
        return Remote(self._service, self._connections)

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def probe(self, ids: Sequence[int], text: str) -> Chunk:
        """Ask for one token, with fewer and fewer features until the server answers.

        Raises:
            UsageError: the server wants another API key.
            ModelError: it has no completions, or not of this model.
            EngineError: it does not answer.
        """
        off = SamplingParams(max_new_tokens=1, top_k=0)
        with self.connect() as remote:
            while True:
                prompt = list(ids) if "prompt_ids" in self.takes else text
                try:
                    chunk = remote.wait(
                        self.ask(remote, prompt, num_tokens=1, seed=1, sampling=off)
                    )
                except UnreadableReplyError as error:
                    raise ModelError(
                        f"{self.place.shown} has no completions that can be read: {error}"
                    ) from None
                except RemoteError as error:
                    self._give_way(error)
                    continue
                break
        self.gives_ids = chunk.ids is not None and "prompt_ids" in self.takes
        self.gives_logprobs = any(number is not None for number in chunk.logprobs)
        self.gives_cached = chunk.num_cached is not None
        return chunk

    def _give_way(self, error: RemoteError) -> None:
        """Leave out what the server refused; what it is not for us to leave out is raised."""
        if error.status not in _REFUSED or not self.takes:
            raise self.failure(error) from None
        named = {
            feature
            for feature in self.takes
            if any(field in str(error) for field in _FEATURES[feature])
        }
        self.takes -= named or {next(feature for feature in _FEATURES if feature in self.takes)}

    def failure(self, error: RemoteError, sampling: SamplingParams | None = None) -> SpecrejError:
        """What to tell a user of a request that failed."""
        where = self.place.shown
        if error.status in (401, 403):
            return UsageError(
                f"{where} wants another API key: {error}",
                hint="export OPENAI_API_KEY=..., or name a variable with --engine-args "
                '\'{"key_env": "NAME"}\'',
            )
        if error.status == 404:
            return ModelError(
                f"{where} has no /completions for the model {self.model!r}: {error}",
                hint="see that the URL ends in /v1, and that the server continues texts: one that "
                "only chats cannot",
            )
        if sampling is not None and error.status in _REFUSED:
            for field in self.extras(sampling):
                if field in str(error):
                    return SamplingError(
                        f"{where} does not take {field}: {error}", hint=_LEAVE_OUT[field]
                    )
        return EngineError(
            f"{where} does not answer: {error}", hint=error.hint or "see that the server runs"
        )

    def extras(self, sampling: SamplingParams) -> dict[str, Any]:
        """The sampling options that a server may lack, by the names that vLLM, SGLang and
        llama.cpp have for them.

        Those that are off are sent where the server takes them all the same: it may have defaults
        of its own.
        """
        is_off = SamplingParams(top_k=0)
        wanted = {
            "top_k": (sampling.top_k or -1, sampling.top_k == is_off.top_k),
            "min_p": (sampling.min_p, sampling.min_p == is_off.min_p),
            self._penalty: (
                sampling.repetition_penalty,
                sampling.repetition_penalty == is_off.repetition_penalty,
            ),
        }
        sent = {
            name: value
            for name, (value, off) in wanted.items()
            if "extensions" in self.takes or not off
        }
        asked = {
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logit_bias": {str(one): bias for one, bias in sampling.logit_bias},
            # The likeliest tokens stand in the reply by their texts else, which are not unique.
            "return_tokens_as_token_ids": bool(sampling.top_logprobs),
            "ignore_eos": sampling.ignore_eos,
        }
        return sent | {name: value for name, value in asked.items() if value}

    async def ask(
        self,
        remote: Remote,
        prompt: str | Sequence[int],
        *,
        num_tokens: int,
        seed: int,
        sampling: SamplingParams,
    ) -> Chunk:
        """Have a text or tokens continued.

        Raises:
            RemoteError: no reply, or a refusal.
            UnreadableReplyError: a reply that is no completion.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": sampling.divisor,
            "top_p": sampling.top_p,
            **self.extras(sampling),
        }
        features: Mapping[str, Any] = {
            "return_token_ids": True,
            "logprobs": max(sampling.top_logprobs, 1),
            "seed": seed,
        }
        body |= {name: value for name, value in features.items() if name in self.takes}
        reply = await remote.post(body)
        try:
            return read_completion(reply.text)
        except UnreadableReplyError as error:
            raise UnreadableReplyError(f"{error}: {remote.quote(reply.text)}") from None

    def check(self, sampling: SamplingParams, chunk_tokens: int, num_known: int) -> None:
        """See that answers in chunks can be drawn like this: penalties count the answer's tokens,
        and a server takes those of earlier chunks for the prompt's.

        Raises:
            SamplingError: they cannot.
        """
        check_bias(sampling, num_known)
        refuse_constraint(
            sampling, "openai", "it asks for an answer in chunks, and a server begins each anew"
        )
        if not self.gives_ids or sampling.max_new_tokens > chunk_tokens:
            hint = (
                "a server counts the tokens of one request: give --engine-args "
                f"'{{\"chunk_tokens\": {sampling.max_new_tokens}}}'"
                if self.gives_ids
                else "a server that gives token ids can"
            )
            refuse_ways("openai", sampling, ("frequency_penalty", "presence_penalty"), hint)
        if not (self.gives_ids and self.gives_logprobs):
            refuse_ways("openai", sampling, ("top_logprobs",))

    def capacity(self) -> Capacity | None:
        """Its KV cache as it is now; None where it does not say."""
        return read_capacity(self._look_up("/metrics"))

    def version(self) -> str:
        """As vLLM tells it; empty where a server does not."""
        try:
            version = json.loads(self._look_up("/version"))["version"]
        except (ValueError, KeyError, TypeError):
            return ""
        return version if isinstance(version, str) else ""

    def _look_up(self, endpoint: str) -> str:
        """What lies beside the API; empty where there is nothing."""
        with self.connect() as remote:
            try:
                reply = remote.wait(remote.get(self.place.beside(endpoint)))
            except RemoteError:
                return ""
        return reply.text


def list_models(place: Place, options: ServiceOptions) -> list[Listed] | None:
    """The models of a server; None where it does not list them.

    Raises:
        UsageError: the server wants another API key.
        EngineError: it does not answer.
    """
    server = CompletionsServer(place, options, "")
    with closing(server), server.connect() as remote:
        try:
            reply = remote.wait(remote.get(place.of("/models")))
        except RemoteError as error:
            if error.status == 404:
                return None
            raise server.failure(error) from None
    try:
        models = read_models(reply.text)
    except UnreadableReplyError:
        return None
    return [_listed(model) for model in models]


def _listed(model: Mapping[str, Any]) -> Listed:
    context = model.get("max_model_len")
    return Listed(
        name=model["id"],
        owner=str(model.get("owned_by") or ""),
        context_tokens=context if isinstance(context, int) and context > 0 else None,
    )
