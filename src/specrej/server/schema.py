"""What bodies look like, for /docs and /openapi.json.

These models document. What a body asks for is decided by `protocol` and `asked` alone, which also
say why something is refused; tests hold the two together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from specrej.options import About, kinds_of, options_of
from specrej.server import replies
from specrej.server.asked import MOST_STOP_CHARACTERS, MOST_STOPS
from specrej.server.protocol import (
    CHAT_ONLY,
    EITHER,
    MOST_LOGPROBS,
    OWN,
    RETURNABLE,
    SAMPLING,
)
from specrej.server.refusals import CODES
from specrej.settings import Settings

_Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]
_Stops = _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)]


def _with_settings(names: Iterable[str], base: type[BaseModel] = BaseModel) -> Any:
    """A model with the fields of a body that stand for settings; null leaves one as the server
    has it.
    """
    return create_model("_WithSettings", __base__=base, **{name: _field(name) for name in names})


def _field(name: str) -> Any:
    field, about = options_of(Settings)[SAMPLING.get(name, name)]
    kinds = [_json_kind(kind, about) for kind in kinds_of(field)]
    return Union[(*kinds, None)], Field(None, description=about.words)


def _json_kind(kind: Any, about: About) -> Any:
    """One of the kinds of value that an option has, with all that JSON schema can say of it."""
    if kind in (int, float):
        bounds: dict[str, Any] = {
            **about.bounds
        }  # for mypy, floats could be any of Field's arguments
        return Annotated[kind, Field(**bounds)]
    if kind is str and about.choices:
        return Literal[about.choices]
    if get_origin(kind) is Mapping and get_args(kind)[1] is Any:
        return dict[str, Any]
    if get_origin(kind) is Mapping:
        return dict[str, Annotated[float, Field(ge=-100, le=100)]]
    return _Stops if get_origin(kind) is Sequence else kind


class Own(_with_settings(OWN)):  # type: ignore[misc]  # mypy knows no base that is made
    """Ours; OpenAI's Python client sends it as `extra_body={"specrej": {...}}`."""

    return_: Annotated[
        list[Literal[RETURNABLE]] | None,  # type: ignore[valid-type]
        Field(alias="return", description="What the answer's `specrej` holds in addition."),
    ] = None
    progress: Annotated[
        bool | None,
        Field(description="In a stream: progress as data events rather than as comments."),
    ] = None
    deadline_s: Annotated[
        float | None,
        Field(
            gt=0,
            description="Seconds that the request may take; then the best complete candidate is "
            "the answer.",
        ),
    ] = None


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: Annotated[bool | None, Field(description="A last event with the usage.")] = None


class JsonSchema(BaseModel):
    """What answers obey; the other fields are labels."""

    schema_: Annotated[dict[str, Any], Field(alias="schema", description="A JSON schema.")]
    name: str | None = None
    description: str | None = None
    strict: Annotated[bool | None, Field(description="Answers obey it, strict or not.")] = None


class ResponseFormat(BaseModel):
    """What answers are."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Named(BaseModel):
    model: Annotated[str, Field(description="As /v1/models names it.", min_length=1)]
    n: Annotated[int | None, Field(ge=1, description="Answers: the n best, best first.")] = None


_BOTH = (*(name for name in SAMPLING if name not in CHAT_ONLY), *EITHER)


class _Request(_with_settings(_BOTH, _Named)):  # type: ignore[misc]
    stream: Annotated[bool | None, Field(description="Server-sent events.")] = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Annotated[Any, Field(description="A label; labels are taken, and change nothing.")] = None
    metadata: Annotated[Any, Field(description="A label.")] = None
    specrej: Own | None = None


class TextPart(BaseModel):
    """A part of a message; others than texts are refused."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | list[TextPart] | None, Field(description="May be null beside tool_calls.")
    ] = None
    name: Annotated[str | None, Field(description="Given to the chat template.")] = None
    tool_calls: list[replies.ToolCall] | None = None
    tool_call_id: Annotated[str | None, Field(description="Of the role tool: the call's id.")] = (
        None
    )
    prefix: Annotated[
        bool | None, Field(description="Of the last message, an assistant's: it is continued.")
    ] = None


class Function(BaseModel):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, Field(description="JSON schema of the arguments.")
    ] = None
    strict: Annotated[
        bool | None, Field(description="true: where tool_choice has a function called, or none.")
    ] = None


class Tool(BaseModel):
    """What the model may use; others than functions are refused."""

    type: Literal["function"]
    function: Function


class Chosen(BaseModel):
    """A function's name."""

    name: str


class ToolChoice(BaseModel):
    """The function that is called."""

    type: Literal["function"]
    function: Chosen


class ChatRequest(_with_settings(CHAT_ONLY, _Request)):  # type: ignore[misc]
    """Body of /v1/chat/completions. Any other field gets a 400 that names it, unless it asks for
    nothing.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: Annotated[
        bool | None, Field(description="Tokens with their log-probabilities (nats).")
    ] = None
    tools: Annotated[
        list[Tool] | None,
        Field(description="Where it is known how the model's family writes calls."),
    ] = None
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | ToolChoice | None,
        Field(description="none: as if there were no tools; required: one of them is called."),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Field(description="false: the first call of an answer alone is returned.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Field(description="Arguments that the chat template names.")
    ] = None
    reasoning_effort: Annotated[
        str | None, Field(description="One of these arguments, where the template names it.")
    ] = None


_Text = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_MANY = Field(min_length=1)


class TextRequest(_Request):
    """Body of /v1/completions. Any other field gets a 400 that names it, unless it asks for
    nothing.
    """

    prompt: Annotated[
        _Text | _Ids | Annotated[list[_Text], _MANY] | Annotated[list[_Ids], _MANY],
        Field(
            description="A text or token ids, or a list of either: then each is a prompt of its "
            "own."
        ),
    ]
    suffix: Annotated[
        str | None,
        Field(description="Comes behind the answer; for models that can fill in the middle."),
    ] = None
    echo: Annotated[
        bool | None,
        Field(description="Answers begin with the prompt. With `max_tokens` 0 nothing is decoded."),
    ] = None
    best_of: Annotated[
        int | None,
        Field(ge=1, description="Candidates, as `specrej.n`; at least `n`. 1 asks for nothing."),
    ] = None
    logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST_LOGPROBS,
            description="Tokens with their log-probabilities (nats), and so many of the likeliest.",
        ),
    ] = None


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """What an endpoint documents beside its success: the refusals with these codes, by status."""
    meanings: dict[int, list[str]] = {}
    for code, (status, meaning) in CODES.items():
        if code in codes:
            meanings.setdefault(status, []).append(meaning)
    return {
        status: {"model": replies.ErrorBody, "description": " ".join(meanings[status])}
        for status in sorted(meanings)
    }


def body_of(request: type[BaseModel]) -> dict[str, Any]:
    """An endpoint's body, for FastAPI's `openapi_extra`: documented there, and read by nobody
    but `asked`.
    """
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def request_schemas(requests: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """The schemas that `body_of` refers to, by name."""
    _, schemas = models_json_schema(
        [(request, "validation") for request in requests],
        ref_template="#/components/schemas/{model}",
    )
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
