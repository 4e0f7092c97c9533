"""Proves that the engine computes with a model what transformers computes, and says what is then
known of it.

    opened = check(model, tokenizer)         # ModelError where the logits differ
    set_up(model, opened)                    # our attention, and our layers where they do the same
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specrej.attention.attention import DecodePass, PrefillPass, use_groups
from specrej.attention.decoder import Decoder, can_be_written_out
from specrej.attention.groups import GRANULE, Group, Scoring
from specrej.attention.layout import PREFILL_CHUNK, KvLayout
from specrej.attention.verify import TOLERANCE, Recorder, differ, verify
from specrej.engines.torch.kernels import fused
from specrej.engines.torch.remembered import Opened
from specrej.flops import AttentionFlops, ModelFlops, linear_flops
from specrej.hub.quiet import quiet_transformers

_PROBE_PROMPT, _PROBE_NEW = 9, 4


def check(model: Any, tokenizer: Any) -> Opened:
    """Compare our attention with transformers' own on a short text; what is known of the model.

    Leaves the model set to our attention.

    Raises:
        ModelError: the logits differ from transformers' own, or the model cannot run.
    """
    model.eval()
    with quiet_transformers():
        recorder, difference, scoring = _verify(model)
    return Opened(
        difference=difference,
        layout=recorder.layout(GRANULE),
        flops=_flops(model, recorder),
        eos_ids=_eos_ids(model.generation_config, tokenizer),
        context_tokens=_context_tokens(model),
        scoring=scoring,
    )


def set_up(model: Any, opened: Opened) -> None:
    """Let our attention and, where that was seen to be the same, our layers run a model."""
    model.eval()
    with quiet_transformers():
        use_groups(model)
    if opened.scoring:
        _write_out(model, opened.scoring, is_trial=False)


@torch.inference_mode()
def _verify(model: Any) -> tuple[Recorder, float, tuple[Scoring, ...]]:
    """What each layer asked for, how far apart the logits are, and how each layer scores where our
    layers compute the same: nothing where they do not.
    """
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (2, _PROBE_PROMPT + _PROBE_NEW), generator=generator).to(
        model.device
    )
    ids[1, :_PROBE_PROMPT] = ids[0, :_PROBE_PROMPT]

    def expect() -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, _PROBE_PROMPT - 1 :]
        return logits

    def probe() -> tuple[Tensor, Recorder]:
        use_groups(model)
        return _probe(model, ids)

    recorder, difference = verify(model, expect, probe)
    return recorder, difference, _scoring_of_ours(model, recorder.scoring, ids)


def _scoring_of_ours(
    model: Any, scoring: Mapping[int, Scoring], ids: Tensor
) -> tuple[Scoring, ...]:
    """How each layer scores, where `Decoder` computes what the layers do; else nothing.

    That is tried on the first layers, as many as it takes to have one of each kind, at the end of
    the longest text and at its beginning: some models treat far positions in another way. The model
    is left as it was.
    """
    backbone = model.base_model
    if model.device.type != "cpu" or backbone is model or not can_be_written_out(backbone):
        return ()
    layers = backbone.layers
    scorings = tuple(scoring[number] for number in range(len(layers)))
    kinds = list(map(_kind, layers, scorings))
    backbone.layers = layers[: max(map(kinds.index, kinds)) + 1]
    # The beginning comes last: positions that are scaled by the longest text so far start anew.
    far = max(_context_tokens(model) - ids.shape[1], 0)
    try:
        expected = torch.cat([_probe(model, ids, first)[0] for first in (far, 0)])
        _write_out(model, scorings, is_trial=True)
        actual = torch.cat([_probe(model, ids, first)[0] for first in (far, 0)])
        is_same = differ(actual, expected) <= TOLERANCE[model.dtype]
    except (AttributeError, RuntimeError, TypeError):  # parts of these names that are others
        is_same = False
    finally:
        setattr(model, model.base_model_prefix, backbone)
        backbone.layers = layers
    return scorings if is_same else ()


def _kind(layer: Any, scoring: Scoring) -> object:
    """What layers of one model may differ in beside their weights, such as whether they turn
    positions.
    """
    parts = layer, layer.self_attn, layer.mlp
    return scoring, [
        (type(part), {name: given for name, given in vars(part).items() if _is_plain(name, given)})
        for part in parts
    ]


def _is_plain(name: str, given: object) -> bool:
    return name != "layer_idx" and isinstance(given, int | float | str | None)


def _context_tokens(model: Any) -> int:
    """Most tokens of a text, as far as the model says."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _write_out(model: Any, scoring: tuple[Scoring, ...], *, is_trial: bool) -> None:
    compiled = fused(model.device, model.dtype)
    decoder = Decoder(model.base_model, dict(enumerate(scoring)), compiled, is_trial=is_trial)
    setattr(model, model.base_model_prefix, decoder)


def _flops(model: Any, recorder: Recorder) -> ModelFlops:
    per_pair: Counter[int | None] = Counter()
    for layer, scoring in recorder.scoring.items():
        per_pair[scoring.window] += recorder.pair_flops[layer]
    head = model.get_output_embeddings()
    return ModelFlops(
        linear=linear_flops(model, head),
        head=2 * head.weight.numel(),
        attention=tuple(AttentionFlops(window, count) for window, count in per_pair.items()),
        chunk=PREFILL_CHUNK,
    )


def _probe(model: Any, ids: Tensor, first: int = 0) -> tuple[Tensor, Recorder]:
    """Logits `[2, new + 1, vocabulary]` for the last prompt token and each token after it, on
    our attention; the first token has this position.
    """
    prompt = ids[0, :_PROBE_PROMPT].tolist()
    group = Group(prompt, budget_bytes=0, layout=KvLayout(0, 0, GRANULE), max_slots=_PROBE_NEW)
    half = _PROBE_PROMPT // 2
    for start, stop in ((0, half), (half, _PROBE_PROMPT)):
        recorder = Recorder(PrefillPass(group, start))
        positions = torch.arange(first + start, first + stop, device=ids.device)[None]
        output = model(
            input_ids=ids[:1, start:stop], position_ids=positions, use_cache=False, kv=recorder
        )
    logits = [output.logits[:, -1].expand(2, -1)]
    group.indices = [0, 1]
    for step in range(_PROBE_NEW):
        group.reserve()
        position = _PROBE_PROMPT + step
        positions = torch.full((2, 1), first + position, device=ids.device)
        decode = DecodePass([group], fused=fused(model.device, model.dtype))
        output = model(
            input_ids=ids[:, position, None], position_ids=positions, use_cache=False, kv=decode
        )
        logits.append(output.logits[:, -1])
        group.length += 1
    return torch.stack(logits, dim=1).float(), recorder


def _eos_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end an answer: the generation config's, else the tokenizer's."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None:
        eos = tokenizer.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])
