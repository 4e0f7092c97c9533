"""The `prompt` of a body for /v1/completions: a text or token ids, or a list of either.

text_prompts(["Once", "Twice"], "")  # two prompts
text_prompts([5, 17], "")            # one, of two tokens
"""

import reprlib
from typing import TypeVar

from specrej.errors import PromptError, UsageError
from specrej.messages import as_messages
from specrej.types import Continuation

_HINT = "a list of texts, or of lists of token ids, is as many prompts"
_MOST_ID = 2**31

Told = TypeVar("Told", bound=UsageError)


def text_prompts(given: object, suffix: str) -> tuple[Continuation, ...]:
    """The prompts, at least one; what is given may be any JSON.

    Raises:
        PromptError: it is none of the four forms, an empty list, or one of them is empty.
    """
    many = given if isinstance(given, list) and not _is_ids(given) else [given]
    if not many:
        raise PromptError("prompt must be a text, token ids, or a list of these, got []")
    if len({type(one) for one in many}) > 1:
        raise PromptError(
            f"prompt must be a list of one kind, texts or token ids, got {reprlib.repr(given)}",
            hint=_HINT,
        )
    prompts = tuple(_prompt(one, suffix, number, len(many)) for number, one in enumerate(many))
    for number, prompt in enumerate(prompts):
        try:
            as_messages(prompt)
        except PromptError as error:
            raise in_prompt(error, number, len(many)) from error
    return prompts


def in_prompt(error: Told, number: int, num_prompts: int) -> Told:
    """The error, which is about this one of several prompts."""
    if num_prompts > 1:
        error.args = (f"prompt[{number}]: {error}",)
    return error


def _prompt(given: object, suffix: str, number: int, num_prompts: int) -> Continuation:
    if isinstance(given, str):
        return Continuation(given, suffix=suffix)
    if not isinstance(given, list) or not _is_ids(given):
        name = f"prompt[{number}]" if num_prompts > 1 else "prompt"
        raise PromptError(
            f"{name} must be a text or token ids, got {reprlib.repr(given)}", hint=_HINT
        )
    if suffix:
        raise PromptError(
            "suffix cannot be honoured beside token ids",
            hint="give the prompt as a text, or the tokens to fill in with among the ids",
        )
    return Continuation(token_ids=given)


def _is_ids(given: list[object]) -> bool:
    """Whether it is one prompt of token ids; which ids there are is for the tokenizer to say."""
    return bool(given) and all(type(one) is int and 0 <= one < _MOST_ID for one in given)
