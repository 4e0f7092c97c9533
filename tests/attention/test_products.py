"""Compiled products against float64, in registers, and on matrix units where this CPU has some."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from specrej.attention.fused import Fused, compile_fused, processor
from specrej.attention.products import Products

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def products(fused: Fused) -> Products:
    if fused.products is None:
        pytest.skip("this CPU has no such registers")
    return fused.products


Pack = Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]


@pytest.fixture(scope="module", params=["by_registers", "by_units"])
def pack(request: pytest.FixtureRequest, products: Products) -> Pack:
    if request.param == "by_units" and not products.has_units:
        pytest.skip("this CPU has no matrix units")
    return lambda weight, bias: getattr(products.pack(weight, bias, torch.float16), request.param)


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 600),
    tiles=st.integers(1, 7),
    biased=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@EXAMPLES
def test_products_are_those_of_float64_with_float16_weights(
    pack: Pack, rows: int, inputs: int, tiles: int, biased: bool, scale: float
) -> None:
    weight, bias = (
        numbers(16 * tiles, inputs, scale=0.1).half().float(),
        numbers(16 * tiles, seed=1),
    )
    bias *= biased
    x = numbers(rows, inputs, seed=2, scale=scale)
    actual = pack(weight, bias if biased else None)(x)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    # Of the size of what is summed.
    sizes = functional.linear(x.abs(), weight.abs(), bias.abs())
    assert actual.shape == exact.shape
    assert ((actual - exact).abs() <= sizes * 2**-15).all()


@given(rows=st.integers(2, 70), inputs=st.integers(1, 300), seed=st.integers(0, 2**31))
@EXAMPLES
def test_a_row_is_the_same_to_the_last_bit_alone_and_beside_others(
    pack: Pack, rows: int, inputs: int, seed: int
) -> None:
    call = pack(numbers(48, inputs), numbers(48, seed=1))
    x = numbers(rows, inputs, seed=seed)
    together = call(x)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(call(x[row : row + 1]), together[row : row + 1])


def test_every_float16_weight_is_held_exactly(pack: Pack) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()].float()
    weight = torch.zeros(16 * math.ceil(len(every) / 16), 1)
    weight[: len(every), 0] = every
    # Ones are bfloat16 numbers, so nothing else is rounded.
    assert torch.equal(pack(weight, None)(torch.ones(20, 1)), weight.t().expand(20, -1))


def test_what_is_not_finite_stays_in_its_row(pack: Pack) -> None:
    call, x = pack(numbers(32, 64), None), numbers(40, 64, seed=1)
    expected = call(x)
    x[3, 5], x[20, 9] = math.inf, math.nan
    actual = call(x)
    assert not actual[3].isfinite().any()
    assert not actual[20].isfinite().any()
    others = [row for row in range(40) if row not in (3, 20)]
    assert torch.equal(actual[others], expected[others])


def test_rows_of_any_layout(pack: Pack) -> None:
    call, x = pack(numbers(32, 24), None), numbers(3, 5, 48, seed=1)
    assert torch.equal(call(x[..., 8:32]), call(x[..., 8:32].contiguous()))
    assert call(x[..., :24]).shape == (3, 5, 32)


@pytest.mark.parametrize("outputs", [1, 15, 17, 33, 261])
@pytest.mark.parametrize("is_biased", [False, True])
def test_outputs_need_not_fill_tiles(pack: Pack, outputs: int, is_biased: bool) -> None:
    weight, bias = numbers(outputs, 40), numbers(outputs, seed=1) if is_biased else None
    x = numbers(33, 1, 40, seed=2)
    call = pack(weight, bias)
    assert torch.allclose(call(x), functional.linear(x, weight.half().float(), bias), atol=1e-3)
    assert call(x).is_contiguous()
    assert torch.equal(call(x)[:20], call(x[:20]))


def test_no_rows(pack: Pack) -> None:
    assert pack(numbers(32, 40), None)(torch.empty(0, 1, 40)).shape == (0, 1, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("inputs", [1, 31, 33, 576])
def test_registers_sum_as_float32_does(products: Products, inputs: int, dtype: torch.dtype) -> None:
    weight, x = numbers(49, inputs).to(dtype), numbers(21, inputs, seed=1)
    packed = products.pack(weight.float(), None, dtype)
    exact = functional.linear(x.double(), weight.double())
    sizes = functional.linear(x.abs(), weight.float().abs())
    assert ((packed.by_registers(x) - exact).abs() <= sizes * inputs * 2**-24).all()
    for row in range(21):
        assert torch.equal(packed.by_registers(x[row : row + 1])[0], packed.by_registers(x)[row])


@needs_compiler
@pytest.mark.skipif("avx2" not in processor(), reason="needs an x86 CPU with AVX2")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_narrower_registers_serve_as_well(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -mno-avx512f")
    fused = compile_fused(tmp_path)
    assert fused is not None
    assert fused.products is not None
    weight, bias = numbers(49, 70), numbers(49, seed=1)
    packed = fused.products.pack(weight, bias, dtype)
    for rows in range(1, 15):
        x = numbers(rows, 70, seed=2)
        expected = functional.linear(x, weight.to(dtype).float(), bias)
        assert torch.allclose(packed.by_registers(x), expected, atol=1e-4)
        assert torch.equal(packed.by_registers(x[-1:]), packed.by_registers(x)[-1:])


def test_there_are_none_without_registers() -> None:
    library: Any = SimpleNamespace(can_multiply=lambda: 0, has_registers=lambda: 0)
    assert Products.of(library) is None


@pytest.mark.parametrize(
    ("answer", "has_units", "is_said"), [(1, True, False), (0, False, False), (-1, False, True)]
)
def test_units_that_linux_denies_are_not_used_and_it_is_said(
    answer: int, has_units: bool, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    library: Any = SimpleNamespace(
        can_multiply=lambda: answer,
        has_registers=lambda: 1,
        multiply=SimpleNamespace(),
        multiply_in_registers=SimpleNamespace(),
    )
    with caplog.at_level(logging.INFO, "specrej"):
        found = Products.of(library)
    assert found is not None
    assert found.has_units == has_units
    assert ("matrix units are not used" in caplog.text) == is_said
