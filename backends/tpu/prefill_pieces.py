"""What the walk of an attention kernel goes through: rows of a source, tiles of queries, and pieces of work."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Source(Protocol):
    """Rows of a batch, and where their keys and values come from."""

    @property
    def num_rows(self) -> int: ...

    def ours(self, row: Any) -> Any:
        """Whether this kernel computes the row."""
        ...

    def queries(self, row: Any) -> tuple[Any, Any]:
        """First token of the row, and the one after its last."""
        ...

    def kv_len(self, row: Any) -> Any: ...

    def begin(self, row: Any) -> None:
        """Runs before anything of the row is fetched."""
        ...

    def fetch(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        """Starts to bring a chunk; positions before `first` are not needed."""
        ...

    def arrive(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        """Waits for a chunk, and leaves zeros where nothing was written."""
        ...

    def visible(self, row: Any, tile_start: Any, key: Any, query: Any) -> Any | None:
        """A mask [keys, queries] of its own, given positions; None where there is none."""
        ...


@dataclass(frozen=True)
class Tile:
    """Queries of one row that are computed together; `position` is that of its first lane, maybe before the row's."""

    row: Any
    token: Any
    position: Any
    first: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class Piece:
    """What the stages have to know of a piece, in one scalar: a loop carries those of the last two."""

    code: Any

    @classmethod
    def of(cls, group: Any, *, first: Any, last: Any, odd: Any) -> "Piece":
        """`first` and `last` of its tile and group; `odd` tiles have statistics of their own, as the ones before a tile
        are still needed when it begins."""
        return cls(group * 8 + first * 1 + last * 2 + odd * 4)

    @property
    def group(self) -> Any:
        return self.code >> 3

    @property
    def first(self) -> Any:
        return (self.code & 1) > 0

    @property
    def last(self) -> Any:
        return (self.code & 2) > 0

    @property
    def odd(self) -> Any:
        return (self.code >> 2) & 1
