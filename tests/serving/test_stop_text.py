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
        assert stop_text.found == (want is not None)
    shown += "" if stop_text.found else stop_text.finish()
    assert shown == (whole if want is None else want)


@given(LETTERS)
def test_without_stop_texts_nothing_is_held_back(text: str) -> None:
    assert StopText(()).add(text) == text
