"""What values a parameter takes: each domain reads a value into its one form, or refuses it by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..backends.errors import InvalidParameterError

MAX_TOKEN_ID = 2**31 - 1


class TooManyError(InvalidParameterError):
    """A parameter has more entries than are kept for it."""

    def __init__(self, field: str, count: int, limit: int, what: str) -> None:
        super().__init__(field, count, f"at most {limit} {what}")
        self.args = (f"{field} has {count} {what}, expected at most {limit}",)


@dataclass(frozen=True)
class Whole:
    """A whole number. `none` says what None means, where it is accepted."""

    low: int
    high: int
    none: str = ""

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}" + (f", or None ({self.none})" if self.none else "")

    def read(self, name: str, value: Any) -> int | None:
        if value is None and self.none:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise InvalidParameterError(name, value, self.expected)
        return value


@dataclass(frozen=True)
class Real:
    """A finite number. `open` leaves `low` itself out; `zero` says what 0 below `low` means, where it is accepted."""

    low: float
    high: float
    open: bool = False
    zero: str = ""

    @property
    def expected(self) -> str:
        span = f"above {self.low:g}, at most {self.high:g}" if self.open else f"from {self.low:g} to {self.high:g}"
        return (f"0 ({self.zero}) or " if self.zero else "") + f"a number {span}"

    def read(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.low < value <= self.high or (value == self.low and not self.open):
                return value
            if self.zero and value == 0:
                return value
        raise InvalidParameterError(name, value, self.expected)


@dataclass(frozen=True)
class Flag:
    """True or False."""

    @property
    def expected(self) -> str:
        return "True or False"

    def read(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise InvalidParameterError(name, value, self.expected)
        return value


@dataclass(frozen=True)
class Texts:
    """Texts of at least one character, and of `longest` at most; a bare one stands for itself."""

    limit: int | None = None
    longest: int | None = None

    @property
    def expected(self) -> str:
        lengths = "at least one character" if self.longest is None else f"1 to {self.longest} characters"
        return ("" if self.limit is None else f"at most {self.limit} ") + f"texts of {lengths}"

    def read(self, name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, Iterable):
            raise InvalidParameterError(name, value, self.expected)
        texts = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(text, str) and text for text in texts):
            raise InvalidParameterError(name, value, self.expected)
        longest = max(map(len, texts), default=0)
        if self.longest is not None and longest > self.longest:
            raise TooManyError(name, longest, self.longest, "characters in one text")
        return _distinct(name, texts, self.limit, "texts")


@dataclass(frozen=True)
class TokenIds:
    """Token ids. `none` says what None means, where it is accepted; then there must be at least one."""

    limit: int | None = None
    none: str = ""

    @property
    def expected(self) -> str:
        many = "one or more " if self.none else "" if self.limit is None else f"at most {self.limit} "
        return f"{many}token ids from 0 to {MAX_TOKEN_ID}" + (f", or None ({self.none})" if self.none else "")

    def read(self, name: str, value: Any) -> tuple[int, ...] | None:
        if value is None and self.none:
            return None
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            raise InvalidParameterError(name, value, self.expected)
        ids = tuple(value)
        if self.none and not ids:
            raise InvalidParameterError(name, value, self.expected)
        for token in ids:
            if not _is_token_id(token):
                raise InvalidParameterError(name, token, self.expected)
        return _distinct(name, ids, self.limit, "token ids")


@dataclass(frozen=True)
class Biases:
    """Token ids and what is added to the logit of each; None and an empty mapping are the same."""

    limit: int
    low: float
    high: float

    @property
    def expected(self) -> str:
        return f"at most {self.limit} token ids, each with a number from {self.low:g} to {self.high:g}"

    def read(self, name: str, value: Any) -> dict[int, float] | None:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InvalidParameterError(name, value, self.expected)
        for token, bias in value.items():
            if not _is_token_id(token):
                raise InvalidParameterError(name, token, self.expected)
            Real(self.low, self.high).read(name, bias)
        if len(value) > self.limit:
            raise TooManyError(name, len(value), self.limit, "token ids")
        return dict(value) or None


Domain = Whole | Real | Flag | Texts | TokenIds | Biases
"""`expected` says in words which values are accepted; `read(name, value)` returns a value in its one form, or raises
InvalidParameterError naming the parameter."""


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_ID


def _distinct[T](name: str, values: tuple[T, ...], limit: int | None, what: str) -> tuple[T, ...]:
    distinct = tuple(dict.fromkeys(values))
    if limit is not None and len(distinct) > limit:
        raise TooManyError(name, len(distinct), limit, what)
    return distinct
