"""Which failures are tried again, and after how long."""

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.client.errors import InternalError, InvalidRequestError, OverloadedError, UnavailableError
from distaff.serving.client.retry import RetryPolicy

POLICY = RetryPolicy(attempts=5, first=1.0, longest=5.0, random=lambda: 0.0)


def test_waits_double_up_to_the_longest() -> None:
    away = UnavailableError("")
    assert [POLICY.wait(away, tries, None) for tries in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, None]


def test_waits_are_spread() -> None:
    spread = RetryPolicy(first=1.0, random=lambda: 0.999)
    assert 1.2 < (spread.wait(UnavailableError(""), 1, None) or 0) < 1.25


def test_a_server_that_says_when_is_heard() -> None:
    assert POLICY.wait(OverloadedError("", retry_after=3.0), 1, None) == 3.0
    assert POLICY.wait(OverloadedError("", retry_after=0.0), 1, None) == 1.0
    assert POLICY.wait(UnavailableError("", retry_after=6.0), 1, None) is None  # longer than we wait


def test_what_would_fail_again_is_not_tried_again() -> None:
    for error in (OverloadedError(""), InvalidRequestError(""), InternalError("")):
        assert POLICY.wait(error, 1, None) is None


def test_there_must_be_time_left() -> None:
    assert POLICY.wait(UnavailableError(""), 1, 1.5) == 1.0
    assert POLICY.wait(UnavailableError(""), 1, 1.0) is None


def test_one_try_at_least() -> None:
    with pytest.raises(InvalidParameterError, match="attempts"):
        RetryPolicy(attempts=0)
