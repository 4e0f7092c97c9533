"""What rewards share that read with a transformers model: opening it, its length limit, batches of
like length.

    network, tokenizer, source = open_network("org/model", AutoModel, "an encoder")
    limit = token_limit(network, tokenizer)
    scores = score_by_length("embedding:org/model", candidates, lengths, 16, forward)
    ids, mask = pad_right([[5, 6, 7], [5]], network)

What a reward feeds its model, and what it makes of the output, is its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specrej.errors import RewardError, UsageError
from specrej.hub.pretrained import LoadedModel, open_pretrained
from specrej.types import Candidate


def open_network(
    model: str | Path | LoadedModel,
    auto: Any,
    kind: str,
    *,
    device: str | None,
    dtype: torch.dtype | None,
    **how: Any,
) -> tuple[Any, Any, str]:
    """A reward's model in evaluation mode, its tokenizer, and what it is called.

    Args:
        model: see `specrej.hub.pretrained.open_pretrained`; or a loaded model with its tokenizer,
            which is taken over.
        auto: the class of transformers that opens it.
        kind: what is expected, for the message: "an encoder".
        device: not for a loaded model.
        dtype: not for a loaded model.
        how: see `open_pretrained`.

    Raises:
        ModelError: it cannot be read, or its checkpoint lacks weights.
        UsageError: device or dtype for a loaded model.
    """
    if isinstance(model, tuple):
        if device is not None or dtype is not None:
            raise UsageError(
                "a loaded model has its device and dtype", hint="move the model before you give it"
            )
        network: Any = model[0]
        return network.eval(), model[1], network.name_or_path or type(network).__name__
    network, tokenizer = open_pretrained(model, auto, kind, device=device, dtype=dtype, **how)
    network.config.get_text_config().use_cache = (
        False  # nothing is generated: KV would be memory for nothing
    )
    return network, tokenizer, str(model)


def token_limit(network: Any, tokenizer: Any) -> int | None:
    """Most tokens that model and tokenizer can take; None where neither says."""
    # RoBERTa counts two positions too many in its config and has it right in its tokenizer; an
    # unset limit of a tokenizer is a number beyond all lengths.
    positions = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    known = [
        n for n in (positions, tokenizer.model_max_length) if n is not None and 0 < n < 1 << 40
    ]
    return min(known, default=None)


def score_by_length(
    name: str,
    candidates: Sequence[Candidate],
    lengths: Sequence[int],
    batch_size: int,
    forward: Callable[[list[int]], Sequence[float]],
) -> list[float]:
    """The scores of all candidates, in batches of like length, so that little is padded.

    Args:
        name: of the reward, for the message.
        candidates: to score.
        lengths: tokens of each.
        batch_size: candidates in a forward pass.
        forward: the scores of some of them, which it is told by their positions in `candidates`.

    Raises:
        RewardError: a pass failed; names its candidates.
    """
    scores = [0.0] * len(candidates)
    order = sorted(range(len(candidates)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with naming(name, [candidates[i].index for i in batch]):
            found = forward(batch)
        for i, score in zip(batch, found, strict=True):
            scores[i] = score
    return scores


@contextmanager
def naming(reward: str, indices: Sequence[int]) -> Iterator[None]:
    """Turn what a model raises into an error that names the candidates it was reading."""
    try:
        yield
    except Exception as exc:
        raise RewardError(
            f"reward {reward!r} failed on candidates {sorted(indices)}: {type(exc).__name__}: "
            f"{exc}",
            hint="a smaller batch_size takes less memory, a smaller max_tokens fewer positions",
        ) from exc


def pad_right(rows: Sequence[Sequence[int]], network: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask `[rows, longest]` on the network's device, filled up on the
    right.
    """
    # RoBERTa counts its positions by which tokens are padding, so padding must be its own.
    config = network.config.get_text_config()
    given = config.pad_token_id
    filler = given if given is not None and 0 <= given < config.vocab_size else 0
    width = max(len(row) for row in rows)
    ids = torch.tensor(
        [[*row, *[filler] * (width - len(row))] for row in rows], device=network.device
    )
    lengths = torch.tensor([len(row) for row in rows], device=network.device)
    mask = (torch.arange(width, device=network.device) < lengths[:, None]).long()
    return ids, mask
