"""What a run costs in floating-point operations, from the shape of its models: the one place for
it.

    flops = engine.flops                                     # what one token costs this model
    flops.prefill(60)  # one prompt of 60 tokens, read once for all candidates
    flops.decode(60, [128, 16, 16])  # three answers to it, of which two were rejected early
    row = flops_of(flops, 60, [128, 16, 16], reward.flops_per_token, usage.reward_tokens)

Counted are matrix products, a multiplication and an addition as two operations, as the torch engine
executes them: linear layers, the head, and queries times keys and weights times values in
attention. Left out are norms, activations, softmax, rotary positions, sampling and copies: together
under 1% of the operations, not of the seconds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class FlopsRow(TypedDict):
    """Floating-point operations of one prompt's run, by part."""

    prefill: float | None
    decode: float | None
    """None, as what comes before it, where the engine does not know its model."""
    reward: float | None
    """None where the reward does not say what reading a token costs it."""


FLOPS_PARTS: tuple[Literal["prefill", "decode", "reward"], ...] = ("prefill", "decode", "reward")


class AttentionFlops(NamedTuple):
    """The layers of one window."""

    window: int | None
    """A query sees the last `window` positions, its own included; None sees all."""
    per_pair: float
    """Operations for one query and one key it meets, over all heads and all these layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlops:
    """What a forward pass of a decoder costs.

    Attributes:
        linear: operations for each token fed to the model, in all linear layers but the head.
        head: operations for each position whose logits are computed.
        attention: operations for each pair of a query and a key, by window.
        chunk: prompt tokens that are read in one pass.
    """

    linear: float
    head: float
    attention: tuple[AttentionFlops, ...]
    chunk: int

    def prefill(self, num_prompt_tokens: int, num_shared: int = 0) -> float:
        """Reading a prompt once, in chunks, with logits for the last position of each chunk.

        The first `num_shared` tokens were read before, for another prompt.

        A chunk is multiplied with all positions so far; those that causality or a window hides are
        masked afterwards, so they cost as much as the others.
        """
        starts = [*range(num_shared, num_prompt_tokens, self.chunk), num_prompt_tokens]
        num_pairs = sum((stop - start) * stop for start, stop in pairwise(starts))
        attention: float = num_pairs * sum(layers.per_pair for layers in self.attention)
        return (
            self.linear * (num_prompt_tokens - num_shared)
            + self.head * (len(starts) - 1)
            + attention
        )

    def decode_each(self, num_prompt_tokens: int, lengths: ArrayLike) -> NDArray[np.float64]:
        """Drawing answers of these lengths in tokens, one by one: an array of the shape of
        `lengths`, in operations.

        The first token of an answer is drawn from the prompt's logits, and the last one is never
        fed to the model.
        """
        fed = np.maximum(np.asarray(lengths, dtype=np.float64) - 1, 0)
        total = fed * (self.linear + self.head)
        for window, per_pair in self.attention:
            # The i-th token fed meets the prompt and i tokens, as many of them as the window shows.
            in_sight = fed if window is None else np.clip(window - num_prompt_tokens, 0, fed)
            num_pairs = in_sight * num_prompt_tokens + in_sight * (in_sight + 1) / 2
            total = total + per_pair * (num_pairs + (fed - in_sight) * (window or 0))
        return total

    def decode(self, num_prompt_tokens: int, lengths: ArrayLike) -> float:
        """Drawing all these answers, the rejected ones by the tokens they had."""
        return float(self.decode_each(num_prompt_tokens, lengths).sum())

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {**asdict(self), "attention": [list(layers) for layers in self.attention]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "ModelFlops":
        """What `to_dict` gave, by way of JSON or not."""
        attention = tuple(AttentionFlops(*layers) for layers in given["attention"])
        return cls(
            linear=given["linear"], head=given["head"], attention=attention, chunk=given["chunk"]
        )


def flops_of(
    model: ModelFlops | None,
    num_prompt_tokens: int,
    lengths: ArrayLike,
    reward_flops_per_token: float | None,
    reward_tokens: int,
    num_shared: int = 0,
    inherited: ArrayLike = (),
) -> FlopsRow:
    """The operations of one prompt's run, by part.

    Args:
        model: of the engine; None where that does not know.
        num_prompt_tokens: read once, however many waves of candidates follow.
        lengths: tokens of every candidate, rejected ones included.
        reward_flops_per_token: None where the reward does not say.
        reward_tokens: tokens that the reward has read, all decisions together.
        num_shared: tokens of the prompt that were read before, for another prompt.
        inherited: tokens of candidates that were drawn for those that they are copies of.
    """
    decode = None
    if model is not None:
        inherited_flops = model.decode(num_prompt_tokens, inherited)
        decode = model.decode(num_prompt_tokens, lengths) - inherited_flops
    return {
        "prefill": None if model is None else model.prefill(num_prompt_tokens, num_shared),
        "decode": decode,
        "reward": None
        if reward_flops_per_token is None
        else reward_flops_per_token * reward_tokens,
    }


def total_of(parts: Iterable[float | None]) -> float | None:
    """Their sum; None where one is not known."""
    given = list(parts)
    known = [part for part in given if part is not None]
    return sum(known) if len(known) == len(given) else None


def sum_of(one: FlopsRow, other: FlopsRow) -> FlopsRow:
    """Two runs together, part by part."""
    return FlopsRow(
        prefill=total_of((one["prefill"], other["prefill"])),
        decode=total_of((one["decode"], other["decode"])),
        reward=total_of((one["reward"], other["reward"])),
    )


def linear_flops(model: "PreTrainedModel", head: "nn.Module | None" = None) -> float:
    """Operations of a transformers model's linear layers for each token, by the weights in its
    modules.

    Of a mixture of experts, whose weights are `[experts, out, in]`, each token meets
    `config.num_experts_per_tok`; all where the config does not say. Embeddings are looked up, not
    multiplied. A layer that is called several times in one pass is counted once.

    Args:
        model: with its weights in their modules, so before the engine has packed them.
        head: left out.
    """
    from torch import nn

    num_active = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    total = 0.0
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() == 2:
                total += 2 * weight.numel()
            elif weight.dim() == 3:
                total += 2 * weight.numel() * (num_active or len(weight)) / len(weight)
    return total


def flops_of_config(config: Any, chunk: int) -> ModelFlops | None:
    """What a decoder costs, from its configuration alone: for engines whose modules are not
    transformers'.

    None where transformers cannot make the architecture from it: a figure is missing, the engine
        decodes all the same.

    Args:
        config: of transformers, for the text.
        chunk: prompt tokens that are read in one pass.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception:
        return None
    head = model.get_output_embeddings()
    return ModelFlops(
        linear=linear_flops(model, head),
        head=2 * head.weight.numel(),
        attention=_attention_of_config(config),
        chunk=chunk,
    )


def _attention_of_config(config: Any) -> tuple[AttentionFlops, ...]:
    """By window. Where the layers are not told apart, all have the window, or none."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    windows = Counter(window if kind == "sliding_attention" else None for kind in kinds)
    per_pair = 4 * config.num_attention_heads * head_dim(config)
    return tuple(AttentionFlops(window, per_pair * count) for window, count in windows.items())


def head_dim(config: Any) -> int:
    """Numbers of a key in one attention head, from a configuration of transformers."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
