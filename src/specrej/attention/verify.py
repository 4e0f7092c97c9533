"""Proves that a model computes on our attention what it computes on transformers' own, or refuses
it by name.

recorder, difference = verify(model, expect, probe)     # ModelError where the logits differ
recorder.layout(granule=16)                      # what a token holds in KV
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from specrej.attention.attention import Pass
from specrej.attention.groups import Scoring
from specrej.attention.layout import KvLayout
from specrej.errors import ModelError, SpecrejError

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of two logits that counts as the same, as a share of the largest logit."""


@dataclass
class Recorder:
    """Passes on to another pass and notes what each layer asked for, and the shapes of its KV
    and its heads.
    """

    inner: Pass
    scoring: dict[int, Scoring] = field(default_factory=dict)
    tensor_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pair_flops: dict[int, int] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        self.scoring[layer] = scoring
        size = key.element_size()
        self.tensor_sizes[layer] = (key[0, :, 0].numel() * size, value[0, :, 0].numel() * size)
        self.pair_flops[layer] = 2 * query.shape[1] * (query.shape[3] + value.shape[3])
        return self.inner.attend(layer, query, key, value, scoring)

    def layout(self, granule: int) -> KvLayout:
        """What a token holds in KV, in a block that grows by so many slots."""
        sizes = list(self.tensor_sizes.values())
        return KvLayout(
            sum(key + value for key, value in sizes), max(max(pair) for pair in sizes), granule
        )


@torch.inference_mode()
def verify(
    model: Any, expect: Callable[[], Tensor], probe: Callable[[], tuple[Tensor, Recorder]]
) -> tuple[Recorder, float]:
    """Compare the logits of a model on both attentions; what each layer asked for, and the largest
    difference as a share of the largest logit.

    Args:
        model: of transformers, with its own attention.
        expect: its logits with that.
        probe: the same logits with ours, and what each layer asked for.

    Raises:
        ModelError: the logits differ, or the model cannot run on our attention; says why.
    """
    architecture, config = type(model).__name__, model.config.get_text_config()
    check_kinds(model, config)
    try:
        expected = expect().float()
        actual, recorder = probe()
    except SpecrejError:
        raise
    except Exception as error:
        raise ModelError(
            f"{architecture} does not run on the torch engine's attention: {error!r}"
        ) from error
    check_windows(architecture, config, recorder)
    difference = differ(actual, expected)
    if not difference <= TOLERANCE[model.dtype]:
        raise ModelError(
            f"{architecture} is not supported by the torch engine: its logits differ from "
            "transformers' own by "
            f"{difference:.1e} of the largest logit"
        )
    return recorder, difference


def differ(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of two logits, as a share of the largest logit."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def check_kinds(model: nn.Module, config: Any) -> None:
    """Refuse layers that are no attention, or attention of another kind than ours."""
    architecture = type(model).__name__
    for module in model.modules():
        if getattr(module, "is_causal", None) is False:
            raise ModelError(
                f"{architecture} is not causal: its {type(module).__name__} sees the tokens to come"
            )
    for layer, kind in enumerate(getattr(config, "layer_types", None) or []):
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"layer {layer} of {architecture} is of kind {kind!r}, which the torch engine does "
                "not honour"
            )


def check_windows(architecture: str, config: Any, recorder: Recorder) -> None:
    """Refuse layers whose window our attention was not told of: the short text cannot tell them
    from full attention.
    """
    for layer, kind in enumerate(getattr(config, "layer_types", None) or []):
        scoring = recorder.scoring.get(layer)
        if scoring is None or (kind == "sliding_attention" and scoring.window is None):
            raise ModelError(
                f"layer {layer} of {architecture} does not hand its window to the torch engine's "
                "attention"
            )
