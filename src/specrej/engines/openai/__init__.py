"""Any server that speaks OpenAI's /v1/completions: vLLM, SGLang, llama.cpp, and others.

    engine = open_engine("smollm2", engine="openai:http://127.0.0.1:8000/v1")
    named = "openai:https://host/v1#served-name"
    engine = open_engine("org/model", engine=named, engine_args={"kv_tokens": 200_000})

The model says which tokenizer the server's model has; the name behind the "#" says which of the
server's models it is, where there are several. The server only has to continue texts: candidates
are asked for in chunks, survivors are sent again with what they have so far, and the server's
prefix cache makes that cheap. Where it gives token ids (vLLM and SGLang do, llama.cpp within its
log-probabilities), answers are continued as ids; otherwise as text. A connection that is closed
ends a request, so that nothing is generated for a candidate that nobody wants any more.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specrej.attention.layout import kv_numbers_of_config
from specrej.engines.openai.answers import Vocabulary
from specrej.engines.openai.engine import OpenAIEngine
from specrej.engines.openai.replies import Chunk
from specrej.engines.openai.server import CompletionsServer, Listed, Place, list_models
from specrej.engines.openai.shape import Shape
from specrej.engines.opening import EngineOptions
from specrej.errors import ModelError, UnknownNameError, UsageError, guess
from specrej.flops import flops_of_config
from specrej.hub.sources import load_codec, load_config, locate_model
from specrej.hub.tokenizers import TextCodec
from specrej.remote.services import ServiceOptions, key_from
from specrej.types import Continuation

__all__ = ["OpenAIEngine", "open_as_asked"]

_DEFAULTS: dict[str, Any] = {
    "chunk_tokens": 32,
    "kv_tokens": None,
    "concurrency": 64,
    "timeout_s": 300.0,
    "tries": 6,
    "key_env": None,
}
_KEY_VARIABLE = "OPENAI_API_KEY"
_PROBE = "Hello"
_BYTES_A_NUMBER = 2
_READ_AT_ONCE = 8192
"""Prompt tokens of one pass, which a server does not tell; more than most prompts have."""
_ENDLESS = 2**31
_MOST_LISTED = 20

_log = logging.getLogger("specrej")


def open_as_asked(model: str | Path, options: EngineOptions) -> OpenAIEngine:
    """See `specrej.engines.opening`.

    Raises:
        UsageError: no such URL or argument, the server wants another key, or has several models.
        UnknownNameError: nothing has the model's name.
        ModelError: the server has no completions, or the model no tokenizer that can be opened.
        EngineError: the server does not answer.
    """
    options.refuse("openai", "weights", "device")
    arguments = _arguments(options.arguments)
    url, _, served = options.address.partition("#")
    place, service = Place(url), _service(arguments)
    listed = _choose(list_models(place, service), served, place)
    server = CompletionsServer(place, service, listed.name, listed.owner)
    try:
        return _open(model, options.special_tokens, arguments, server, listed.context_tokens)
    except BaseException:
        server.close()
        raise


def _open(
    model: str | Path,
    special_tokens: str,
    arguments: Mapping[str, Any],
    server: CompletionsServer,
    context_tokens: int | None,
) -> OpenAIEngine:
    """The engine, when the server has answered."""
    source = locate_model(model)
    codec = load_codec(source, special_tokens)
    config = _config(source)
    vocabulary = Vocabulary(
        codec.tokenizer, _ends(source, config), getattr(config, "vocab_size", 0)
    )
    ids = codec.encode(Continuation(_PROBE))
    chunk = server.probe(ids, _PROBE)
    _warn_of_tokens(server, chunk, codec, vocabulary, model)
    shape = Shape(
        name=str(model),
        chunk_tokens=arguments["chunk_tokens"],
        bytes_per_token=1 if config is None else kv_numbers_of_config(config) * _BYTES_A_NUMBER,
        context_tokens=context_tokens
        or getattr(config, "max_position_embeddings", None)
        or _ENDLESS,
        flops=None if config is None else flops_of_config(config, _READ_AT_ONCE),
        capacity=server.capacity(),
        kv_tokens=arguments["kv_tokens"],
    )
    if not server.gives_ids:
        codec = replace(codec, has_ids=False)
    return OpenAIEngine(server, codec, vocabulary, shape, server.version())


def _warn_of_tokens(
    server: CompletionsServer,
    chunk: Chunk,
    codec: TextCodec,
    vocabulary: Vocabulary,
    model: str | Path,
) -> None:
    """Say where the server's tokens are not those of the model here."""
    if not server.gives_ids:
        _log.warning(
            "%s gives no token ids: answers are continued as text, which it may tokenize otherwise "
            "than it wrote it, so candidates can differ a little from those of one long request; "
            "and messages that spell special tokens become control tokens there",
            server.place.shown,
        )
    elif not vocabulary.is_like(chunk.text, chunk.ids or []):
        _log.warning(
            "%s writes %r for a token that is %r here: see that %s is the model that it serves",
            *(server.place.shown, chunk.text, codec.decode(chunk.ids or []), model),
        )


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in _DEFAULTS:
            hint = f"{guess(name, _DEFAULTS)} known: {', '.join(sorted(_DEFAULTS))}".lstrip()
            raise UsageError(f"the engine 'openai' has no argument {name!r}", hint=hint)
    arguments = {**_DEFAULTS, **given}
    for name in ("chunk_tokens", "kv_tokens", "concurrency", "tries"):
        value = arguments[name]
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and not (value is None and _DEFAULTS[name] is None):
            raise UsageError(
                f"the engine argument {name} must be a whole number of at least 1, got {value!r}"
            )
    if isinstance(arguments["timeout_s"], bool) or not isinstance(
        arguments["timeout_s"], (int, float)
    ):
        raise UsageError(
            f"the engine argument timeout_s must be a number, got {arguments['timeout_s']!r}"
        )
    return arguments


def _service(arguments: Mapping[str, Any]) -> ServiceOptions:
    variable = arguments["key_env"]
    return {
        "api_key": key_from(str(variable)) if variable else os.environ.get(_KEY_VARIABLE) or None,
        "timeout_s": arguments["timeout_s"],
        "concurrency": arguments["concurrency"],
        "tries": arguments["tries"],
    }


def _choose(listed: list[Listed] | None, asked: str, place: Place) -> Listed:
    """The model that is asked for, or the only one."""
    models = listed or []
    if asked:
        return next((model for model in models if model.name == asked), Listed(name=asked))
    if len(models) == 1:
        return models[0]
    if not models:
        raise UsageError(
            f"{place.shown} does not list its models",
            hint="see that the URL ends in /v1, or name the model: --engine openai:URL#MODEL",
        )
    names = ", ".join(model.name for model in models[:_MOST_LISTED])
    more = f" and {len(models) - _MOST_LISTED} more" if len(models) > _MOST_LISTED else ""
    raise UsageError(
        f"{place.shown} serves {len(models)} models: {names}{more}",
        hint="name one: --engine openai:URL#MODEL",
    )


def _config(source: str) -> Any:
    """None where only the tokenizer is at hand."""
    try:
        return load_config(source)
    except (ModelError, UnknownNameError):
        return None


def _ends(source: str, config: Any) -> set[int]:
    """Tokens that end answers by the model's own word."""
    from transformers import GenerationConfig

    given = [getattr(config, "eos_token_id", None)]
    with contextlib.suppress(OSError, ValueError):  # most tokenizers know it as well
        given.append(GenerationConfig.from_pretrained(source).eos_token_id)
    ends: set[int] = set()
    for one in given:
        ends.update(one if isinstance(one, list) else [] if one is None else [one])
    return ends
