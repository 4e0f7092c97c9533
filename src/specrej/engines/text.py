"""Between text and token ids: chat templates without a second BOS, partial texts without half a character."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from specrej.errors import PromptError
from specrej.types import Continuation, Prompt, as_messages

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


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

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens. Bytes of a last character that is not all there are left out."""
        text = self._text(token_ids)
        if not text.endswith(_REPLACEMENT):
            return text
        # A tokenizer that falls back to bytes gives up the whole characters before the unfinished one as well, so its
        # bytes, three at most and perhaps an EOS behind them, are left out one by one.
        shorter = (self._text(token_ids[: max(len(token_ids) - cut, 0)]) for cut in range(5))
        return max((text.rstrip(_REPLACEMENT) for text in shorter), key=len)

    def _text(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
