"""The compiled parts of a step against torch's own operations."""

import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from specrej.attention import fused as fused_module
from specrej.attention.attention import DecodePass, ExtendPass
from specrej.attention.fused import Fused, compile_fused
from specrej.attention.groups import Group, Scoring
from specrej.attention.layout import KvLayout

needs_avx512 = pytest.mark.skipif(
    "avx512f" not in fused_module.processor(), reason="other CPUs have no registers for this"
)
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
EXAMPLES = settings(max_examples=40, deadline=None)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compiled without optimizing, in a third of the time: flags for tests of who compiles, and
    when.
    """
    flags = [flag for flag in fused_module._FLAGS if flag != "-O3"]
    monkeypatch.setattr(fused_module, "_FLAGS", flags)
    return flags


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(shape=SHAPES, adds=st.booleans(), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@EXAMPLES
def test_norm_is_that_of_torch(
    fused: Fused, shape: tuple[int, int, int], adds: bool, scale: float
) -> None:
    rows, added, weight = numbers(*shape, scale=scale), numbers(*shape, seed=1), numbers(shape[-1])
    dim, eps = shape[-1], 1e-5
    expected_rows = rows + added if adds else rows.clone()
    expected = functional.rms_norm(expected_rows, (dim,), weight, eps)
    normed = fused.norm(rows, weight * dim**0.5, (dim * eps) ** 0.5, added if adds else None)
    torch.testing.assert_close(rows, expected_rows, rtol=0, atol=0)
    torch.testing.assert_close(normed, expected, rtol=1e-5, atol=1e-6)


@given(shape=SHAPES, scale=st.sampled_from([1e-3, 1.0, 30.0]))
@EXAMPLES
def test_gate_is_that_of_torch(fused: Fused, shape: tuple[int, int, int], scale: float) -> None:
    *rows, inner = shape
    both = numbers(*rows, 2 * inner, scale=scale)
    expected = functional.silu(both[..., :inner]) * both[..., inner:]
    torch.testing.assert_close(fused.gate(both), expected, rtol=1e-5, atol=1e-9)


@given(tokens=st.integers(1, 4), heads=st.integers(2, 5), pairs=st.integers(1, 40))
@EXAMPLES
def test_turned_heads_are_complex_products(
    fused: Fused, tokens: int, heads: int, pairs: int
) -> None:
    both = numbers(2, tokens, heads, 2 * pairs)
    turns = torch.view_as_complex(numbers(2, tokens, 1, pairs, 2))
    expected = torch.view_as_complex(both.view(2, tokens, heads, pairs, 2)) * turns
    expected = torch.view_as_real(expected).flatten(-2)
    expected[:, :, -1] = both[:, :, -1]
    fused.turn(both, heads - 1, turns)
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-6)


def make_group(parts: list[int], rows: int, heads: int, dim: int, length: int) -> Group:
    """A group with numbers in it, its prompt in parts of these lengths."""
    total = sum(parts)
    group = Group(list(range(total)), 0, KvLayout(0, 0, 8), length + 3)
    group.prompt_keys, group.prompt_values = (
        [numbers(heads, total, dim)],
        [numbers(heads, total, dim, seed=1)],
    )
    for stop in torch.tensor(parts).cumsum(0).tolist()[:-1]:
        group.divide(stop)
    group.indices, group.length = list(range(rows)), length
    group.keys, group.values = (
        [numbers(rows + 1, heads, length + 3, dim, seed=seed)] for seed in (2, 3)
    )
    return group


def standing(places: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(places), torch.full((len(places),), length)


@given(
    parts=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    rows=st.integers(1, 4),
    heads=st.integers(1, 3),
    shared=st.integers(1, 9),
    dim=st.sampled_from([16, 48, 64, 80, 128, 256]),
    length=st.integers(0, 140),
    window=st.one_of(st.none(), st.integers(1, 300)),
)
@EXAMPLES
def test_attention_is_that_of_torch(
    fused: Fused,
    parts: list[int],
    rows: int,
    heads: int,
    shared: int,
    dim: int,
    length: int,
    window: int | None,
) -> None:
    scoring = Scoring(dim**-0.5, window, None)
    groups = [make_group(parts, rows, heads, dim, length) for _ in range(2)]
    # Heads of one row stand next to each other, as the layers give them.
    asked = numbers(rows, 1, heads * (shared + 2), dim, seed=4).transpose(1, 2)
    query, key, value = torch.split(asked, [heads * shared, heads, heads], 1)
    expected = DecodePass([groups[0]]).attend(0, query, key, value, scoring)
    assert fused.can_attend(query, key, value, scoring)
    seen = DecodePass([groups[1]], fused=fused).attend(0, query, key, value, scoring)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    blocks = (group.keys + group.values for group in groups)
    for one, other in zip(*blocks, strict=True):
        torch.testing.assert_close(one[:rows], other[:rows], rtol=0, atol=0)


@given(
    lengths=st.lists(st.integers(0, 140), min_size=1, max_size=5),
    num_held=st.integers(0, 2),
    window=st.one_of(st.none(), st.integers(1, 200)),
)
@EXAMPLES
def test_rows_of_unlike_lengths_attend_as_by_torch(
    fused: Fused, lengths: list[int], num_held: int, window: int | None
) -> None:
    counts = [0] * min(num_held, len(lengths) - 1)
    counts += [1] * (len(lengths) - len(counts))
    scoring = Scoring(0.125, window, None)
    groups = [make_group([20, 60], len(lengths), 2, 64, max(lengths)) for _ in range(2)]
    asked = numbers(sum(counts), 1, 2 * 3 + 4, 64, seed=4).transpose(1, 2)
    query, key, value = torch.split(asked, [6, 2, 2], 1)
    expected, seen = (
        DecodePass([group], {0: ExtendPass(group, 0, lengths, counts)}, kernel).attend(
            0, query, key, value, scoring
        )
        for group, kernel in zip(groups, (None, fused), strict=True)
    )
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for one, other in zip(groups[0].keys, groups[1].keys, strict=True):
            mine, theirs = one[row, :, : length + count], other[row, :, : length + count]
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("grown", ["keys", "values"])
def test_one_block_may_have_more_slots_than_the_other(fused: Fused, grown: str) -> None:
    """They do where memory ran out while they grew."""
    scoring = Scoring(0.125, None, None)
    groups = [make_group([7], 3, 2, 64, 5) for _ in range(2)]
    for group in groups:
        block = getattr(group, grown)
        block[0] = functional.pad(block[0], (0, 0, 0, 32))
    asked = numbers(3, 1, 6, 64).transpose(1, 2)
    query, key, value = torch.split(asked, 2, 1)
    expected = DecodePass([groups[0]]).attend(0, query, key, value, scoring)
    seen = DecodePass([groups[1]], fused=fused).attend(0, query, key, value, scoring)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    blocks = (group.keys + group.values for group in groups)
    for one, other in zip(*blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_row_has_the_same_numbers_alone_as_beside_others(fused: Fused) -> None:
    scoring = Scoring(0.125, None, None)
    asked = numbers(300, 1, 5, 64).transpose(1, 2)
    query, key, value = torch.split(asked, [3, 1, 1], 1)
    many = make_group([70], 300, 1, 64, 40)
    seen = fused.attend(many, 0, query, key, value, scoring, *standing(range(300), 40))
    alone = make_group([70], 1, 1, 64, 40)
    alone.keys, alone.values = [many.keys[0][7:8].clone()], [many.values[0][7:8].clone()]
    again = fused.attend(alone, 0, query[7:8], key[7:8], value[7:8], scoring, *standing([0], 40))
    assert torch.equal(again, seen[7:8])
    rows, weight = numbers(2000, 576), numbers(576)
    normed = fused.norm(rows.clone(), weight, 0.1, None)
    assert torch.equal(fused.norm(rows[9:10].clone(), weight, 0.1, None), normed[9:10])
    assert torch.equal(fused.gate(rows[9:10].clone()), fused.gate(rows)[9:10])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_row(fused: Fused, broken: float) -> None:
    rows = numbers(3, 32)
    rows[1, 5] = broken
    normed = fused.norm(rows.clone(), numbers(32), 0.1, None)
    gated = fused.gate(torch.cat((rows, numbers(3, 32).clamp(min=0.1)), -1))
    query, key, value = torch.split(numbers(3, 3, 1, 32), 1, 1)
    query[1, 0, 0, 5] = broken
    group = make_group([4], 3, 1, 32, 2)
    seen = fused.attend(
        group, 0, query, key, value, Scoring(1.0, None, None), *standing(range(3), 2)
    )
    for out in (normed, gated, seen.flatten(1)):
        assert out.isfinite().all(-1).tolist() == [True, False, True]


def test_what_it_cannot_do_is_left_to_torch(fused: Fused) -> None:
    query, key, value = torch.split(numbers(2, 5, 1, 64), [3, 1, 1], 1)
    plain = Scoring(1.0, None, None)
    assert fused.can_attend(query, key, value, plain)
    assert not fused.can_attend(query, key, value, Scoring(1.0, None, 30.0))
    assert not fused.can_attend(query.double(), key.double(), value.double(), plain)
    assert not fused.can_attend(query[..., :63], key[..., :63], value[..., :63], plain)
    query, key, value = torch.split(numbers(2, 67, 1, 64), [65, 1, 1], 1)
    assert not fused.can_attend(query, key, value, plain)


def _fail(**_: object) -> None:
    pytest.fail("compiled again")


@needs_compiler
@pytest.mark.usefixtures("quickly")
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_fused(tmp_path / "new") is not None
    (library,) = (tmp_path / "new").iterdir()
    monkeypatch.setattr(tempfile, "TemporaryDirectory", _fail)
    assert compile_fused(tmp_path / "new") is not None
    assert [*(tmp_path / "new").iterdir()] == [library]


@needs_compiler
def test_none_where_nothing_compiles_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compile_fused(tmp_path) is None
    monkeypatch.setenv("CC", shutil.which("false") or "false")
    assert compile_fused(tmp_path) is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("SPECREJ_FUSED", "off")
    assert compile_fused(tmp_path) is None
    assert not [*tmp_path.iterdir()]
    monkeypatch.delenv("SPECREJ_FUSED")
    (tmp_path / "file").write_text("")
    assert compile_fused(tmp_path / "file") is None


@needs_compiler
@pytest.mark.skipif("avx2" not in fused_module.processor(), reason="needs an x86 CPU with AVX2")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_it_serves_with_narrower_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    monkeypatch.setenv("CC", f"cc {without}")
    narrower = compile_fused(tmp_path)
    assert narrower is not None
    asked = numbers(3, 1, 6, 64).transpose(1, 2)
    query, key, value = torch.split(asked, 2, 1)
    groups = [make_group([70, 90], 3, 2, 64, 50) for _ in range(2)]
    scoring = Scoring(0.125, 120, None)
    expected = DecodePass([groups[0]]).attend(0, query, key, value, scoring)
    seen = DecodePass([groups[1]], fused=narrower).attend(0, query, key, value, scoring)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    ("written", "miscompiled"),
    [
        ("row[i] += more[i]", "row[i] -= more[i]"),
        ("-gates[i]", "gates[i]"),
        ("by[i + 1] + imaginary", "by[i + 1] - imaginary"),
        ("h < turned", "h < heads"),
        ("sum += weights[j]", "sum = weights[j]"),
        ("own_keys + length * dim", "own_keys"),
        ("exponential(row[i] - most)", "exponential(row[i])"),
        ("swap(&heap, 0, left);", ""),
        ("scores[s][j] = nothing", "scores[s][j] = scores[s][0]"),
        ("SEE(1, n)", ""),
        ("SEE(1, 4)", ""),
        ("SEE(1, 8)", ""),
        ("SEE(1, 16)", ""),
        pytest.param("SEE(2, 4)", "", marks=needs_avx512),
        pytest.param("SEE(3, 4)", "", marks=needs_avx512),
        pytest.param("SEE(4, 4)", "", marks=needs_avx512),
        pytest.param("SEE(2, 8)", "", marks=needs_avx512),
    ],
)
@pytest.mark.usefixtures("quickly")
def test_what_is_miscompiled_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, miscompiled: str
) -> None:
    first, *others = fused_module._SOURCES
    source = first.read_text()
    assert source.count(written) == 1
    (tmp_path / "fused.c").write_text(source.replace(written, miscompiled))
    monkeypatch.setattr(fused_module, "_SOURCES", (tmp_path / "fused.c", *others))
    assert compile_fused(tmp_path / "kernels") is None


@needs_compiler
@pytest.mark.usefixtures("quickly")
def test_a_compiler_may_come_with_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", f"{shutil.which('env')} '{shutil.which('cc')}' -pipe")
    assert compile_fused(tmp_path / "a b") is not None
    monkeypatch.setenv("CC", "'cc")
    assert compile_fused(tmp_path) is None
    monkeypatch.setenv("CC", " ")
    assert compile_fused(tmp_path) is not None


@pytest.mark.parametrize("hangs_at", ["--version", "-c"])
def test_a_compiler_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs_at: str
) -> None:
    compiler, ended = tmp_path / "cc", tmp_path / "ended"
    # What it has started goes on when it is told to end, and holds what it prints to.
    waits = f"sh -c 'sleep 3; touch {ended}'"
    compiler.write_text(
        f'#!/bin/sh\nfor each in "$@"; do [ "$each" = {hangs_at} ] && {waits}; done\nexit 0\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr("specrej.attention.fused._MOST_SECONDS", 0.2)
    assert compile_fused(tmp_path / "new") is None
    assert not ended.exists()
    assert not [*tmp_path.glob("new/*")]


@needs_compiler
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("cpu", ["", "model name: another"])
def test_a_library_is_for_one_cpu_or_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str
) -> None:
    calls: list[list[str]] = []
    run = subprocess.run

    def note(call: list[str], **given: Any) -> Any:
        calls.append(call)
        return run(call, **given)

    monkeypatch.setattr("subprocess.run", note)
    assert compile_fused(tmp_path) is not None
    monkeypatch.setattr("specrej.attention.fused.processor", lambda: cpu)
    assert compile_fused(tmp_path) is not None
    assert len([*tmp_path.iterdir()]) == 2
    first, second = (call for call in calls if "-c" in call)
    assert ("-march=native" in first, "-march=native" in second) == (True, bool(cpu))


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path: Path, quickly: list[str]) -> None:
    assert compile_fused(tmp_path / "whole") is not None
    (whole,) = (tmp_path / "whole").iterdir()
    library = tmp_path / "damaged" / whole.name
    library.parent.mkdir()
    library.write_bytes(whole.read_bytes()[:1000])
    # In a process of its own: a library cut short may kill who loads it.
    script = (
        "import sys; from pathlib import Path; from specrej.attention import fused;"
        "fused._FLAGS = sys.argv[2:];"
        "print(fused.compile_fused(Path(sys.argv[1])) is not None)"
    )
    run = [sys.executable, "-c", script, str(library.parent), *quickly]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "True\n"
    assert list(library.parent.iterdir()) == [library]
    assert library.stat().st_size > 1000


@given(rows=st.integers(1, 5), width=st.integers(1, 300), scale=st.sampled_from([1e-3, 1.0, 80.0]))
@EXAMPLES
def test_log_sum_exp_is_that_of_torch(fused: Fused, rows: int, width: int, scale: float) -> None:
    logits = numbers(rows, width, scale=scale)
    logits[0, 0] = -torch.inf if width > 1 else 0.0
    expected = logits.double().logsumexp(-1, keepdim=True).float()
    torch.testing.assert_close(fused.log_sum_exp(logits), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_log_sum_exp_shows_what_is_not_finite_in_its_row_alone(fused: Fused, number: float) -> None:
    logits = numbers(3, 70)
    logits[1, 33] = number
    assert fused.log_sum_exp(logits).isfinite()[:, 0].tolist() == [True, False, True]
    assert not fused.log_sum_exp(torch.full((1, 9), -torch.inf)).isfinite()


@given(
    rows=st.integers(1, 4),
    pieces=st.integers(1, 12),
    piece=st.integers(1, 9),
    data=st.data(),
)
@EXAMPLES
def test_the_largest_come_in_order_and_of_equals_the_first(
    fused: Fused, rows: int, pieces: int, piece: int, data: st.DataObject
) -> None:
    k, values = data.draw(st.integers(1, pieces)), st.sampled_from([-math.inf, -1.5, 0.0, 1.0, 7.0])
    width = pieces * piece
    listed = data.draw(
        st.lists(st.lists(values, min_size=width, max_size=width), min_size=rows, max_size=rows)
    )
    scores = torch.tensor(listed)
    expected, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    found, places = fused.largest(scores, k, piece)
    assert torch.equal(found, expected[:, :k])
    assert torch.equal(places, order[:, :k])


def test_beside_nan_the_largest_are_in_bounds(fused: Fused) -> None:
    scores = numbers(3, 32)
    scores[1, 3:9], scores[2], scores[2, 7] = math.nan, math.nan, 2.0
    values, places = fused.largest(scores, 4, 8)
    assert torch.equal(values[0], scores[0].topk(4).values)
    assert ((places >= 0) & (places < 32)).all()
    assert values[2].tolist() == [2.0, *[-math.inf] * 3]
    assert places[2].tolist() == [7, 0, 0, 0]
