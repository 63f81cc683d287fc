"""Rows hold every text once, in order, none in two rows."""

from hypothesis import given
from hypothesis import strategies as st

from distaff.models.compress.packing import PADDING, pack

TEXTS = st.lists(st.lists(st.integers(1, 99), max_size=20), max_size=12)


@given(texts=TEXTS, size=st.integers(2, 9))
def test_every_piece_is_there_once(texts: list[list[int]], size: int) -> None:
    rows = pack(texts, size)
    found = []
    for tokens, documents in zip(rows.tokens.tolist(), rows.documents.tolist(), strict=True):
        assert documents == sorted(documents, key=lambda d: (d == PADDING, d))  # one behind the other, padding last
        for number in sorted(set(documents) - {PADDING}):
            found.append([t for t, d in zip(tokens, documents, strict=True) if d == number])
        assert all(t == 0 for t, d in zip(tokens, documents, strict=True) if d == PADDING)
    pieces = [text[i : i + size] for text in texts for i in range(0, len(text), size)]
    assert sorted(found) == sorted(piece for piece in pieces if len(piece) > 1)
    assert rows.num_tokens == sum(map(len, found))


def test_short_texts_share_a_row() -> None:
    rows = pack([[1] * 3, [2] * 5, [3] * 2, [4] * 8, [5]], 8)
    assert rows.tokens.tolist() == [[4] * 8, [2] * 5 + [1] * 3, [3] * 2 + [0] * 6]
    assert rows.documents.tolist() == [[0] * 8, [0] * 5 + [1] * 3, [0] * 2 + [PADDING] * 6]
