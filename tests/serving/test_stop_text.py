"""Stop texts in a stream: found however the stream is cut, and nothing of them leaks out."""

from hypothesis import example, given
from hypothesis import strategies as st

from distaff.serving.stop_text import StopText

LETTERS = st.text("ab\n", max_size=12)


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
@example(["aa", "ab"], ["aab"])
@example(["ab", "a"], ["b", "ab"])
def test_the_stream_ends_where_the_whole_text_would(pieces: list[str], stops: list[str]) -> None:
    """As each piece arrives, the text so far is cut at the first stop text in it, as if nothing had been streamed."""
    stop_text, shown, whole, want = StopText(stops), "", "", None
    for piece in pieces:
        shown += stop_text.add(piece)
        whole += piece
        starts = [whole.find(stop) for stop in stops if stop in whole]
        if starts and want is None:
            want = whole[: min(starts)]
        assert whole.startswith(shown)
        assert (stop_text.found is not None) == (want is not None)
    shown += "" if stop_text.found is not None else stop_text.finish()
    assert shown == (whole if want is None else want)


@given(LETTERS)
def test_without_stop_texts_nothing_is_held_back(text: str) -> None:
    assert StopText(()).add(text) == text


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.integers(0, 8))
@example(["aa", "ab"], ["aab"], 1)
@example(["aab", "b"], ["a", "bb"], 1)
@example(["xa", "y"], ["xab", "a"], 1)
def test_a_stop_text_counts_where_it_is_complete(pieces: list[str], stops: list[str], first: int) -> None:
    """Only stop texts that end behind the first `first` pieces count; the earliest of them cuts the text."""
    stop_text, shown = StopText(stops), ""
    for index, piece in enumerate(pieces):
        shown += stop_text.add(piece, counts=index >= first)
    shown += stop_text.finish()

    whole = "".join(pieces)
    length = 0
    for index, piece in enumerate(pieces):
        ends = [
            (start, stop)
            for stop in stops
            for start in range(len(whole))
            if index >= first and whole.startswith(stop, start) and length < start + len(stop) <= length + len(piece)
        ]
        if ends:
            start, stop = min(ends)
            assert (shown, stop_text.found) == (whole[:start], stop)
            return
        length += len(piece)
    assert (shown, stop_text.found) == (whole, None)
