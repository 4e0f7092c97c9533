"""How likely a prompt's tokens are: a prefill of its own, chunk by chunk, with the logits of all
positions.

    likelihoods = read(model, Group(ids, budget, layout, 1), device, num_top=5)
"""

from typing import Any

import torch
from torch import Tensor

from specrej.attention.attention import PrefillPass
from specrej.attention.groups import Group
from specrej.attention.layout import PREFILL_CHUNK
from specrej.engines.reading import Likelihood
from specrej.errors import EngineError

_MOST_LOGITS = 1 << 24
"""Logits that are there at a time: 64 MiB in float32, beside the same in the model's own
precision."""


@torch.inference_mode()
def read(model: Any, group: Group, device: torch.device, num_top: int) -> list[Likelihood]:
    """Of each of a new group's tokens but the first. The group's KV is there until it is let go.

    Raises:
        EngineError: the model's logits are not finite.
    """
    ids, likelihoods = group.prompt_ids, list[Likelihood]()
    num_words = len(model.get_input_embeddings().weight)
    chunk = max(min(PREFILL_CHUNK, _MOST_LOGITS // num_words), 1)
    for start in range(0, len(ids) - 1, chunk):
        tokens = torch.tensor([ids[start : min(start + chunk, len(ids) - 1)]], device=device)
        positions = torch.arange(start, start + tokens.shape[1], device=device)[None]
        kv = PrefillPass(group, start)
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False, kv=kv).logits[0]
        following = torch.tensor(ids[start + 1 : start + 1 + len(logits)], device=device)
        likelihoods += _of(logits, following, num_top)
    return likelihoods


def _of(logits: Tensor, following: Tensor, num_top: int) -> list[Likelihood]:
    """How likely each of these tokens is by its row of logits, `[tokens, vocabulary]`."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    norms = logits.logsumexp(-1, keepdim=True)
    own = (logits.gather(-1, following[:, None]) - norms)[:, 0]
    top, ids = logits.topk(min(num_top, logits.shape[-1]), -1)
    if not norms.isfinite().all():
        raise EngineError(
            "within the prompt the model's logits are not finite (NaN or infinity)",
            hint="its weights are broken, or overflow in this precision: try weights or a dtype of "
            "more range",
        )
    rows = zip(own.tolist(), ids.tolist(), (top - norms).tolist(), strict=True)
    return [Likelihood(one, tuple(zip(*others, strict=True))) for one, *others in rows]
