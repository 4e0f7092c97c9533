import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrej.errors import UsageError
from specrej.memory import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("64MiB", 64 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        (" 2 kib ", 2048),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        ("0.5KiB", 512),
        ("1", 1),
    ],
)
def test_reads_amounts(amount: str | int, expected: int) -> None:
    assert parse_bytes(amount) == expected


@pytest.mark.parametrize(
    "amount",
    [
        "",
        "MiB",
        "64MB",
        "64 M",
        "-1",
        -1,
        0,
        "0GiB",
        "0.5",
        "1e6",
        "1,5GiB",
        "nan",
        True,
        "1MiB 2MiB",
        "9" * 400 + "MB",
    ],
)
def test_refuses_what_is_no_amount_and_quotes_it(amount: str | int) -> None:
    with pytest.raises(UsageError, match="memory must be like '64MiB'") as caught:
        parse_bytes(amount)
    assert repr(amount) in str(caught.value)


@pytest.mark.parametrize(
    "amount", ["999999999999999999GiB", "9" * 400, "9223372036854775808", 2**63]
)
def test_refuses_what_no_machine_holds_and_says_the_bound(amount: str | int) -> None:
    bound = r"memory must be below 8,589,934,592 GiB \(2\^63 bytes\), got "
    with pytest.raises(UsageError, match=bound) as caught:
        parse_bytes(amount)
    assert repr(amount) in str(caught.value)
    assert parse_bytes(2**63 - 1) == 2**63 - 1
    with pytest.raises(UsageError, match=bound):  # Python does not write it
        parse_bytes(10**5000)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (64 * 2**20, "64.00 MiB"),
        (3 * 2**29, "1.50 GiB"),
        (2**20 + 1, "1.01 MiB"),
    ],
)
def test_writes_amounts_rounded_up(amount: int, expected: str) -> None:
    assert format_bytes(amount) == expected


@given(st.integers(1, 2**45))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_is_written_and_read_again_is_enough_and_at_most_a_percent_more(amount: int) -> None:
    assert amount <= parse_bytes(format_bytes(amount)) <= amount * 1.01 + 1


@given(st.integers(1, 2**50))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_number_of_bytes_is_taken_as_it_is(amount: int) -> None:
    assert parse_bytes(amount) == parse_bytes(str(amount)) == amount
