"""From logits to tokens: bias and penalties in vLLM's order, filters in transformers', then one
uniform number a candidate (inverse CDF).

Knows rows, not candidates: the caller brings the uniforms that belong to each row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specrej.attention.fused import Fused
from specrej.engines.torch.kernels import fused
from specrej.types import SamplingParams, TopLogprobs

LOST = -1
"""The id of a row that no token can be drawn from."""

_ROWS_AT_ONCE = 8
"""Rows reduced together: 8 rows of 50,000 float32 logits stay in a CPU's cache, where a whole
batch would not."""

_SEGMENT = 128
"""Width of the pieces whose maxima are compared first when the k largest logits are looked for."""


class History(NamedTuple):
    """What bias and penalties go by; None where one is off. Vocabulary in the last dimension."""

    bias: Tensor | None = None
    """`[1, vocabulary]` float32, added to the logits."""
    seen: Tensor | None = None
    """`[rows, vocabulary]` bool, tokens that the repetition penalty applies to."""
    counts: Tensor | None = None
    """`[rows, vocabulary]` int32, how often each answer has each token."""

    def add(self, ids: Tensor, rows: Sequence[int]) -> None:
        """Take note of one more token of these rows, `[rows, 1]`; a lost one's may be anything."""
        if self.seen is None and self.counts is None:
            return
        places = torch.tensor(rows, device=ids.device), ids[:, 0].clamp(min=0)
        if self.seen is not None:
            self.seen[places] = True
        if self.counts is not None:
            self.counts[places] += 1

    def joined(self, other: "History") -> "History":
        """That of these rows and, behind them, of others."""
        seen, counts = (
            new if old is None or new is None else torch.cat([old, new])
            for old, new in ((self.seen, other.seen), (self.counts, other.counts))
        )
        return History(other.bias, seen, counts)

    def of_rows(self, order: Sequence[int]) -> "History":
        """That of these rows."""
        return History(
            self.bias,
            None if self.seen is None else self.seen[order],
            None if self.counts is None else self.counts[order],
        )


def begin_history(
    params: SamplingParams,
    prompt_ids: Sequence[int],
    num_rows: int,
    width: int,
    device: torch.device,
) -> History:
    """That of answers without a token yet."""
    bias = seen = counts = None
    if params.logit_bias:
        bias = torch.zeros(1, width, device=device)
        for token_id, added in params.logit_bias:
            bias[0, token_id] = added
    if params.repetition_penalty != 1.0:
        seen = torch.zeros(num_rows, width, dtype=torch.bool, device=device)
        seen[:, list(prompt_ids)] = True
    if params.frequency_penalty or params.presence_penalty:
        counts = torch.zeros(num_rows, width, dtype=torch.int32, device=device)
    return History(bias, seen, counts)


_NONE = History()


def sample(
    logits: Tensor,
    params: SamplingParams,
    uniforms: Tensor,
    history: History = _NONE,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: `[rows, vocabulary]`, or `[1, vocabulary]` when all rows share them.
        params: temperature, top_k, top_p, min_p, the penalties.
        uniforms: `[rows]` float64 in [0, 1).
        history: of the rows.
        allowed: `[rows, vocabulary]` bool, or `[1, vocabulary]` for all rows: tokens that may come;
            None where all may.

    Returns:
        Token ids `[rows]` and their log-probabilities `[rows]` (nats, float32, finite) under the
        unfiltered distribution. The id is `LOST` where a row has NaN, plus infinity or nothing
        finite in it, or overflows under
        the penalty: no other row is touched, and no index is ever out of bounds.
    """
    normalizer = logsumexp(logits)
    scores = adjusted(logits, params, history)
    if allowed is not None:
        scores = scores.where(allowed, -torch.inf)
    tokens, weight = _likeliest(scores) if params.is_greedy else _draw(scores, params, uniforms)
    tokens = tokens.expand(len(uniforms), -1)
    logprobs = logits.expand(len(uniforms), -1).gather(1, tokens).float() - normalizer
    # NaN and infinity show in sums that are there anyway, so nothing reads the vocabulary again to
    # look for them.
    is_sound = (normalizer.isfinite() & weight.isfinite()).expand_as(tokens)
    least = torch.finfo(logprobs.dtype).min
    logprobs = logprobs.clamp(min=least).where(is_sound, least)
    return tokens.where(is_sound, LOST)[:, 0], logprobs[:, 0]


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


def likeliest(logits: Tensor, k: int) -> list[TopLogprobs]:
    """The k likeliest tokens of each row under the unfiltered distribution, likeliest first.

    Args:
        logits: `[rows, vocabulary]`.
        k: at least 1; all tokens where there are fewer.
    """
    values, ids = largest(logits, min(k, logits.shape[-1]))
    logprobs = values.float() - logsumexp(logits)
    logprobs = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    rows = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return [tuple(zip(*row, strict=True)) for row in rows]


def adjusted(logits: Tensor, params: SamplingParams, history: History) -> Tensor:
    """Logits under bias and penalties: those of transformers and vLLM, in vLLM's order."""
    scores = logits if history.bias is None else logits + history.bias
    if history.seen is not None:
        scores = penalize(scores, history.seen, params.repetition_penalty)
    if history.counts is not None:
        # In float32 or more, whatever the logits are in.
        taken = history.counts * params.frequency_penalty
        scores = scores - (taken + (history.counts > 0) * params.presence_penalty)
    return scores


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
    if (compiled := _compiled_for(scores)) is not None:
        return compiled.largest(scores, k, _SEGMENT)
    segments = scores.view(rows, -1, _SEGMENT)
    chosen = torch.topk(segments.amax(-1), k, -1, sorted=False).indices
    inside = segments.gather(1, chosen[:, :, None].expand(-1, -1, _SEGMENT)).view(rows, -1)
    values, offset = torch.topk(inside, k, -1)
    return values, chosen.gather(1, offset // _SEGMENT) * _SEGMENT + offset % _SEGMENT


def logsumexp(logits: Tensor) -> Tensor:
    """`logits.logsumexp(-1, keepdim=True)` in float32, some rows at a time; finite where a row
    is sound.
    """
    if (compiled := _compiled_for(logits)) is not None:
        return compiled.log_sum_exp(logits)
    starts = range(0, len(logits), _ROWS_AT_ONCE)
    return torch.cat(
        [logits[at : at + _ROWS_AT_ONCE].float().logsumexp(-1, keepdim=True) for at in starts]
    )


def _compiled_for(rows: Tensor) -> Fused | None:
    """The compiled functions, where these rows are as they need them."""
    return fused(rows.device, rows.dtype) if rows.is_contiguous() else None
