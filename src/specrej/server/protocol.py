"""OpenAI's bodies for /v1/chat/completions and /v1/completions, as functions on dicts.

    body = {"model": "smollm2", "messages": [...], "n": 2, "specrej": {"alpha": 0.5}}
    asked = parse_chat(body, Settings())

A field is honoured, asks for nothing (it has the value that OpenAI documents as its default, or
only labels the request), or is refused by name. `n` is the number of answers returned, the best
first; how many candidates they are chosen from, and all else that is ours, goes under `specrej`.
`answering` makes what comes back. No file, no server and no model here.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.messages import as_messages
from specrej.options import options_of
from specrej.registry import is_name, names
from specrej.settings import Settings
from specrej.types import Continuation, Prompt

SAMPLING = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "continue_final_message": "continue_final_message",
}
"""OpenAI's own fields that stand for a setting, by the names of bodies."""
CHAT_ONLY = ("max_completion_tokens", "continue_final_message")
"""Those of them that /v1/completions does not have."""
OWN = tuple(
    name for name in options_of(Settings) if name not in {*SAMPLING.values(), "policy", "strict"}
)
"""The settings that a body gives under `specrej`. A policy may be code, which a request never
names."""
CONSTRAINTS = ("json_schema", "regex", "grammar")
"""Settings of which one at most is given: what answers obey."""
RETURNABLE = ("rewards", "decisions", "candidates")
_HONOURED = {
    "chat": {"model", "messages", "n", "logprobs", "response_format", "specrej", *SAMPLING},
    "text": {"model", "prompt", "n", "response_format", "specrej", *SAMPLING} - {*CHAT_ONLY},
}
_LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
_NOTHING: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "store": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "verbosity": ("medium",),
}
"""Values that ask for nothing: OpenAI's documented defaults, and what says how tools are used
where there are none."""


class Beside(NamedTuple):
    """Fields that the caller honours, and checks, by itself."""

    fields: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Of those under `specrej`."""


_NOTHING_BESIDE = Beside()


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """What a body asks for.

    Attributes:
        kind: "chat" or "text": which endpoint was asked.
        model: as the body names it; whether that model is the one opened is for the caller to
            judge.
        prompt: a conversation ("chat") or a text, as `generate` takes them.
        settings: the defaults with what the body says otherwise.
        num_answers: the best so many are returned, where there are as many.
        has_logprobs: whether the tokens are returned with their log-probabilities.
        returned: what else is returned, of "rewards", "decisions" and "candidates".
    """

    kind: Literal["chat", "text"]
    model: str
    prompt: Prompt
    settings: Settings
    num_answers: int
    has_logprobs: bool
    returned: tuple[str, ...]


def parse_chat(
    body: object, defaults: Settings, beside: Beside = _NOTHING_BESIDE
) -> CompletionRequest:
    """What a body for /v1/chat/completions asks for.

    With `continue_final_message` the answer continues an assistant's message at the end. Without it
    there is none.

    Raises:
        UsageError: a field that cannot be honoured, or a value outside its range; names it.
        PromptError: no conversation, an empty one, or a part of it that is no text.
    """
    given = _checked(body, "chat", beside)
    messages = given.get("messages")
    if not isinstance(messages, list):
        raise PromptError(f"messages must be a list of messages, got {reprlib.repr(messages)}")
    return _parse(given, "chat", as_messages(messages), defaults, beside)


def parse_text(
    body: object, defaults: Settings, beside: Beside = _NOTHING_BESIDE
) -> CompletionRequest:
    """What a body for /v1/completions asks for.

    The prompt is continued as it stands, by a model with a chat template as well.

    Raises:
        UsageError: a field that cannot be honoured, or a value outside its range; names it.
        PromptError: the prompt is empty or no text.
    """
    given = _checked(body, "text", beside)
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        [prompt] = prompt
    if not isinstance(prompt, str):
        raise PromptError(
            f"prompt must be a text, got {reprlib.repr(prompt)}",
            hint="several prompts, or token ids, are several requests, each with one text",
        )
    as_messages(prompt)
    return _parse(given, "text", Continuation(prompt), defaults, beside)


ENDPOINTS = {"/v1/chat/completions": parse_chat, "/v1/completions": parse_text}
"""What reads the body of a request, by its path."""


def in_words_of(body: Mapping[str, Any], message: str) -> str:
    """A message with the body's name for the one setting that OpenAI calls otherwise."""
    fields = [name for name, option in SAMPLING.items() if option == "max_new_tokens"]
    return message.replace(
        "max_new_tokens", next((name for name in fields if name in body), fields[0])
    )


def _checked(body: object, kind: Literal["chat", "text"], beside: Beside) -> dict[str, Any]:
    """The fields that are given, each of them one to honour."""
    if not isinstance(body, Mapping):
        raise UsageError(f"a body must be an object, got {reprlib.repr(body)}")
    given = {
        name: value for name, value in body.items() if value is not None and name not in _LABELS
    }
    # Servers that continue messages want to hear as well that nothing is put before the answer.
    nothing = {
        **_NOTHING,
        "add_generation_prompt": (given.get("continue_final_message") is not True,),
    }
    asked = {
        name: value
        for name, value in given.items()
        if name not in beside.fields and value not in nothing.get(name, ())
    }
    for name, value in asked.items():
        if name not in _HONOURED[kind]:
            honoured = sorted({*_HONOURED[kind], *beside.fields})
            raise UsageError(
                f"{name} cannot be honoured, got {reprlib.repr(value)}",
                hint=f"leave it out; honoured are {', '.join(honoured)}",
            )
    return asked


def _parse(
    given: Mapping[str, Any],
    kind: Literal["chat", "text"],
    prompt: Prompt,
    defaults: Settings,
    beside: Beside,
) -> CompletionRequest:
    model, num_answers, has_logprobs = (
        given.get("model"),
        given.get("n", 1),
        given.get("logprobs", False),
    )
    if not isinstance(model, str) or not model:
        raise UsageError(f"model must be a text, got {reprlib.repr(model)}")
    if type(num_answers) is not int or num_answers < 1:
        raise UsageError(f"n must be a number of at least 1, got {reprlib.repr(num_answers)}")
    if not isinstance(has_logprobs, bool):
        raise UsageError(f"logprobs must be true or false, got {reprlib.repr(has_logprobs)}")
    own = _own_options(given.get("specrej", {}), beside)
    returned = _returned(own.pop("return", []))
    settings = _settings(given, own, defaults.common_to(prompt))
    settings.check(prompt)
    return CompletionRequest(
        kind=kind,
        model=model,
        prompt=prompt,
        num_answers=num_answers,
        has_logprobs=has_logprobs,
        returned=returned,
        settings=settings,
    )


def _settings(given: Mapping[str, Any], own: Mapping[str, Any], defaults: Settings) -> Settings:
    """The defaults with what a body says otherwise; what is wrong with a value is said by the
    body's name for it.
    """
    asked = {**_sampling(given), **own, **_constraint(given, own)}
    try:
        return replace(defaults, **asked)
    except UsageError as error:
        name, rest = re.findall(r"^(\w*)(.*)", str(error), re.DOTALL)[0]
        error.args = (in_words_of(given, f"specrej.{name}{rest}" if name in own else str(error)),)
        raise


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAI's own fields say, by the names of `Settings`."""
    limits = [given[name] for name in ("max_tokens", "max_completion_tokens") if name in given]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise UsageError(
            f"max_tokens and max_completion_tokens are one limit, got {limits[0]!r} and "
            f"{limits[1]!r}",
            hint="give max_completion_tokens alone",
        )
    options = {option: given[name] for name, option in SAMPLING.items() if name in given}
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    return options


def _constraint(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What answers obey, by the names of `Settings`: in place of what they do by default."""
    wanted = {name: own[name] for name in CONSTRAINTS if name in own}
    if "response_format" in given:
        if wanted:
            raise UsageError(
                f"response_format must be left out beside specrej.{next(iter(wanted))}",
                hint="answers obey one thing",
            )
        wanted = {"json_schema": _schema_of(given["response_format"])}
    return dict.fromkeys(CONSTRAINTS) | wanted if wanted else {}


def _schema_of(response_format: Any) -> dict[str, Any]:
    """The schema that a `response_format` asks for. Answers obey it whether it is strict or not."""
    match response_format:
        case {"type": "json_object", **others} if not others:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema, **labels}}:
            if response_format.keys() == {"type", "json_schema"} and _are_labels(labels):
                return dict(schema)
    raise UsageError(
        f"response_format cannot be honoured, got {reprlib.repr(response_format)}",
        hint="leave it out, or give text, json_object or json_schema, such as "
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": {...}}}',
    )


def _are_labels(given: Mapping[Any, Any]) -> bool:
    """Whether these are the fields that OpenAI has beside a schema."""
    kinds = {"name": str, "description": str, "strict": bool}
    return all(
        name in kinds and isinstance(value, kinds[name] | None) for name, value in given.items()
    )


def _own_options(own: object, beside: Beside) -> dict[str, Any]:
    if not isinstance(own, Mapping):
        raise UsageError(f"specrej must be an object, got {reprlib.repr(own)}")
    known = (*OWN, "return", *beside.own)
    for name in own:
        if name not in known:
            raise UnknownNameError("field of specrej", name, known)
    algorithm = own.get("algorithm")
    # On a command line it may be module:function as well; a request makes the server import
    # nothing.
    if isinstance(algorithm, str) and not is_name("algorithm", algorithm):
        raise UnknownNameError("algorithm", algorithm, names("algorithm"))
    return {
        name: value for name, value in own.items() if value is not None and name not in beside.own
    }


def _returned(wanted: object) -> tuple[str, ...]:
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise UsageError(f"return must be a list of names, got {reprlib.repr(wanted)}")
    for name in wanted:
        if name not in RETURNABLE:
            raise UnknownNameError("thing to return", name, RETURNABLE)
    return tuple(wanted)
