"""How weights are quantised, by the names that users give."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ...backends.errors import InvalidParameterError

Kind = Literal["int8", "int4", "float8_e4m3fn"]

BOUNDS: Mapping[str, float] = {"int8": 127.5, "int4": 7.5, "float8_e4m3fn": 448.0}
"""What the largest weight of a group becomes, before it is rounded; whole numbers above the type's largest are cut."""


@dataclass(frozen=True)
class Scheme:
    """Which numbers stand for weights.

    Args:
        name: as the user writes it.
        kind: type of the numbers.
        activations: whether what they are multiplied with is rounded to the same type, with a scale for each token.
        group: how many weights of an output channel share a scale; None: all.
        tables: type of the table of the vocabulary, with a scale for each row; None: it stays.
    """

    name: str
    kind: Kind
    activations: bool = False
    group: int | None = None
    tables: Kind | None = "int8"


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", "int8", activations=True),
        Scheme("int8-weight", "int8"),
        Scheme("int4", "int4", group=64),
        Scheme("fp8", "float8_e4m3fn", activations=True, tables="float8_e4m3fn"),
        Scheme("fp8-weight", "float8_e4m3fn", tables="float8_e4m3fn"),
    )
}
"""`int8` means one thing everywhere: weights and activations."""

STORED, EXPANDED = "stored", "none"
"""Further names: weights as the checkpoint has them, in small numbers; and as the floats that these stand for."""

_GROUPED = ("int8-weight", "int4")
_MAX_GROUP = 2**20


def parse_scheme(text: str, field: str = "quantize") -> Scheme:
    """`NAME`, or `NAME:G` for groups of G weights.

    Raises:
        InvalidParameterError: it is none of them.
    """
    match = re.fullmatch(r"([a-z0-9-]+)(?::(\d{1,7}))?", text)
    found = SCHEMES.get(match[1]) if match else None
    if match is None or found is None:
        others = (STORED, EXPANDED) if field == "quantize" else ()
        raise InvalidParameterError(field, text, f"one of {', '.join((*SCHEMES, *others))}")
    if match[2] is None:
        return found
    group = int(match[2])
    if found.name not in _GROUPED:
        raise InvalidParameterError(
            field, text, f"{found.name}: scales of groups go with {' and '.join(_GROUPED)}, whose activations stay"
        )
    if group < 2 or group % 2 or group > _MAX_GROUP:
        raise InvalidParameterError(field, text, f"groups of an even number of weights from 2 to {_MAX_GROUP}")
    return replace(found, name=text, group=group)
