"""Linear layers through the fastest kernel this CPU has.

On a CPU the matrix library decides the speed. Weights are exact, in float32, or in float16, which
takes half of the bytes; sums are in float32. Those in float16 have a form for few rows and may have
one for many: who packs says from how many rows on (`engines/torch/kernels.py` measures it). Any
kernel may be missing on another processor or in another torch, so each is tried once on a small
layer; what fails is not used.

    # products: of the compiled library; None leaves them to torch
    pack_linears(model, "fp16", products, 64)   # -> "fp16 (compiled, from 64 rows on AMX)"
    pack_linears(model, "fp32")                 # -> "fp32 (oneDNN, prepacked)"
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from specrej.attention.products import Products

PackedCall = Callable[[Tensor], Tensor]
_Pack = Callable[[Tensor, Tensor | None], PackedCall]

WEIGHTS = ("fp32", "fp16")
"""Storage of the weights on a CPU, as `--weights` takes it."""

_FP16_MAX = torch.finfo(torch.float16).max


def _pack_onednn(weight: Tensor, bias: Tensor | None) -> PackedCall:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    apply = torch.ops.mkldnn._linear_pointwise.default
    return lambda rows: apply(rows, packed, bias, "none", [], "")


def _pack_fbgemm(weight: Tensor, bias: Tensor | None) -> PackedCall:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
    apply = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda rows: apply(rows, packed)


def _pack_rounded(weight: Tensor, bias: Tensor | None) -> PackedCall:
    """Float16 weights in oneDNN's form, as float32: what differs is the order of sums."""
    return _pack_onednn(weight.half().float(), bias)


def _fits_fp16(weight: Tensor) -> bool:
    # What float16 cannot hold would be infinite, or saturate: the layer would be wrong in silence.
    # By numpy: it stays on this thread, of which there are as many as cores.
    values = weight.numpy()
    return bool(max(values.max(), -values.min()) <= _FP16_MAX)


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


TwoForms = tuple[PackedCall, Callable[[], PackedCall]]
"""The form for few rows, and what makes the one for many."""


@dataclass(frozen=True, slots=True)
class HalfForms:
    """How layers with float16 weights are multiplied.

    Attributes:
        few: what multiplies few rows.
        many: what may be faster for many rows; None where nothing is.
        pack: both forms of a weight that float16 can hold, and a bias.
    """

    few: str
    many: str | None
    pack: Callable[[Tensor, Tensor | None], TwoForms]


def half_forms(products: Products | None) -> HalfForms | None:
    """The fastest forms that work here; None where there is none, not even for few rows.

    Args:
        products: the compiled ones, where there are some.
    """
    known = [HalfForms("fbgemm", "oneDNN", _by_torch)]
    if products is not None:
        many = "AMX" if products.has_units else "oneDNN"
        known.insert(0, HalfForms("compiled", many, partial(_compiled, products)))
    for forms in known:
        if _works(lambda *given, forms=forms: forms.pack(*given)[0]):
            has_many = _works(lambda *given, forms=forms: forms.pack(*given)[1]())
            return forms if has_many else replace(forms, many=None)
    return None


def _compiled(products: Products, weight: Tensor, bias: Tensor | None) -> TwoForms:
    packed = products.pack(weight, bias, torch.float16)
    if products.has_units:
        return packed.by_registers, lambda: packed.by_units
    return packed.by_registers, partial(_pack_rounded, weight, bias)


def _by_torch(weight: Tensor, bias: Tensor | None) -> TwoForms:
    return _pack_fbgemm(weight, bias), partial(_pack_rounded, weight, bias)


def _exact(products: Products | None) -> tuple[str, _Pack]:
    """The fastest kernel for weights in float32 that works here, and its name."""
    known: list[tuple[str, _Pack]] = [("oneDNN, prepacked", _pack_onednn)]
    if products is not None:
        known.insert(0, ("compiled", partial(_pack_exact, products)))
    return next((kernel for kernel in known if _works(kernel[1])), ("torch", _leave))


def _pack_exact(products: Products, weight: Tensor, bias: Tensor | None) -> PackedCall:
    return products.pack(weight, bias, torch.float32).by_registers


def _leave(weight: Tensor, bias: Tensor | None) -> PackedCall:
    return partial(functional.linear, weight=weight, bias=bias)


def pack_linears(
    model: nn.Module, weights: str, products: Products | None = None, many_rows: int | None = None
) -> str:
    """Replace every linear layer of a float32 CPU model, the head included, and name the kernel
    that now runs.

    Args:
        model: changed in place; the original weights are released one by one.
        weights: "fp32", or "fp16", which is exact where nothing multiplies such weights.
        products: the compiled ones, where there are some.
        many_rows: the form of float16 weights for many rows multiplies so many and more. None: it
            is not made.
    """
    forms = half_forms(products) if weights == "fp16" else None
    name, exact = _exact(products)
    if forms is None:
        _replace(model, lambda *given: PackedLinear(exact(*given)))
        return f"fp32 ({name})"
    _replace(model, lambda weight, bias: _in_half(weight, bias, forms, many_rows, exact))
    many = "" if many_rows is None else f", from {many_rows} rows on {forms.many}"
    return f"fp16 ({forms.few}{many})"


def _in_half(
    weight: Tensor, bias: Tensor | None, forms: HalfForms, many_rows: int | None, exact: _Pack
) -> PackedLinear:
    """An exact layer where float16 cannot hold the weights."""
    if not _fits_fp16(weight):
        return PackedLinear(exact(weight, bias))
    few, make_many = forms.pack(weight, bias)
    return PackedLinear(few) if many_rows is None else PackedLinear(few, make_many(), many_rows)


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
