"""Every kernel against `F.linear`, and that a row's result is its own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from specrej.attention import linear
from specrej.attention.fused import Fused
from specrej.attention.linear import WEIGHTS, half_forms, pack_linears
from specrej.attention.products import Products

# Largest error as a share of the largest output.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3}
SHAPES = [(8, 8), (48, 32), (33, 17), (261, 576), (1, 64)]


class Two(nn.Module):
    """Two linear layers, one of them deeper down."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(first, nn.Tanh())
        self.head = second

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.body(rows))  # type: ignore[no-any-return]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_linear(out: int, inside: int, *, bias: bool, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(inside, out, bias=bias)
    layer.weight.data = random(out, inside, seed=seed) * inside**-0.5
    if bias:
        layer.bias.data = random(out, seed=seed + 1)
    return layer


@pytest.fixture(scope="module", params=["compiled", "by torch"])
def products(request: pytest.FixtureRequest) -> Products | None:
    """What is compiled where this machine can; None for what torch has."""
    if request.param == "by torch":
        return None
    fused: Fused = request.getfixturevalue("fused")
    if fused.products is None:
        pytest.skip("this CPU has no such registers")
    return fused.products


Pack = Callable[[nn.Module, str], Callable[[Tensor], Tensor]]


@pytest.fixture
def pack(products: Products | None) -> Pack:
    @torch.inference_mode()
    def pack(layer: nn.Module, weights: str) -> Callable[[Tensor], Tensor]:
        holder = nn.Sequential(layer)
        pack_linears(holder, weights, products)
        return torch.inference_mode()(holder)

    return pack


def make_conv(out: int, inside: int) -> nn.Module:
    make: Any = Conv1D
    layer: nn.Module = make(out, inside)
    return layer


def share(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("out", "inside"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_kernels_compute_the_linear_layer(
    pack: Pack, weights: str, out: int, inside: int, bias: bool
) -> None:
    layer = make_linear(out, inside, bias=bias)
    weight, offset = layer.weight.detach().clone(), layer.bias.detach().clone() if bias else None
    packed = pack(layer, weights)
    for shape in [(1, inside), (5, inside), (1, 7, inside), (4, 1, inside), (2, 3, inside)]:
        rows = random(*shape, seed=9)
        expected = functional.linear(rows, weight, offset)
        actual = packed(rows)
        assert actual.shape == expected.shape
        assert actual.dtype == torch.float32
        assert share(actual, expected) < TOLERANCES[weights]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_rows_that_are_no_dense_block(pack: Pack, weights: str) -> None:
    layer = make_linear(24, 16, bias=True)
    weight, offset = layer.weight.detach().clone(), layer.bias.detach().clone()
    packed = pack(layer, weights)
    wide = random(6, 3, 40)
    for rows in (wide[:, :, 8:24], wide[::2, :, :16], wide[:, -1:, :16], random(16, 6).t()):
        assert share(packed(rows), functional.linear(rows, weight, offset)) < TOLERANCES[weights]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_lie_transposed(pack: Pack, weights: str) -> None:
    layer = make_conv(24, 16)
    layer.get_parameter("weight").data, layer.get_parameter("bias").data = (
        random(16, 24),
        random(24, seed=1),
    )
    rows = random(3, 5, 16, seed=2)
    expected = layer(rows).detach()
    packed = pack(layer, weights)
    assert share(packed(rows), expected) < TOLERANCES[weights]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight", [65504.1, 1e5, -1e5, 3e38])
def test_a_weight_beyond_float16_keeps_its_layer_exact(
    pack: Pack, weight: float, bias: bool
) -> None:
    layer = make_linear(24, 16, bias=bias)
    layer.weight.data[3, 4] = weight
    rows = random(5, 16, seed=2)
    expected = functional.linear(rows, layer.weight.detach(), layer.bias.detach() if bias else None)
    packed = pack(layer, "fp16")
    actual = packed(rows)
    assert torch.allclose(actual[:, 3], expected[:, 3], rtol=1e-5)
    others = [column for column in range(24) if column != 3]
    assert share(actual[:, others], expected[:, others]) < TOLERANCES["fp32"]


def test_the_largest_weight_of_float16_is_held(pack: Pack) -> None:
    layer = make_linear(24, 16, bias=False)
    layer.weight.data[3, 4] = 65504.0
    rows = random(5, 16, seed=2)
    expected = functional.linear(rows, layer.weight.detach())
    packed = pack(layer, "fp16")
    assert share(packed(rows), expected) < TOLERANCES["fp16"]


def test_small_weights_survive_float16(pack: Pack) -> None:
    """Weights of 1e-6 are subnormal in float16: what is lost stays small beside the layer's own
    output."""
    layer = make_linear(24, 16, bias=False)
    layer.weight.data[0] *= 1e-5
    rows = random(5, 16, seed=2)
    expected = functional.linear(rows, layer.weight.detach())
    packed = pack(layer, "fp16")
    assert share(packed(rows), expected) < TOLERANCES["fp16"]
    assert (packed(rows)[:, 0] - expected[:, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_linear_layer_of_a_model_is_replaced(weights: str, products: Products | None) -> None:
    model = Two(make_linear(32, 16, bias=True), make_conv(8, 32))
    rows = random(4, 16)
    expected = model(rows).detach()
    kernel = pack_linears(model, weights, products)
    assert kernel.startswith(weights)
    assert not [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    assert not list(model.parameters())
    assert share(model(rows), expected) < TOLERANCES[weights]


def _broken(*_: object) -> Callable[[Tensor], Tensor]:
    raise RuntimeError("no such operator")


def _missing(*_: object) -> Callable[[Tensor], Tensor]:
    raise AttributeError("'_OpNamespace' 'quantized' object has no attribute 'linear_prepack_fp16'")


def _wrong(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda rows: functional.linear(rows, weight, bias) * 1.5


def _late(*_: object) -> Callable[[Tensor], Tensor]:
    def call(_: Tensor) -> Tensor:
        raise NotImplementedError("not on this CPU")

    return call


@pytest.mark.parametrize("pack_badly", [_broken, _missing, _wrong, _late])
def test_a_kernel_that_fails_is_not_used(
    pack_badly: Callable[..., Callable[[Tensor], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: Any = SimpleNamespace(
        has_units=False,
        pack=lambda weight, bias, _: SimpleNamespace(by_registers=pack_badly(weight, bias)),
    )
    assert half_forms(bad) == half_forms(None)
    layer, rows = make_linear(32, 16, bias=True), random(4, 16)
    model, expected = nn.Sequential(layer), layer(rows).detach()
    assert pack_linears(model, "fp32", bad) == "fp32 (oneDNN, prepacked)"
    assert share(model(rows), expected) < TOLERANCES["fp32"]
    monkeypatch.setattr(linear, "_pack_rounded", pack_badly)
    few_only = half_forms(None)
    assert few_only is not None
    assert (few_only.few, few_only.many) == ("fbgemm", None)
    monkeypatch.setattr(linear, "_pack_fbgemm", pack_badly)
    assert half_forms(None) is None


@pytest.mark.parametrize("pack_badly", [_broken, _missing, _wrong, _late])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_where_no_kernel_works_torch_multiplies(
    weights: str,
    pack_badly: Callable[..., Callable[[Tensor], Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_pack_fbgemm", "_pack_onednn"):
        monkeypatch.setattr(linear, name, pack_badly)
    model = Two(make_linear(32, 16, bias=True), make_linear(8, 32, bias=False))
    rows = random(4, 16)
    expected = model(rows).detach()
    assert pack_linears(model, weights) == "fp32 (torch)"
    assert share(model(rows), expected) < TOLERANCES["fp32"]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("inside", [64, 576, 1536])
def test_a_row_does_not_depend_on_its_neighbours(pack: Pack, weights: str, inside: int) -> None:
    """To rounding: the order of sums may differ with the number of rows, a scale over the whole
    batch may not."""
    packed = pack(make_linear(96, inside, bias=True), weights)
    rows = random(40, inside)
    rows[1:] *= 1000.0
    together = packed(rows)
    assert share(packed(rows[:1]), together[:1]) < 1e-5
    assert share(packed(rows[:3]), together[:3]) < 1e-5
