"""From logits to tokens: filters in transformers' order, then one uniform number a candidate
(inverse CDF).

Knows rows, not candidates: the caller brings the uniforms that belong to each row.
"""

import torch
from torch import Tensor

from specrej.types import SamplingParams

LOST = -1
"""The id of a row that no token can be drawn from."""

_ROWS_AT_ONCE = 8
"""Rows reduced together: 8 rows of 50,000 float32 logits stay in a CPU's cache, where a whole
batch would not."""

_SEGMENT = 128
"""Width of the pieces whose maxima are compared first when the k largest logits are looked for."""


def sample(
    logits: Tensor,
    params: SamplingParams,
    uniforms: Tensor,
    seen: Tensor | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: `[rows, vocabulary]`, or `[1, vocabulary]` when all rows share them.
        params: temperature, top_k, top_p, min_p, repetition_penalty.
        uniforms: `[rows]` float64 in [0, 1).
        seen: `[rows, vocabulary]` bool, tokens that the repetition penalty applies to; None when it
            is off.
        allowed: `[rows, vocabulary]` bool, or `[1, vocabulary]` for all rows: tokens that may come;
            None where all may.

    Returns:
        Token ids `[rows]` and their log-probabilities `[rows]` (nats, float32, finite) under the
        unfiltered distribution. The id is `LOST` where a row has NaN, plus infinity or nothing
        finite in it, or overflows under
        the penalty: no other row is touched, and no index is ever out of bounds.
    """
    normalizer = logsumexp(logits)
    scores = logits if seen is None else penalize(logits, seen, params.repetition_penalty)
    if allowed is not None:
        scores = scores.where(allowed, -torch.inf)
    tokens, weight = _likeliest(scores) if params.is_greedy else _draw(scores, params, uniforms)
    tokens = tokens.expand(len(uniforms), -1)
    logprobs = logits.expand(len(uniforms), -1).gather(1, tokens).float() - normalizer
    # NaN and infinity show in sums that are there anyway, so nothing reads the vocabulary again to
    # look for them.
    is_sound = (normalizer.isfinite() & weight.isfinite()).expand_as(tokens)
    return tokens.where(is_sound, LOST)[:, 0], logprobs.clamp(min=torch.finfo(logprobs.dtype).min)[
        :, 0
    ]


def _likeliest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the highest score of each row, of equals the first, `[rows, 1]`; and that
    score.
    """
    tokens = scores.argmax(-1, keepdim=True)
    return tokens, scores.gather(1, tokens)


def _draw(scores: Tensor, params: SamplingParams, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each uniform, `[rows, 1]`, and the sum that its probability is a share of."""
    values, ids = candidates_of(scores, params)
    cumulative = values.softmax(
        -1, dtype=torch.float64 if ids is not None else torch.float32
    ).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    target = uniforms[:, None].to(cumulative.dtype) * total
    choice = torch.searchsorted(
        cumulative.expand(len(uniforms), -1).contiguous(), target, right=True
    )
    # A uniform next to 1 can round to the total; tokens of no probability at the end are never
    # chosen for it.
    # Among NaN the search ends behind the last: on a GPU such an index would end the process.
    choice = choice.minimum(torch.searchsorted(cumulative, total)).clamp(
        max=cumulative.shape[-1] - 1
    )
    return choice if ids is None else ids.expand(len(uniforms), -1).gather(1, choice), total


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The repetition penalty (Keskar et al. 2019, CTRL): logits of seen tokens move away from
    being chosen.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates_of(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """The tokens that pass the filters: their scores over the temperature (minus infinity for the
    others) and ids.

    The ids are None where the scores stand in the order of the vocabulary. Which are the k largest
    does not depend on the temperature, so only those are divided.
    """
    if params.top_k and params.top_k < scores.shape[-1]:
        values, ids = largest(scores, params.top_k)
    elif params.top_p < 1.0:
        values, ids = scores.sort(-1, descending=True)
    else:
        values, ids = scores, None
    if params.divisor != 1.0:
        # The highest is 0 then: nothing overflows but to minus infinity, which is a probability of
        # 0.
        values = (values - values.amax(-1, keepdim=True)).div_(params.divisor)
    if params.top_p < 1.0:
        probabilities = values.softmax(-1, dtype=torch.float32)
        is_out = probabilities.cumsum(-1) - probabilities >= params.top_p
        is_out[:, 0] = False  # a tiny top_p is 0 in float32
        values = values.masked_fill(is_out, -torch.inf)
    if params.min_p > 0.0:
        probabilities = values.softmax(-1, dtype=torch.float32)
        values = values.masked_fill(
            probabilities < params.min_p * probabilities.amax(-1, keepdim=True), -torch.inf
        )
    return values, ids


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in descending order, with their positions: `torch.topk`, faster on
    wide rows.

    The k largest lie in the k segments with the largest maxima, so only those are sorted.
    """
    rows, width = scores.shape
    if width % _SEGMENT or width // _SEGMENT <= 2 * k:
        return torch.topk(scores, k, -1)
    segments = scores.view(rows, -1, _SEGMENT)
    chosen = torch.topk(segments.amax(-1), k, -1, sorted=False).indices
    inside = segments.gather(1, chosen[:, :, None].expand(-1, -1, _SEGMENT)).view(rows, -1)
    values, offset = torch.topk(inside, k, -1)
    return values, chosen.gather(1, offset // _SEGMENT) * _SEGMENT + offset % _SEGMENT


def logsumexp(logits: Tensor) -> Tensor:
    """`logits.logsumexp(-1, keepdim=True)` in float32, some rows at a time; finite where a row
    is sound.
    """
    starts = range(0, len(logits), _ROWS_AT_ONCE)
    return torch.cat(
        [logits[at : at + _ROWS_AT_ONCE].float().logsumexp(-1, keepdim=True) for at in starts]
    )
