"""What a prompt may be: a text, a conversation, or a text that is continued as it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant" | "tool", "content":
text}`, and for some `name`, `tool_calls`, `tool_call_id` or `prefix`; see `as_messages`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation(Sequence[Message]):
    """A conversation with what its chat template is given beside it. As a sequence: its messages.

    Attributes:
        messages: as `as_messages` takes them.
        tools: functions that the model may call, as OpenAI's bodies give them: `{"type":
            "function", "function": {"name", "description", "parameters"}}`.
        template_arguments: by the names that the model's chat template gives them, values of
            JSON's types, such as `{"enable_thinking": False}`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, place: Any) -> Any:
        return self.messages[place]


Prompt = str | Sequence[Mapping[str, Any]] | Conversation
"""A text (sent as one user message where the model has a chat template) or a conversation, see
`as_messages`."""


class Continuation(str):
    """A prompt that is gone on from as it stands, whether or not the model has a chat template.

    Two are equal where their texts are.

    Attributes:
        token_ids: where given, what the model reads instead: these exactly, without a BOS that is
            not among them. The text is then for the reward alone. An empty one becomes what they
            spell.
        suffix: where given, the answer is what stands between the text and this, for a tokenizer
            that has tokens for it. The reward reads the text.
    """

    __slots__ = ("suffix", "token_ids")

    token_ids: tuple[int, ...]
    suffix: str

    def __new__(cls, text: str = "", token_ids: Sequence[int] = (), suffix: str = "") -> Self:
        self = super().__new__(cls, text)
        self.token_ids, self.suffix = tuple(token_ids), suffix
        return self
