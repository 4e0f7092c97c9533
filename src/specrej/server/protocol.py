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
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from specrej.errors import PromptError, UnknownNameError, UsageError
from specrej.options import options_of
from specrej.registry import is_name, names
from specrej.server import conversing
from specrej.server.constraining import constraint_in
from specrej.server.forcing import forced
from specrej.server.texts import text_prompts
from specrej.settings import Settings
from specrej.types import Prompt

SAMPLING = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "top_logprobs": "top_logprobs",
    "seed": "seed",
    "stop": "stop",
    "continue_final_message": "continue_final_message",
    "thinking_token_budget": "max_thinking_tokens",
}
"""Fields of OpenAI, and the last two of vLLM, that stand for a setting, by the names of bodies."""
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""How bodies call the length limit; the last is that of /v1/responses."""
CHAT_ONLY = (
    "max_completion_tokens",
    "top_logprobs",
    "continue_final_message",
    "thinking_token_budget",
)
"""Those of them that /v1/completions does not have."""
EITHER = ("top_k", "min_p", "repetition_penalty")
"""Settings that a body gives as vLLM's clients do, beside OpenAI's fields, or under `specrej`."""
MOST_LOGPROBS = 20
"""Of `logprobs` in /v1/completions, where OpenAI has 5."""
TEXT_ONLY = ("prompt", "suffix", "echo", "best_of")
"""Those of /v1/completions that stand for no setting."""
OWN = tuple(
    name for name in options_of(Settings) if name not in {*SAMPLING.values(), "policy", "strict"}
)
"""The settings that a body gives under `specrej`. A policy may be code, which a request never
names."""
RETURNABLE = ("rewards", "decisions", "candidates", "run")
_HONOURED = {
    "chat": {"model", "messages", "n", "logprobs", "response_format", "specrej"}
    | {*SAMPLING, *EITHER, *conversing.FIELDS},
    "text": {"model", "n", "logprobs", "response_format", "specrej"}
    | {*TEXT_ONLY, *SAMPLING, *EITHER} - {*CHAT_ONLY},
}
_LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
_NOTHING: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "store": (False,),
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
        kind: "chat", "text" or "response": which endpoint was asked.
        model: as the body names it; whether that model is the one opened is for the caller to
            judge.
        prompt: a conversation ("chat", "response") or a text, as `generate` takes them.
        others: more prompts, each answered by itself, in the same way.
        settings: the defaults with what the body says otherwise.
        num_answers: the best so many are returned, where there are as many.
        has_logprobs: whether the tokens are returned with their log-probabilities; with those of
            how many others is a setting.
        returned: what else is returned, of `RETURNABLE`.
        calls_one: whether an answer may call one function at most.
        must_call: whether it is the call of a function, and nothing else.
        repeated: fields of the body that a response says again.
        has_echo: whether answers begin with the prompt.
        decodes: whether there are to be answers. Without there is only the prompt's echo.
    """

    kind: Literal["chat", "text", "response"]
    model: str
    prompt: Prompt
    settings: Settings
    num_answers: int
    has_logprobs: bool
    returned: tuple[str, ...]
    calls_one: bool = False
    must_call: bool = False
    repeated: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Prompt, ...] = ()
    has_echo: bool = False
    decodes: bool = True

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, in the order in which they are answered."""
        return (self.prompt, *self.others)


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
    return _parse(given, "chat", conversing.prompt_of(messages, given), defaults, beside)


def parse_text(
    body: object, defaults: Settings, beside: Beside = _NOTHING_BESIDE
) -> CompletionRequest:
    """What a body for /v1/completions asks for.

    The prompt is continued as it stands, by a model with a chat template as well. It is a text or
    token ids, or a list of texts or of lists of token ids: then each is a prompt of its own.

    Raises:
        UsageError: a field that cannot be honoured, or a value outside its range; names it.
        PromptError: a prompt is empty, or neither a text nor token ids.
    """
    given = _checked(body, "text", beside)
    echo, is_echo_alone = _echo(given)
    if is_echo_alone:  # what is not decoded needs no length
        del given["max_tokens"]
    prompts = text_prompts(given.get("prompt"), _suffix(given))
    asked = _parse(given, "text", prompts[0], defaults, beside)
    return replace(
        asked,
        others=prompts[1:],
        has_echo=echo,
        decodes=not is_echo_alone,
        settings=_with_best_of(given, asked),
    )


ENDPOINTS = {"/v1/chat/completions": parse_chat, "/v1/completions": parse_text}
"""What reads the body of a request, by its path."""


def _echo(given: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the prompt is echoed, and whether nothing is asked for beside it."""
    echo = given.get("echo", False)
    if not isinstance(echo, bool):
        raise UsageError(f"echo must be true or false, got {reprlib.repr(echo)}")
    if not echo:
        return False, False
    if given.get("suffix"):
        raise UsageError(
            "echo cannot be honoured beside suffix", hint="the answer stands between two texts"
        )
    is_alone = type(given.get("max_tokens")) is int and given["max_tokens"] == 0
    if is_alone and given.get("n", 1) != 1:
        raise UsageError(
            f"n must be 1 where max_tokens is 0, got {reprlib.repr(given['n'])}",
            hint="without an answer there is the prompt's echo, once",
        )
    return True, is_alone


def _suffix(given: Mapping[str, Any]) -> str:
    suffix = given.get("suffix", "")
    if not isinstance(suffix, str):
        raise UsageError(f"suffix must be a text, got {reprlib.repr(suffix)}")
    return suffix


def _with_best_of(given: Mapping[str, Any], asked: CompletionRequest) -> Settings:
    """The settings, with `best_of` as the number of candidates, which OpenAI calls so."""
    best_of, own = given.get("best_of"), given.get("specrej", {}).get("n")
    if best_of is None:
        return asked.settings
    if type(best_of) is not int or best_of < asked.num_answers:
        raise UsageError(
            f"best_of must be a number of at least n, which is {asked.num_answers}, got "
            f"{reprlib.repr(best_of)}"
        )
    if own not in (None, best_of):
        raise UsageError(
            f"best_of and specrej.n are one number, got {best_of} and {reprlib.repr(own)}",
            hint="give one of them",
        )
    return replace(asked.settings, n=best_of)


def in_words_of(body: Mapping[str, Any], message: str) -> str:
    """A message with the body's names for the two settings that bodies call otherwise."""
    usual = "max_output_tokens" if "input" in body else LENGTHS[0]
    length = next((name for name in LENGTHS if name in body), usual)
    message = message.replace("max_thinking_tokens", "thinking_token_budget")
    return message.replace("max_new_tokens", length)


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
        "add_generation_prompt": (not conversing.is_begun(given),),
    }
    asked = {
        name: value
        for name, value in given.items()
        if name not in beside.fields and not _is_among(value, nothing.get(name, ()))
    }
    for name, value in asked.items():
        if name not in _HONOURED[kind]:
            honoured = sorted({*_HONOURED[kind], *beside.fields})
            raise UsageError(
                f"{name} cannot be honoured, got {reprlib.repr(value)}",
                hint=f"leave it out; honoured are {', '.join(honoured)}",
            )
    # What asks for nothing without tools may ask for something with them.
    about_tools = {name: given[name] for name in conversing.FIELDS if name in given}
    return {**asked, **about_tools}


def _is_among(value: object, values: tuple[Any, ...]) -> bool:
    """In JSON true is not 1, and false is not 0, though Python has them equal."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _parse(
    given: Mapping[str, Any],
    kind: Literal["chat", "text"],
    prompt: Prompt,
    defaults: Settings,
    beside: Beside,
) -> CompletionRequest:
    model, num_answers = given.get("model"), given.get("n", 1)
    if not isinstance(model, str) or not model:
        raise UsageError(f"model must be a text, got {reprlib.repr(model)}")
    if type(num_answers) is not int or num_answers < 1:
        raise UsageError(f"n must be a number of at least 1, got {reprlib.repr(num_answers)}")
    own = _own_options(given.get("specrej", {}), beside)
    returned = _returned(own.pop("return", []))
    has_logprobs, num_top = _logprobs(given, kind)
    defaults = replace(defaults.common_to(prompt), top_logprobs=num_top)
    settings = _settings(given, own, defaults)
    settings.check(prompt)
    return CompletionRequest(
        kind=kind,
        model=model,
        prompt=prompt,
        num_answers=num_answers,
        has_logprobs=has_logprobs,
        returned=returned,
        settings=settings,
        calls_one=conversing.calls_one(prompt, given),
        must_call=kind == "chat" and bool(forced(given)),
    )


def _logprobs(given: Mapping[str, Any], kind: Literal["chat", "text"]) -> tuple[bool, int]:
    """Whether log-probabilities are returned, and of how many tokens in each place; a chat says the
    number by itself.
    """
    wanted = given.get("logprobs")
    if kind == "chat":
        if not isinstance(wanted, bool | None):
            raise UsageError(f"logprobs must be true or false, got {reprlib.repr(wanted)}")
        if given.get("top_logprobs") and not wanted:
            raise UsageError("top_logprobs needs logprobs, which is not true")
        return bool(wanted), 0
    if wanted is not None and (type(wanted) is not int or not 0 <= wanted <= MOST_LOGPROBS):
        raise UsageError(
            f"logprobs must be a whole number from 0 to {MOST_LOGPROBS}, got {reprlib.repr(wanted)}"
        )
    return wanted is not None, wanted or 0


def _settings(given: Mapping[str, Any], own: Mapping[str, Any], defaults: Settings) -> Settings:
    """The defaults with what a body says otherwise; what is wrong with a value is said by the
    body's name for it.
    """
    sampling = _sampling(given)
    for name in EITHER:
        if name in sampling and own.get(name, sampling[name]) != sampling[name]:
            raise UsageError(
                f"{name} and specrej.{name} are one setting, got {reprlib.repr(sampling[name])} "
                f"and {reprlib.repr(own[name])}",
                hint="give one of them",
            )
    asked = {**sampling, **own, **constraint_in(given, own)}
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
    own = {name: given[name] for name in EITHER if name in given}
    if own.get("top_k") == -1:  # all, as vLLM's clients say
        own["top_k"] = 0
    return options | own


def _own_options(own: object, beside: Beside) -> dict[str, Any]:
    if not isinstance(own, Mapping):
        raise UsageError(f"specrej must be an object, got {reprlib.repr(own)}")
    known = (*OWN, "return", *beside.own)
    for name in own:
        if name not in known:
            raise UnknownNameError("field of specrej", name, known)
    # On a command line these may be module:function as well; a request makes the server import
    # nothing, and search for no pattern.
    for kind in ("algorithm", "extract"):
        if isinstance(name := own.get(kind), str) and not is_name(kind, name):
            raise UnknownNameError(kind, name, names(kind))
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
