"""How a candidate's tokens are drawn. Frozen, and checked on construction.

SamplingParams(max_new_tokens=64, temperature=0.8, seed=1)
"""

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from specrej.constraint import Constraint, ThoughtLimit
from specrej.errors import UsageError
from specrej.options import check, option, shown

_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-5, 1e30
"""Below the one the likeliest token is certain, above the other all that pass are alike; between
them float32 holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a candidate's tokens are drawn; the filters apply in the order transformers applies them.

    Before them come, in vLLM's order: logit_bias, repetition_penalty, frequency_penalty and
    presence_penalty, temperature. The last two penalties count the answer's tokens alone, the
    first counts the prompt's too.

    Engines compute in float32 or less. What it cannot tell from a limit acts as that limit; a bound
    beyond which a number means nothing there is refused by name.

    Attributes:
        max_new_tokens: length limit of an answer, in tokens, below 2^31.
        temperature: divides the logits. 0, or below 1e-5, is greedy: the likeliest token is taken,
            and a run decodes one candidate, since all would be alike. Above 1e30 all tokens that
            pass the filters are equally likely.
        top_k: keep the k most likely tokens; 0, or the vocabulary's size and more, keeps all. Below
            2^31.
        top_p: keep the smallest set of tokens whose probability reaches top_p, at least one; 1.0
            keeps all.
        min_p: drop tokens less likely than min_p times the most likely one; 0.0 keeps all.
        repetition_penalty: divides positive (multiplies negative) logits of tokens seen before; 1.0
            is off. From 1e-9 to 1e9.
        frequency_penalty: taken from a token's logit for each time the answer has it so far. From
            -2 to 2; 0 is off.
        presence_penalty: taken once from the logits of tokens that the answer has. From -2 to 2; 0
            is off.
        logit_bias: pairs of token id and what is added to its logit, from -100 to 100, in rising
            order of ids.
        top_logprobs: of each token drawn, so many of the likeliest in its place are kept with
            their log-probabilities. From 0 to 20.
        stop: strings that end an answer; the answer's text ends before them. They may spell special
            tokens.
        ignore_eos: go on to max_new_tokens; for measuring.
        seed: with the candidate's index and the position it decides every draw.
    """

    max_new_tokens: int = option(
        256,
        "Length limit of an answer, in tokens.",
        expected="at least 1, and below 2^31",
        ge=1,
        lt=2**31,
    )
    temperature: float = option(
        1.0,
        "Divides the logits; 0 is greedy: one candidate.",
        expected="0 (greedy) or above, and finite",
        ge=0,
        le=sys.float_info.max,
    )
    top_k: int = option(
        50,
        "Draw from the k most likely tokens; 0: from all.",
        expected="0 (all tokens) or more, and below 2^31",
        ge=0,
        lt=2**31,
    )
    top_p: float = option(
        1.0,
        "Draw from the likeliest tokens that reach this probability.",
        expected="in (0, 1]",
        gt=0,
        le=1,
    )
    min_p: float = option(
        0.0, "Drop tokens below this share of the likeliest one.", expected="in [0, 1)", ge=0, lt=1
    )
    repetition_penalty: float = option(
        1.0,
        "Makes tokens seen before less likely; 1.0 is off.",
        expected="in [1e-9, 1e9]",
        ge=1e-9,
        le=1e9,
    )
    frequency_penalty: float = option(
        0.0,
        "Taken from a token's logit for each time the answer has it.",
        expected="in [-2, 2]",
        ge=-2,
        le=2,
    )
    presence_penalty: float = option(
        0.0,
        "Taken once from the logits of tokens that the answer has.",
        expected="in [-2, 2]",
        ge=-2,
        le=2,
    )
    logit_bias: tuple[tuple[int, float], ...] = option(
        (),
        'Added to the logits of tokens, by their ids: a JSON object such as {"42": -100}.',
        metavar="JSON",
        unset="none",
    )
    top_logprobs: int = option(
        0,
        "Likeliest tokens to report in each token's place, with log-probabilities.",
        expected="from 0 to 20",
        ge=0,
        le=20,
    )
    stop: tuple[str, ...] = option(
        (), "Strings that end an answer, which holds none of them.", metavar="TEXT"
    )
    ignore_eos: bool = option(False, "Go on to the length limit; for measuring.")
    seed: int = option(
        0,
        "Decides every draw, with candidate and position: the same seed, the same answer.",
        expected="in [0, 2^64)",
        ge=0,
        lt=2**64,
    )
    constraint: Constraint | ThoughtLimit | None = None
    """What every answer obeys; None leaves them free. Until an engine says that an answer is
    whole, it cannot end, so `ignore_eos` is refused beside a `Constraint`."""

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.constraint, Constraint) and self.ignore_eos:
            raise UsageError(
                f"ignore_eos must be off where answers obey a {self.constraint.kind}, which says "
                "where they end"
            )
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise UsageError(f"stop must be made of strings that are not empty, got {self.stop!r}")
        for token_id, bias in self.logit_bias:
            _check_bias(token_id, bias)
        ids = [token_id for token_id, _ in self.logit_bias]
        if ids != sorted(set(ids)):
            raise UsageError(f"logit_bias must name each token once, in rising order, got {ids}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that all candidates are the same
        answer.
        """
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def divisor(self) -> float:
        """What logits are divided by: the temperature in a range that float32 holds, and 0.0
        where greedy.
        """
        return 0.0 if self.is_greedy else float(min(self.temperature, _MOST_TEMPERATURE))


def _check_bias(token_id: object, bias: object) -> None:
    if type(token_id) is not int or not 0 <= token_id < 2**31:
        raise UsageError(f"logit_bias must name token ids of at least 0, got {shown(token_id)}")
    is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
    if not is_number or not -100 <= bias <= 100:  # type: ignore[operator]  # a number, as seen
        raise UsageError(f"logit_bias must add from -100 to 100, got {shown(bias)} for {token_id}")


def bias_of(given: object) -> tuple[tuple[int, float], ...]:
    """The pairs of a mapping, by rising ids; the ids may be written as in JSON.

    Raises:
        UsageError: it is no mapping, or names a token otherwise than by its id.
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            f"logit_bias must be an object of token ids and biases, got {reprlib.repr(given)}"
        )
    pairs = []
    for one, bias in given.items():
        is_id = isinstance(one, str) and one.isascii() and one.isdecimal() and len(one) < 11
        if not is_id and type(one) is not int:
            raise UsageError(
                f"logit_bias must name tokens by their ids, got {reprlib.repr(one)}",
                hint="ids are those of the model's tokenizer",
            )
        pairs.append((int(one), bias))
    return tuple(sorted(pairs, key=lambda pair: pair[0]))
