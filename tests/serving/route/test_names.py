"""Names are taken for as long as their requests run, each caller's apart."""

import pytest

from distaff.serving.route.names import Names, TakenError, caller_of


def test_a_name_is_taken_until_its_request_ends() -> None:
    names = Names()
    with names.hold("a", "x"), names.hold("b", "x"), names.hold("a", "y"):
        with pytest.raises(TakenError, match="'x'"), names.hold("a", "x"):
            pass
        with pytest.raises(TakenError), names.hold("a", "x"):  # being refused takes it from nobody
            pass
    with pytest.raises(ZeroDivisionError), names.hold("a", "x"):
        raise ZeroDivisionError
    with names.hold("a", "x"), names.hold("a", ""), names.hold("a", ""):
        pass


def test_callers_are_told_apart_by_their_tokens() -> None:
    assert caller_of((("authorization", "Bearer t"), ("x", "y"))) != caller_of((("authorization", "Bearer u"),))
    assert caller_of(()) == caller_of((("x", "y"),)) == ""
