"""What bodies look like, for /docs and /openapi.json.

These models document. What a body asks for is decided by `completions` and `asked` alone, which also say why something
is refused; tests hold the two together.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from specrej.server.refusals import CODES

Return = Literal["rewards", "decisions", "candidates"]


class Own(BaseModel):
    """Ours; OpenAI's Python client sends it as `extra_body={"specrej": {...}}`."""

    algorithm: Annotated[str | None, Field(description="speculative_rejection or best_of_n.")] = None
    n: Annotated[
        int | Literal["auto"] | None, Field(description='Candidates to begin with; "auto": as many as memory carries.')
    ] = None
    alpha: Annotated[float | None, Field(ge=0, lt=1, description="Share rejected at each decision.")] = None
    keep: Annotated[int | None, Field(ge=1, description="Keep this many at each decision, in place of a share.")] = None
    decide: Annotated[str | None, Field(description="budget, every:K or at:A,B,C tokens.")] = None
    min_tokens: Annotated[
        int | None, Field(ge=1, description="Length that all first candidates can reach when memory decides.")
    ] = None
    memory: Annotated[
        str | int | None, Field(description="KV of this request, such as 64MiB; at most what all share.")
    ] = None
    top_k: Annotated[
        int | None, Field(ge=0, lt=2**31, description="Draw from the k most likely tokens; 0: from all.")
    ] = None
    min_p: Annotated[float | None, Field(ge=0, lt=1, description="Drop tokens below this share of the likeliest.")] = (
        None
    )
    repetition_penalty: Annotated[
        float | None, Field(ge=0.001, le=1000, description="Makes tokens seen before less likely; 1 is off.")
    ] = None
    return_: Annotated[
        list[Return] | None, Field(alias="return", description="What the answer's `specrej` holds in addition.")
    ] = None
    progress: Annotated[
        bool | None, Field(description="In a stream: progress as data events rather than as comments.")
    ] = None
    deadline_s: Annotated[
        float | None,
        Field(gt=0, description="Seconds that the request may take; then the best complete candidate is the answer."),
    ] = None


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: Annotated[bool | None, Field(description="A last event with the usage.")] = None


class _Request(BaseModel):
    model: Annotated[str, Field(description="As /v1/models names it.", min_length=1)]
    n: Annotated[int | None, Field(ge=1, description="Answers: the n best, best first.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31, description="Length limit of an answer.")] = None
    temperature: Annotated[
        float | None,
        Field(ge=0, description="Divides the logits; 0 is greedy, with one candidate and one answer."),
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=2**64, description="The same request with the same seed gets the same answer.")
    ] = None
    stop: Annotated[str | list[str] | None, Field(description="Strings that end an answer, at most 16.")] = None
    stream: Annotated[bool | None, Field(description="Server-sent events.")] = None
    stream_options: StreamOptions | None = None
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


class ChatRequest(_Request):
    """Body of /v1/chat/completions. Any other field gets a 400 that names it, unless it asks for nothing."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31, description="Length limit of an answer.")] = None
    logprobs: Annotated[bool | None, Field(description="Tokens with their log-probabilities (nats).")] = None


class TextRequest(_Request):
    """Body of /v1/completions. Any other field gets a 400 that names it, unless it asks for nothing."""

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
    generated_tokens: Annotated[int, Field(description="Of all candidates, rejected ones included.")]
    reward_tokens: Annotated[int, Field(description="Read by the reward.")]
    seconds: float
    peak_kv_bytes: int
    seed: Annotated[int, Field(description="With it the request gets the same answer again.")]
    note: Annotated[str | None, Field(description="What is to be known of how the answer came about.")] = None
    is_late: Annotated[bool, Field(description="The deadline came; the answer is the best complete one by then.")]
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

    reward: Annotated[str, Field(description="The kind of the reward; what comes behind it may be nobody's business.")]
    defaults: Annotated[dict[str, Any], Field(description="By the names of `specrej generate`'s options.")]


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
    for code in codes:
        status, meaning = CODES[code]
        meanings.setdefault(status, []).append(meaning)
    return {status: {"model": ErrorBody, "description": " ".join(meanings[status])} for status in sorted(meanings)}


def body_of(request: type[BaseModel]) -> dict[str, Any]:
    """An endpoint's body, for FastAPI's `openapi_extra`: documented there, and read by nobody but `asked`."""
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def request_schemas() -> dict[str, Any]:
    """The schemas that `body_of` refers to, by name."""
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), (TextRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
