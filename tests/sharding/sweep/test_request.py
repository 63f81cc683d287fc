"""What a sweep can be asked."""

import pytest

from distaff.sharding.sweep.errors import SweepError
from distaff.sharding.sweep.request import parse_range


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1:64", (1, 2, 4, 8, 16, 32, 64)), ("1:48", (1, 2, 4, 8, 16, 32, 48)), ("24", (24,)), ("8,12", (8, 12))],
)
def test_ranges_are_powers_of_two(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_range("--batch", text) == numbers


@pytest.mark.parametrize("text", ["", "0", "a", "8:4", "1:x", "-3"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(SweepError, match="--batch"):
        parse_range("--batch", text)
