"""What bodies that answer look like, for /docs and /openapi.json: of completions, of errors, and of
the endpoints beside them. `schema` has what is asked.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Replied(BaseModel):
    """A body, or a part of one: it holds these fields and no other."""

    model_config = ConfigDict(extra="forbid")


class Error(Replied):
    """What was wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Replied):
    """What every request gets that is not answered."""

    error: Error


class Likely(Replied):
    """A token that could be in its place; `logprob` in nats."""

    token: str
    logprob: float
    bytes: list[int]


class Token(Likely):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[Likely]


class Logprobs(Replied):
    """Of the tokens of an answer."""

    content: list[Token]
    refusal: None


class TextLogprobs(Replied):
    """Of the tokens of a text, in nats; null at a prompt's first token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: Annotated[list[int], Field(description="Where each begins, in characters.")]


class Called(BaseModel):
    """The function that a call is of."""

    name: str
    arguments: Annotated[str, Field(description="The text of a JSON object.")]


class ToolCall(BaseModel):
    """The call of a function."""

    id: str
    type: Literal["function"]
    function: Called


class Answer(Replied):
    """The message that answers."""

    role: Literal["assistant"]
    content: Annotated[str | None, Field(description="null where there are calls alone.")]
    refusal: None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: Annotated[
        str | None, Field(description="What a reasoning model thought before.")
    ] = None


class _Choice(Replied):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatChoice(_Choice):
    """One of the answers."""

    message: Answer
    logprobs: Logprobs | None


class TextChoice(_Choice):
    """One of the answers."""

    text: str
    logprobs: TextLogprobs | None


class CompletionDetails(Replied):
    """What of the answers' tokens is no answer."""

    reasoning_tokens: Annotated[
        int, Field(description="Tokens of what was thought, without its marks.")
    ]


class Usage(Replied):
    """Tokens of the prompt and of the answers returned."""

    prompt_tokens: int
    completion_tokens: Annotated[int, Field(description="Tokens of the answers returned.")]
    total_tokens: int
    completion_tokens_details: Annotated[
        CompletionDetails | None,
        Field(description="In chats with a model that may think before it answers."),
    ] = None


class OwnPart(Replied):
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
    is_relative: Annotated[
        bool | None, Field(description="The rewards compare answers of this run alone.")
    ] = None
    is_late: Annotated[
        bool, Field(description="The deadline came; the answer is the best complete one by then.")
    ]
    candidate_rewards: list[float | None] | None = None
    decisions: list[dict[str, Any]] | None = None
    candidates: list[dict[str, Any]] | None = None
    run: Annotated[
        dict[str, Any] | None,
        Field(description="The index of the best candidate, votes, usage, settings and versions."),
    ] = None


class _Completion(Replied):
    id: str
    created: int
    model: str
    usage: Usage


class ChatCompletion(_Completion):
    """The answer to a chat request."""

    specrej: OwnPart
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(_Completion):
    """The answer to a text request."""

    specrej: (
        OwnPart
        | Annotated[
            list[OwnPart], Field(description="One for each of several prompts, in their order.")
        ]
    )
    object: Literal["text_completion"]
    choices: list[TextChoice]


class Serving(Replied):
    """What a request gets that does not say otherwise."""

    reward: Annotated[
        str,
        Field(description="The kind of the reward; what comes behind it may be nobody's business."),
    ]
    defaults: Annotated[
        dict[str, Any], Field(description="By the names of `specrej generate`'s options.")
    ]


class Model(Replied):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When the server began, in seconds since 1970.")]
    owned_by: Literal["specrej"] = "specrej"
    specrej: Serving


class ModelList(Replied):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Replied):
    """Whether requests are taken."""

    status: Literal["ok", "stopping", "failed"]
