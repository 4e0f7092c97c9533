"""From logits to tokens: filters in transformers' order, then one uniform number a candidate (inverse CDF).

Knows rows, not candidates: the caller brings the uniforms that belong to each row.
"""

import torch
from torch import Tensor

from specrej.types import SamplingParams

_ROWS_AT_ONCE = 8
"""Rows reduced together: 8 rows of 50,000 float32 logits stay in a CPU's cache, where a whole batch would not."""

_SEGMENT = 128
"""Width of the pieces whose maxima are compared first when the k largest logits are looked for."""


def sample(
    logits: Tensor, params: SamplingParams, uniforms: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: `[rows, vocabulary]`, or `[1, vocabulary]` when all rows share them.
        params: temperature, top_k, top_p, min_p, repetition_penalty.
        uniforms: `[rows]` float64 in [0, 1).
        seen: `[rows, vocabulary]` bool, tokens that the repetition penalty applies to; None when it is off.

    Returns:
        Token ids `[rows]` and their log-probabilities `[rows]` (nats, float32) under the unfiltered distribution.
    """
    normalizer = _logsumexp(logits)
    scores = logits if seen is None else penalize(logits, seen, params.repetition_penalty)
    values, ids = candidates_of(scores / params.temperature if params.temperature != 1.0 else scores, params)
    cumulative = values.softmax(-1, dtype=torch.float64 if ids is not None else torch.float32).cumsum(-1)
    target = uniforms[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative.expand(len(uniforms), -1).contiguous(), target, right=True)
    # A uniform next to 1 can round to the total; tokens of no probability at the end are never chosen for it.
    choice = choice.minimum(torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()))
    tokens = choice if ids is None else ids.expand(len(uniforms), -1).gather(1, choice)
    logprobs = logits.expand(len(uniforms), -1).gather(1, tokens).float() - normalizer
    return tokens[:, 0], logprobs[:, 0]


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The repetition penalty (Keskar et al. 2019, CTRL): logits of seen tokens move away from being chosen."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates_of(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """The tokens that pass the filters: their scores (minus infinity for those that do not pass) and ids.

    The ids are None where the scores stand in the order of the vocabulary.
    """
    if params.top_k and params.top_k < scores.shape[-1]:
        values, ids = largest(scores, params.top_k)
    elif params.top_p < 1.0:
        values, ids = scores.sort(-1, descending=True)
    else:
        values, ids = scores, None
    if params.top_p < 1.0:
        probabilities = values.softmax(-1, dtype=torch.float32)
        before = probabilities.cumsum(-1) - probabilities
        values = values.masked_fill(before >= params.top_p, -torch.inf)
    if params.min_p > 0.0:
        probabilities = values.softmax(-1, dtype=torch.float32)
        values = values.masked_fill(probabilities < params.min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    return values, ids


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in descending order, with their positions: `torch.topk`, faster on wide rows.

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


def _logsumexp(logits: Tensor) -> Tensor:
    """`logits.logsumexp(-1, keepdim=True)` in float32, some rows at a time."""
    starts = range(0, len(logits), _ROWS_AT_ONCE)
    return torch.cat([logits[at : at + _ROWS_AT_ONCE].float().logsumexp(-1, keepdim=True) for at in starts])
