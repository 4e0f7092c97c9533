"""One forward pass of a model whose attention is `group_attention`, and the prefill of a prompt.

with memory_errors():
    logits, hidden = prefill(model, Group(ids, budget, layout, 1), device)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specrej.attention.attention import Pass, PrefillPass
from specrej.attention.groups import Group
from specrej.attention.layout import PREFILL_CHUNK
from specrej.errors import DeviceMemoryError


@torch.inference_mode()
def prefill(model: Any, group: Group, device: torch.device) -> tuple[Tensor, Tensor]:
    """Run what a group's prompt does not share through the model, its KV into the group.

    Returns the logits `[1, vocabulary]` and the last hidden state `[1, hidden]` at the prompt's
    last position.
    """
    for start in range(group.start, len(group.prompt_ids), PREFILL_CHUNK):
        ids = torch.tensor([group.prompt_ids[start : start + PREFILL_CHUNK]], device=device)
        positions = torch.arange(start, start + ids.shape[1], device=device)[None]
        logits, hidden = forward(model, ids, positions, PrefillPass(group, start))
    return logits, hidden.clone()  # a view would hold the states of the whole chunk


def forward(model: Any, ids: Tensor, positions: Tensor, kv: Pass) -> tuple[Tensor, Tensor]:
    """Logits `[rows, vocabulary]` and last hidden states `[rows, hidden]` of the last position
    of each row.
    """
    head_inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: head_inputs.append(given[0])
    )
    try:
        output = model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, kv=kv
        )
    finally:
        hook.remove()
    return output.logits[:, -1], head_inputs[0][:, -1]


@contextmanager
def memory_errors() -> Iterator[None]:
    """Name the ways in which torch says that memory is out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(str(error), hint="give a smaller --memory") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # what the CPU's allocator says
            raise
        raise DeviceMemoryError(str(error), hint="give a smaller --memory") from error
