"""One of several parts of an input, each a job of its own."""

import re
from dataclasses import dataclass

from ...backends.errors import InvalidParameterError

_MOST = 99_999


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0: neighbouring lines, so that prompts that begin alike stay together."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads "0/4".

        Raises:
            InvalidParameterError: says what was expected.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 <= index < count <= _MOST:
            raise InvalidParameterError("--shard", text, f"I/N with I from 0 to N - 1 and N at most {_MOST}")
        return cls(index, count)

    def name(self, output: str) -> str:
        """Where this part's answers go."""
        return f"{output}.shard-{self.index:05}-of-{self.count:05}"

    def bounds(self, total: int) -> tuple[int, int]:
        """Place of the first line of `total`, from 0, and of the first one behind."""
        return total * self.index // self.count, total * (self.index + 1) // self.count


WHOLE = Shard(0, 1)
