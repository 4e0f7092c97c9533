"""Between text and token ids: chat templates without a second BOS, the texts of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from specrej.engines.decoding import Pieces, StreamDecoder
from specrej.errors import PromptError
from specrej.types import Continuation, Prompt, as_messages


@dataclass(frozen=True)
class TextCodec:
    """A transformers tokenizer, as the engines need it."""

    tokenizer: Any

    @cached_property
    def token_bytes(self) -> int:
        """Most bytes of text that one token stands for; as a vocabulary writes tokens, they are never shorter."""
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt up to where the answer begins.

        With a chat template, a text is one user message, and the template alone decides on BOS. Without one, and as a
        `Continuation`, a text is continued as it stands.

        Raises:
            PromptError: the prompt is empty, a conversation meets a model without a chat template, or the template
                refuses it.
        """
        messages = as_messages(prompt)
        if self.tokenizer.chat_template is None or isinstance(prompt, Continuation):
            if not isinstance(prompt, str):
                raise PromptError(
                    "this model has no chat template, so it cannot take a conversation",
                    hint="give the prompt as a text",
                )
            ids = self.tokenizer(prompt)["input_ids"]
        else:
            try:
                text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            except Exception as error:
                raise PromptError(f"the model's chat template refuses this conversation: {error}") from error
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids)

    def detokenizer(self, prompt: Prompt) -> StreamDecoder:
        """What reads one answer to this prompt, token by token."""
        continues = isinstance(prompt, Continuation) or self.tokenizer.chat_template is None
        return StreamDecoder(self._pieces, continues=continues)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole answer to a text. Bytes of a last character that is not all there are left out."""
        decoder = self.detokenizer("")
        return "".join(decoder.add(token_id).text for token_id in token_ids)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.tokenizer)
