"""Linear layers through the fastest kernel this CPU has.

On a CPU the matrix library decides the speed. Two kernels of torch beat `F.linear` there: weights
reordered once for oneDNN (exact float32) and weights stored in float16 (fbgemm; half the bytes to
read, sums in float32). Either may be missing on another processor or in another torch, so each is
tried once on a small layer; what fails is not used. At many rows the matrix units of a CPU
(`products`), or oneDNN, can be faster with the same rounded weights: who packs says from how many
on (`engines/torch/kernels.py` measures it).

    pack_linears(model, "fp16")      # -> "fp16 (fbgemm)"
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.products import Products

PackedCall = Callable[[Tensor], Tensor]

_FP16_MAX = torch.finfo(torch.float16).max


def _pack_onednn(weight: Tensor, bias: Tensor | None) -> PackedCall:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    apply = torch.ops.mkldnn._linear_pointwise.default
    return lambda rows: apply(rows, packed, bias, "none", [], "")


def pack_fp16(weight: Tensor, bias: Tensor | None) -> PackedCall:
    """The form of float16 weights for few rows, by fbgemm; exact where float16 cannot hold them."""
    return _pack_fbgemm(weight, bias) if _fits_fp16(weight) else _pack_onednn(weight, bias)


def _pack_fbgemm(weight: Tensor, bias: Tensor | None) -> PackedCall:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
    apply = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda rows: apply(rows, packed)


def _pack_rounded(weight: Tensor, bias: Tensor | None) -> PackedCall:
    """The weights that fbgemm holds, in oneDNN's form: what differs is the order of sums."""
    return _pack_onednn(weight.half().float(), bias)


def _fits_fp16(weight: Tensor) -> bool:
    # Fbgemm saturates what float16 cannot hold; such a layer would be wrong in silence.
    # By numpy: it stays on this thread, of which there are as many as cores.
    values = weight.numpy()
    return bool(max(values.max(), -values.min()) <= _FP16_MAX)


_Pack = Callable[[Tensor, Tensor | None], PackedCall]

_KERNELS: dict[str, list[tuple[str, _Pack]]] = {
    "fp32": [("fp32 (oneDNN, prepacked)", _pack_onednn)],
    "fp16": [("fp16 (fbgemm)", pack_fp16), ("fp32 (oneDNN, prepacked)", _pack_onednn)],
}

WEIGHTS = tuple(_KERNELS)
"""Storage of the weights on a CPU, as `--weights` takes it."""


class PackedLinear(nn.Module):
    """Stands in for a linear layer; holds its weight in the kernel's own layout, in two layouts
    where many rows go through another kernel.
    """

    def __init__(
        self, call: PackedCall, many: PackedCall | None = None, many_rows: int = 0
    ) -> None:
        super().__init__()
        self._call, self._many, self._many_rows = call, many, many_rows

    def forward(self, rows: Tensor) -> Tensor:
        if self._many is not None and rows.numel() >= self._many_rows * rows.shape[-1]:
            return self._many(rows)
        return self._call(rows)


@dataclass(frozen=True, slots=True)
class SecondForm:
    """A form of float16 weights that is made for many rows.

    Attributes:
        name: what multiplies.
        pack: makes it from a weight that float16 can hold, and a bias.
    """

    name: str
    pack: _Pack


def form_for_many(products: Products | None) -> SecondForm | None:
    """The fastest for many rows that works here; None where there is none, or none for few rows.

    Args:
        products: those of the CPU's matrix units, where it has some.
    """
    if not _works(pack_fp16) or not _works(_pack_rounded):
        return None
    if products is not None and _works(products.pack):
        return SecondForm("AMX", products.pack)
    return SecondForm("oneDNN", _pack_rounded)


def pack_linears(model: nn.Module, weights: str, many: tuple[int, SecondForm] | None = None) -> str:
    """Replace every linear layer of a float32 CPU model, the head included, and name the kernel
    that now runs.

    Args:
        model: changed in place; the original weights are released one by one.
        weights: "fp32" or "fp16".
        many: float16 weights are held in this form as well, which multiplies so many rows and more.
            None: they are not.
    """
    if weights == "fp16" and many is not None:
        rows, form = many
        _replace(model, lambda weight, bias: _in_two_forms(weight, bias, form, rows))
        return f"fp16 (fbgemm, from {rows} rows on {form.name})"
    for name, pack in _KERNELS[weights]:
        if _works(pack):
            _replace(model, lambda *given, pack=pack: PackedLinear(pack(*given)))
            return name
    return "fp32 (torch)"


def _in_two_forms(weight: Tensor, bias: Tensor | None, form: SecondForm, rows: int) -> PackedLinear:
    """One form, an exact one, where float16 cannot hold the weights."""
    if not _fits_fp16(weight):
        return PackedLinear(_pack_onednn(weight, bias))
    return PackedLinear(_pack_fbgemm(weight, bias), form.pack(weight, bias), rows)


def _replace(model: nn.Module, pack: Callable[[Tensor, Tensor | None], PackedLinear]) -> None:
    """Pack every linear layer. Each is packed by one thread, so several are packed at once."""

    def replace(place: tuple[nn.Module, str]) -> None:
        parent, name = place
        setattr(parent, name, pack(*weight_and_bias(parent.get_submodule(name))))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(replace, list(linears_of(model))))


def _works(pack: _Pack) -> bool:
    """Whether the kernel is there and right, on one small layer."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, rows = (
        torch.randn(shape, generator=generator) for shape in ((48, 32), (48,), (1, 5, 32))
    )
    try:
        return torch.allclose(
            pack(weight, bias)(rows), functional.linear(rows, weight, bias), rtol=1e-2, atol=1e-2
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def linears_of(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Who holds a linear layer, and as what."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear or _is_conv1d(child):
                yield parent, name


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether it is a linear layer as GPT-2 has it. Its class takes longer to import than torch."""
    kind = type(layer)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight `[out, in]` and bias of a linear layer; GPT-2 keeps its weights transposed."""
    weight = layer.get_parameter("weight").detach()
    bias = layer._parameters.get("bias")
    return (weight.t() if _is_conv1d(layer) else weight), (None if bias is None else bias.detach())
