"""Names of schemes, and what is wrong with others."""

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.models.compress import SCHEMES, parse_scheme


def test_names_and_groups() -> None:
    assert [parse_scheme(name) for name in SCHEMES] == list(SCHEMES.values())
    assert parse_scheme("int8").activations and not parse_scheme("int8-weight").activations
    assert parse_scheme("int4").group == 64 and parse_scheme("int4:32").group == 32
    assert parse_scheme("int8-weight:128").group == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", "quantize is 'int3', expected one of int8, int8-weight, int4"),
        ("INT8", "quantize is 'INT8'"),
        ("", "quantize is ''"),
        ("int8:64", "int8: scales of groups go with int8-weight and int4"),
        ("int4:0", "groups of an even number of weights"),
        ("int4:33", "groups of an even number of weights"),
    ],
)
def test_others_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        parse_scheme(text)
