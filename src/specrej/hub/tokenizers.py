"""Between text and token ids: chat templates without a second BOS, the texts of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from specrej.errors import PromptError, SamplingError
from specrej.hub.contents import ChatTokenizer
from specrej.hub.decoding import Pieces, StreamDecoder
from specrej.hub.infilling import fill_in
from specrej.hub.template_parts import check_arguments, left_out, readable
from specrej.hub.thinking import Thinking, begins, is_open, marks_of
from specrej.hub.tool_formats import FORMS, ToolForm, form_of
from specrej.messages import as_conversation
from specrej.options import shown
from specrej.types import Continuation, Conversation, Message, Prompt

_PROBE = "a"


@dataclass(frozen=True)
class TextCodec:
    """A transformers tokenizer, as the engines need it.

    Attributes:
        tokenizer: of transformers.
        special_tokens: what becomes of contents of messages that spell special tokens: see
            `ChatTokenizer`.
        has_ids: whether answers come as the ids that the model gave, special tokens included.
    """

    tokenizer: Any
    special_tokens: str = "text"
    has_ids: bool = True

    def __post_init__(self) -> None:
        _ = self._chat  # says at once what it cannot do

    @cached_property
    def token_bytes(self) -> int:
        """Most bytes of text that one token stands for; as a vocabulary writes tokens, they are
        never shorter.
        """
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt up to where the answer begins.

        With a chat template, a text is one user message, and the template alone decides on BOS. An
        assistant's message at the end is continued. Without a template, and as a `Continuation`, a
        text is continued as it stands: special tokens that it spells are tokens, behind the BOS
        that the tokenizer adds, once. Token ids of a `Continuation` are these ids.

        Raises:
            PromptError: the prompt is empty, a conversation meets a model without a chat template,
                the template refuses it or leaves out a part of it, or special tokens cannot be kept
                out of its contents. A token id is none, or a suffix meets a tokenizer without
                tokens to fill in.
        """
        asked = as_conversation(prompt)
        if self.tokenizer.chat_template is None or isinstance(prompt, Continuation):
            if not isinstance(prompt, str):
                raise PromptError(
                    "this model has no chat template, so it cannot take a conversation",
                    hint="give the prompt as a text",
                )
            return self._as_it_stands(prompt)
        check_arguments(self.tokenizer, asked)
        if asked.tools:
            self._check_calls()
        is_begun = asked.messages[-1]["role"] == "assistant"
        how = {"continue_final_message": True} if is_begun else {"add_generation_prompt": True}
        try:
            written = self._chat.write(
                asked.messages, tools=asked.tools, arguments=asked.template_arguments, **how
            )
            name = left_out(self._chat, asked, how)
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(
                f"the model's chat template refuses this conversation: {error}"
            ) from error
        if name is not None:
            raise PromptError(
                f"{name} cannot be honoured: this model's chat template leaves it out",
                hint="take a model whose chat template takes tools",
            )
        return self._chat.ids(written)

    def _check_calls(self) -> None:
        """See that calls in an answer can be told from text."""
        if self.tool_form is None:
            raise PromptError(
                "tools cannot be honoured: how this model writes calls is not known",
                hint="leave tools out and ask for JSON by a schema, or take a model whose chat "
                f"template has the form of {', '.join(FORMS)}",
            )
        if self.tool_form.is_hidden and not self.has_ids:
            raise PromptError(
                "tools cannot be honoured: special tokens mark this model's calls, and its answers "
                "come as text",
                hint="take a server that gives token ids",
            )

    def readable(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages as the model's chat template takes them; see `template_parts.readable`."""
        return readable(self._chat, messages)

    @cached_property
    def tool_form(self) -> ToolForm | None:
        """How the model writes calls of functions; None where it is not known."""
        return form_of(self.tokenizer)

    def encode_content(self, text: str) -> list[int]:
        """Token ids of a text by itself, such as an answer: nothing is put around it, and it
        holds no special token.
        """
        return self._chat.ids(self._chat.content(text))

    def _as_it_stands(self, prompt: str) -> list[int]:
        """A text or token ids to be continued, or what a text is to be filled in between."""
        if not isinstance(prompt, Continuation):
            return self._continued(prompt)
        if prompt.token_ids:
            return self._known(prompt.token_ids)
        if prompt.suffix:
            before, _ = self.added
            return [*before, *fill_in(self.tokenizer, prompt, prompt.suffix)]
        return self._continued(prompt)

    def _known(self, token_ids: Sequence[int]) -> list[int]:
        """These, each of which is the id of a token."""
        unknown = [one for one in token_ids if not 0 <= one < self._num_ids]
        if unknown:
            raise PromptError(
                f"the prompt has the token id {shown(unknown[0])}, this model's are from 0 to "
                f"{self._num_ids - 1}",
                hint="tokenize with this model's own tokenizer",
            )
        return list(token_ids)

    @cached_property
    def _num_ids(self) -> int:
        largest: int = max(self.tokenizer.get_vocab().values())
        return largest + 1

    def _continued(self, text: str) -> list[int]:
        """A text with what the tokenizer puts before it, which may be written out, and without
        what it puts behind.
        """
        ids = list(self.tokenizer(text)["input_ids"])
        before, behind = self.added
        if behind and ids[-len(behind) :] == behind:
            ids = ids[: -len(behind)]
        if before and ids[len(before) : 2 * len(before)] == before:
            ids = ids[len(before) :]
        return ids

    @cached_property
    def _chat(self) -> ChatTokenizer:
        return ChatTokenizer(self.tokenizer, self.special_tokens)

    @cached_property
    def added(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before a text, and behind it."""
        text = list(self.tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer(_PROBE)["input_ids"])
        places = range(len(whole) - len(text) + 1)
        start = next((start for start in places if whole[start : start + len(text)] == text), 0)
        return whole[:start], whole[start + len(text) :] if text else []

    def detokenizer(self, prompt: Prompt) -> StreamDecoder:
        """What reads one answer to this prompt, token by token."""
        if isinstance(prompt, str):
            continues = isinstance(prompt, Continuation) or self.tokenizer.chat_template is None
        else:
            continues = prompt[-1]["role"] == "assistant"
        has_tools = isinstance(prompt, Conversation) and bool(prompt.tools)
        form = self.tool_form if has_tools else None
        return StreamDecoder(
            self._pieces, continues=continues, tool_form=form, thinking=self._thinking(prompt)
        )

    def _thinking(self, prompt: Prompt) -> Thinking | None:
        """How an answer to this prompt holds thoughts; None of a text that is continued."""
        if self._marks is None or isinstance(prompt, Continuation):
            return None
        arguments = prompt.template_arguments if isinstance(prompt, Conversation) else {}
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            last = as_conversation(prompt).messages[-1]["content"]
            return Thinking(*self._marks, is_open(last, self._marks))
        is_begun = (
            begins(self.tokenizer, self._marks, arguments) if arguments else self._always_begins
        )
        return Thinking(*self._marks, is_begun)

    @cached_property
    def _marks(self) -> tuple[str, str] | None:
        return None if self.tokenizer.chat_template is None else marks_of(self.tokenizer)

    @cached_property
    def _always_begins(self) -> bool:
        return self._marks is not None and begins(self.tokenizer, self._marks, {})

    def mark_ids(self, mark: str) -> list[int]:
        """Token ids of a mark of a thought.

        Raises:
            SamplingError: they do not read as this mark.
        """
        ids = list(self.tokenizer(mark, add_special_tokens=False)["input_ids"])
        if self.decode(ids).strip() != mark:
            raise SamplingError(
                f"max_thinking_tokens cannot be honoured: the tokenizer has no tokens for {mark!r}",
                hint="leave it out",
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole answer to a text. Bytes of a last character that is not all there
        are left out.
        """
        decoder = self.detokenizer("")
        return "".join(decoder.add(token_id).text for token_id in token_ids)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.tokenizer)
