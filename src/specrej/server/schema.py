"""What bodies look like, for /docs and /openapi.json.

These models document. What a body asks for is decided by `protocol` and `asked` alone, which also
say why something is refused; tests hold the two together.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import models_json_schema

from specrej.options import About, kinds_of, options_of
from specrej.server.asked import MOST_STOP_CHARACTERS, MOST_STOPS
from specrej.server.protocol import CHAT_ONLY, OWN, RETURNABLE, SAMPLING
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


class _Request(_with_settings((name for name in SAMPLING if name not in CHAT_ONLY), _Named)):  # type: ignore[misc]
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

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatRequest(_with_settings(CHAT_ONLY, _Request)):  # type: ignore[misc]
    """Body of /v1/chat/completions. Any other field gets a 400 that names it, unless it asks for
    nothing.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: Annotated[
        bool | None, Field(description="Tokens with their log-probabilities (nats).")
    ] = None


class TextRequest(_Request):
    """Body of /v1/completions. Any other field gets a 400 that names it, unless it asks for
    nothing.
    """

    prompt: Annotated[str, Field(min_length=1)]


class _Response(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Response):
    """What was wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(_Response):
    """What every request gets that is not answered."""

    error: Error


class Token(_Response):
    """A token of the answer; `logprob` in nats."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class Logprobs(_Response):
    """Of the tokens of an answer."""

    content: list[Token]
    refusal: None


class Answer(_Response):
    """The message that answers."""

    role: Literal["assistant"]
    content: str
    refusal: None


class _Choice(_Response):
    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None


class ChatChoice(_Choice):
    """One of the answers."""

    message: Answer


class TextChoice(_Choice):
    """One of the answers."""

    text: str


class Usage(_Response):
    """Tokens of the prompt and of the answers returned."""

    prompt_tokens: int
    completion_tokens: Annotated[int, Field(description="Tokens of the answers returned.")]
    total_tokens: int


class OwnPart(_Response):
    """What the answers are worth, and what all candidates took."""

    rewards: Annotated[list[float | None], Field(description="Of the answers, best first.")]
    num_answers: int
    num_candidates: int
    generated_tokens: Annotated[
        int, Field(description="Of all candidates, rejected ones included.")
    ]
    reward_tokens: Annotated[int, Field(description="Read by the reward.")]
    seconds: float
    peak_kv_bytes: int
    seed: Annotated[int, Field(description="With it the request gets the same answer again.")]
    note: Annotated[
        str | None, Field(description="What is to be known of how the answer came about.")
    ] = None
    is_late: Annotated[
        bool, Field(description="The deadline came; the answer is the best complete one by then.")
    ]
    candidate_rewards: list[float | None] | None = None
    decisions: list[dict[str, Any]] | None = None
    candidates: list[dict[str, Any]] | None = None


class _Completion(_Response):
    id: str
    created: int
    model: str
    usage: Usage
    specrej: OwnPart


class ChatCompletion(_Completion):
    """The answer to a chat request."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(_Completion):
    """The answer to a text request."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Serving(_Response):
    """What a request gets that does not say otherwise."""

    reward: Annotated[
        str,
        Field(description="The kind of the reward; what comes behind it may be nobody's business."),
    ]
    defaults: Annotated[
        dict[str, Any], Field(description="By the names of `specrej generate`'s options.")
    ]


class Model(_Response):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When the server began, in seconds since 1970.")]
    owned_by: Literal["specrej"] = "specrej"
    specrej: Serving


class ModelList(_Response):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Response):
    """Whether requests are taken."""

    status: Literal["ok", "stopping", "failed"]


def errors(*codes: str) -> dict[int | str, dict[str, Any]]:
    """What an endpoint documents beside its success: the refusals with these codes, by status."""
    meanings: dict[int, list[str]] = {}
    for code, (status, meaning) in CODES.items():
        if code in codes:
            meanings.setdefault(status, []).append(meaning)
    return {
        status: {"model": ErrorBody, "description": " ".join(meanings[status])}
        for status in sorted(meanings)
    }


def body_of(request: type[BaseModel]) -> dict[str, Any]:
    """An endpoint's body, for FastAPI's `openapi_extra`: documented there, and read by nobody
    but `asked`.
    """
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def request_schemas() -> dict[str, Any]:
    """The schemas that `body_of` refers to, by name."""
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), (TextRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
