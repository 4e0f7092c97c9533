"""What bodies of responses and scores look like, and which bodies each endpoint has.

As in `schema`, these models document; `responses` and `score` decide.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from specrej.server import replies, schema
from specrej.server.responses import RESPONSE_SAMPLING

_Label: TypeAlias = Annotated[Any, Field(description="A label; the answer repeats it.")]


class InputPart(BaseModel):
    """A part of a message; others than texts are refused."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(BaseModel):
    """One turn of a conversation, or what an earlier response has in its `output`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputPart]


class InputReasoning(BaseModel):
    """What was thought before an earlier answer. It is left out, as chat templates do."""

    type: Literal["reasoning"]
    summary: list[Any] = []
    content: list[Any] | None = None


class TextConfig(BaseModel):
    """What the answer looks like."""

    format: Annotated[dict[str, Any] | None, Field(description="As a chat's response_format.")] = (
        None
    )
    verbosity: Annotated[str | None, Field(description="As a chat's.")] = None


class ReasoningConfig(BaseModel):
    """How the model thinks before it answers."""

    effort: Annotated[str | None, Field(description="As a chat's reasoning_effort.")] = None


class ResponseRequest(schema._with_settings(RESPONSE_SAMPLING)):  # type: ignore[misc]
    """Body of /v1/responses. Any other field gets a 400 that names it, unless it asks for
    nothing. Nothing is stored.
    """

    model: Annotated[str, Field(description="As /v1/models names it.", min_length=1)]
    input: str | Annotated[list[InputMessage | InputReasoning], Field(min_length=1)]
    instructions: Annotated[
        str | None, Field(description="A system message that goes before the input.")
    ] = None
    max_output_tokens: Annotated[
        int | None, Field(ge=1, description="Length limit of the answer, in tokens.")
    ] = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: Annotated[
        list[str] | None,
        Field(description="message.output_text.logprobs: tokens with log-probabilities (nats)."),
    ] = None
    top_logprobs: Annotated[
        int | None, Field(description="As a chat's, where they are included.")
    ] = None
    stream: Annotated[bool | None, Field(description="Server-sent events.")] = None
    stream_options: schema.StreamOptions | None = None
    user: _Label = None
    metadata: _Label = None
    safety_identifier: _Label = None
    prompt_cache_key: _Label = None
    specrej: schema.Own | None = None


class OutputText(replies.Replied):
    """The text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[replies.Token]


class ReasoningText(replies.Replied):
    """The text of a thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(replies.Replied):
    """What a reasoning model thought before."""

    id: str
    type: Literal["reasoning"]
    status: Literal["completed", "incomplete"]
    summary: list[Any]
    content: list[ReasoningText]


class OutputMessage(replies.Replied):
    """The message that answers."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class IncompleteDetails(replies.Replied):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseUsage(replies.Replied):
    """Tokens of the prompt and of the answer."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Response(replies.Replied):
    """The answer to a request for a response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Any
    model: str
    output: list[OutputReasoning | OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: Any
    reasoning: dict[str, str | None]
    safety_identifier: Any
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: Any
    specrej: replies.OwnPart


_Answers: TypeAlias = Annotated[list[str], Field(min_length=1)]


class ScoreRequest(BaseModel):
    """Body of /v1/score: a prompt (`messages`, `prompt` or `text_1`) and answers to it (`answers`
    or `text_2`). Any other field gets a 400 that names it.
    """

    model: Annotated[str, Field(description="As /v1/models names it.", min_length=1)]
    messages: Annotated[list[schema.Message], Field(min_length=1)] | None = None
    prompt: str | None = None
    answers: _Answers | None = None
    text_1: Annotated[str | None, Field(description="vLLM's name of the prompt.")] = None
    text_2: Annotated[str | _Answers | None, Field(description="vLLM's name of the answers.")] = (
        None
    )
    user: Annotated[Any, Field(description="A label; it changes nothing.")] = None


class ScoredAnswer(replies.Replied):
    """The reward of one answer."""

    index: Annotated[int, Field(description="Of the answer, as they were given.")]
    object: Literal["score"]
    score: Annotated[
        float | None, Field(description="Higher is better; null: a filter of the reward's rejects.")
    ]


class ScoreUsage(replies.Replied):
    """What scoring took."""

    prompt_tokens: Annotated[int, Field(description="Read by the reward.")]
    total_tokens: Annotated[int, Field(description="The same.")]
    reward_tokens: Annotated[int, Field(description="The same, by our name.")]
    seconds: Annotated[float, Field(description="Of the reward's work, without its waiting.")]


class ScoreList(replies.Replied):
    """The rewards of the answers, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoredAnswer]
    usage: ScoreUsage


BODIES: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "/v1/chat/completions": (schema.ChatRequest, replies.ChatCompletion),
    "/v1/completions": (schema.TextRequest, replies.TextCompletion),
    "/v1/responses": (ResponseRequest, Response),
    "/v1/score": (ScoreRequest, ScoreList),
}
"""What each endpoint asks for, and what it answers, by path."""
