"""Float16 weights in two forms, and from how many rows on the second is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from specrej.attention.linear import HalfForms, PackedLinear, half_forms, pack_linears
from specrej.attention.products import Products
from specrej.engines.torch import kernels
from specrej.engines.torch.loading import wrap
from specrej.types import SamplingParams
from tiny import make_ids, make_model, make_tokenizer

PRODUCTS = kernels.products_here(torch.device("cpu"))
KINDS = {"by torch": None} | ({} if PRODUCTS is None else {"compiled": PRODUCTS})
"""The kernels of torch alone, and the compiled ones where this CPU has some."""
FORMS = half_forms(PRODUCTS)
pytestmark = pytest.mark.skipif(FORMS is None or FORMS.many is None, reason="a kernel is not here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and tiny layers that are worth a second form."""
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "_LEAST_NUMBERS", 1)
    return tmp_path / "cache" / "kernels"


def measured(monkeypatch: pytest.MonkeyPatch, found: int | None) -> list[int]:
    """Have measurements find this; a list that gets longer with each."""
    calls: list[int] = []

    def measure(weights: Any, forms: HalfForms) -> int | None:
        calls.append(len(weights))
        return found

    monkeypatch.setattr(kernels, "measure", measure)
    return calls


def turning_point(**shape: Any) -> int | None:
    return kernels.turning_point(make_model("llama", **shape))


@pytest.mark.parametrize("products", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_both_forms_compute_with_the_same_rounded_weights(products: Products | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, rows = (
        torch.randn(shape, generator=generator) for shape in ((96, 64), (96,), (40, 1, 64))
    )
    layer = nn.Linear(64, 96)
    layer.weight.data, layer.bias.data = weight, bias
    model = nn.Sequential(layer)
    forms = half_forms(products)
    assert forms is not None
    kernel = pack_linears(model, "fp16", products, 8)
    assert kernel == f"fp16 ({forms.few}, from 8 rows on {forms.many})"
    exact = functional.linear(rows.double(), weight.half().double(), bias.double())
    for num_rows in (1, 7, 8, 40):
        actual = model(rows[:num_rows])
        assert (actual - exact[:num_rows]).abs().max() < 1e-5 * exact.abs().max()


@torch.inference_mode()
def test_the_number_of_rows_decides_whatever_their_shape() -> None:
    layer = PackedLinear(lambda rows: rows * 0, lambda rows: rows * 0 + 1, 8)
    for shape, is_many in (((7, 1, 4), 0), ((8, 1, 4), 1), ((1, 7, 4), 0), ((1, 8, 4), 1)):
        assert layer(torch.ones(shape)).unique().tolist() == [is_many]


@pytest.mark.parametrize("products", KINDS.values(), ids=KINDS)
def test_what_float16_cannot_hold_stays_exact(products: Products | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    layer.weight.data[0, 0] = 1e6
    model, rows = nn.Sequential(layer), torch.ones(9, 16)
    expected = functional.linear(rows, layer.weight.detach(), layer.bias.detach())
    pack_linears(model, "fp16", products, 4)
    # A sum that is nearly 0 is off by what its parts are off by.
    assert torch.allclose(model(rows), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(model(rows[:1]), expected[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("found", [16, None])
def test_a_machine_measures_once(
    found: int | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(monkeypatch, found)
    for _ in range(3):
        assert turning_point() == found
    assert len(calls) == 1
    assert [json.loads(path.read_text()) for path in cache.iterdir()] == [{"many_rows": found}]
    turning_point(hidden_size=64)  # other shapes
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["{", '{"many_rows": "abc"}', '{"many_rows": -5}'])
def test_a_broken_measurement_is_made_anew(
    content: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(monkeypatch, 16)
    turning_point()
    (path,) = cache.iterdir()
    path.write_text(content)
    assert turning_point() == 16
    assert len(calls) == 2


def test_where_the_cache_cannot_be_written_there_is_one_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECREJ_CACHE", str(tmp_path / "file"))
    measured(monkeypatch, 16)
    assert turning_point() is None


def test_small_layers_are_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SPECREJ_CACHE", str(cache))
    calls = measured(monkeypatch, 16)
    assert turning_point() is None
    assert calls == []


@pytest.mark.parametrize(
    ("faster", "expected"),
    [(set(), None), ({64}, 64), ({16}, None), ({16, 64}, 16), ({4, 16, 64}, 4), ({4, 64}, 64)],
)
def test_the_turning_point_is_where_all_larger_sizes_gain(
    faster: set[int], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter((64, 16, 4))
    monkeypatch.setattr(
        kernels, "_in_turns", lambda *_: [2.0 if next(sizes) in faster else 1.0, 1.0]
    )
    assert FORMS is not None
    assert kernels.measure([torch.ones(8, 4)], FORMS, (4, 16, 64)) == expected


@pytest.mark.parametrize(("weights", "is_asked"), [(None, True), ("fp16", True), ("fp32", False)])
def test_a_result_says_what_was_found(
    weights: str | None, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(monkeypatch, 4)
    engine = wrap(make_model("llama"), make_tokenizer(), weights=weights)
    assert bool(calls) == is_asked
    assert ("from 4 rows on" in engine.describe()["weights"]) == is_asked
    prompt = engine.open(make_ids(9), SamplingParams(max_new_tokens=3), 2**26)
    engine.add(prompt, range(6))
    assert len(engine.step()) == 6
