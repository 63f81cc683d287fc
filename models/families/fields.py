"""Reads a checkpoint's own configuration field by field, with errors that name the file and the field."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from ..config import Activation
from ..errors import ConfigError

_Choice = TypeVar("_Choice")

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_REQUIRED: Any = object()
_MAX_LAYERS = 1024


class Fields:
    """A `config.json` in the form that transformers writes.

    A field that is absent or null takes the default; without one it is an error. `source` names the file.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def error(self, field: str, given: object, expected: str) -> ConfigError:
        """An error about one field: what was found and what would do."""
        found = "missing" if given is None else repr(given)
        return ConfigError(f"{self.source}: {field} is {found}, expected {expected}")

    def integer(self, field: str, default: int = _REQUIRED, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        value = self._get(field, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.error(field, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, field: str, default: float = _REQUIRED, *, positive: bool = True) -> float:
        value = self._get(field, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(field, value, "a number")
        if positive and value <= 0:
            raise self.error(field, value, "a number above 0")
        return float(value)

    def optional_number(self, field: str) -> float | None:
        return None if self.values.get(field) is None else self.number(field)

    def flag(self, field: str, default: bool = _REQUIRED) -> bool:
        value = self._get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, value, "true or false")
        return value

    def choice(self, field: str, choices: Mapping[str, _Choice], default: str = _REQUIRED) -> _Choice:
        value = self._get(field, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(field, value, "one of " + ", ".join(choices))
        return choices[value]

    def activation(self, field: str, default: str = "silu") -> Activation:
        return self.choice(field, _ACTIVATIONS, default)

    def numbers(self, field: str, length: int) -> tuple[float, ...]:
        value = self.values.get(field)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != length:
            raise self.error(field, value, f"a list of {length} numbers")
        for entry in value:
            if not isinstance(entry, int | float) or isinstance(entry, bool) or not math.isfinite(entry) or entry == 0:
                raise self.error(field, entry, "numbers other than 0")
        return tuple(float(entry) for entry in value)

    def integers(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers, empty where the field is absent."""
        value = self.values.get(field) or []
        if not isinstance(value, Sequence) or not all(isinstance(entry, int) and abs(entry) < 2**31 for entry in value):
            raise self.error(field, value, "a list of whole numbers")
        return tuple(int(entry) for entry in value)

    def table(self, field: str) -> "Fields | None":
        """A nested table, None where it is absent or null."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(field, value, "a table")
        return Fields(cast(Mapping[str, Any], value), f"{self.source}: {field}")

    @property
    def num_layers(self) -> int:
        """`num_hidden_layers`."""
        return self.integer("num_hidden_layers", maximum=_MAX_LAYERS)

    def layer_types(self, num_layers: int) -> tuple[Literal["full_attention", "sliding_attention"], ...] | None:
        """`layer_types`, one kind of attention for each layer, None where it is absent."""
        value = self.values.get("layer_types")
        if value is None:
            return None
        kinds = ("full_attention", "sliding_attention")
        if not isinstance(value, Sequence) or len(value) != num_layers or any(kind not in kinds for kind in value):
            raise self.error("layer_types", value, f"{num_layers} entries of " + " or ".join(kinds))
        return tuple(value)

    def _get(self, field: str, default: Any) -> Any:
        value = self.values.get(field)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(field, None, "a value: the architecture cannot be built without it")
        return default
