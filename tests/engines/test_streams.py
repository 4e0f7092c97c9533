"""The generator is Philox4x32-10 to the letter, its numbers are uniform, and each has an address of
its own.

Odds of a false alarm of the statistical tests: below 1 in 10^6 for a fresh seed; the seeds are
fixed, so never twice.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from specrej.engines.streams import philox4x32, uniforms

FALSE_ALARM = 1e-6


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32([np.array([word], dtype=np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_is_uniform_over_candidates_and_over_positions(seed: int) -> None:
    across = uniforms(seed, range(20_000), 3)
    along = np.concatenate([uniforms(seed, range(10), position) for position in range(2_000)])
    for numbers in (across, along):
        assert stats.kstest(numbers, "uniform").pvalue > FALSE_ALARM


def test_neighbouring_candidates_positions_and_seeds_are_uncorrelated() -> None:
    numbers = uniforms(7, range(20_001), 5)
    pairs = [
        (numbers[:-1], numbers[1:]),
        (numbers, uniforms(7, range(20_001), 6)),
        (numbers, uniforms(8, range(20_001), 5)),
    ]
    for one, other in pairs:
        assert stats.pearsonr(one, other).pvalue > FALSE_ALARM


def test_no_two_addresses_share_a_number() -> None:
    numbers = [
        uniforms(seed, range(100), position) for seed in (0, 1, 2**32) for position in range(100)
    ]
    # 30,000 of 2^53 numbers: two meet by chance with odds of 5 in 10^8.
    assert len(np.unique(np.concatenate(numbers))) == 30_000


@given(
    seed=st.integers(0, 2**64 - 1),
    candidates=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    position=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_number_depends_on_its_address_alone(
    seed: int, candidates: list[int], position: int
) -> None:
    together = uniforms(seed, candidates, position)
    alone = [uniforms(seed, [candidate], position)[0] for candidate in candidates]
    assert together.tolist() == alone
    assert uniforms(seed, candidates[::-1], position).tolist() == alone[::-1]
    assert ((together >= 0) & (together < 1)).all()


def test_all_64_bits_of_the_seed_and_high_candidates_count() -> None:
    addresses = [(0, 0), (2**32, 0), (2**63, 0), (0, 2**32), (0, 2**39)]
    assert len({uniforms(seed, [candidate], 0)[0] for seed, candidate in addresses}) == len(
        addresses
    )


def test_no_candidates_no_numbers() -> None:
    assert uniforms(0, [], 0).shape == (0,)
