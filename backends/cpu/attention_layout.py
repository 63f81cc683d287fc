"""How the CPU keeps keys and values: [L, P, K, elements], where the last axis is one page of one kv head.

It holds the keys [ceil(H / pair), page, pair], then the values [page / pair, ceil16(H), pair]. One float32, a pair of
bfloat16 or four int8 fill a lane of 4 bytes: one vector is a few dimensions of 16 keys, or 16 dimensions of a few
values. Behind int8 stand the scales of the keys and of the values, fp32 [2, page]: each position of a head has its own.
"""

from dataclasses import dataclass

LANES = 16


@dataclass(frozen=True)
class PageLayout:
    """One page of one kv head, for head width H."""

    head_dim: int
    page: int
    dtype: str

    @property
    def item_bytes(self) -> int:
        return item_bytes(self.dtype)

    @property
    def pair(self) -> int:
        """Elements in one lane."""
        return 4 // self.item_bytes

    @property
    def key_width(self) -> int:
        return _round_up(self.head_dim, self.pair)

    @property
    def value_width(self) -> int:
        return _round_up(self.head_dim, LANES)

    @property
    def key_elements(self) -> int:
        return self.page * self.key_width

    @property
    def scaled(self) -> bool:
        """Whether numbers have scales."""
        return self.dtype == "int8"

    @property
    def number_elements(self) -> int:
        """Elements of keys and values, behind which the scales begin."""
        return self.key_elements + self.page * self.value_width

    @property
    def elements(self) -> int:
        return self.number_elements + (2 * 4 * self.page if self.scaled else 0)

    @property
    def key_stride(self) -> int:
        """Bytes from one lane of a key to the next."""
        return 4 * self.page

    @property
    def value_stride(self) -> int:
        """Bytes from one lane of a value's position to the next position's (pair of positions')."""
        return 4 * self.value_width


def item_bytes(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
