"""Which failures are tried again, and after how long."""

from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.client.errors import (
    DuplicateRequestError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from distaff.serving.client.retry import RetryPolicy

POLICY = RetryPolicy(attempts=5, first=1.0, longest=5.0, random=lambda: 0.0)


def test_waits_double_up_to_the_longest() -> None:
    away = UnavailableError("")
    assert [POLICY.wait(away, tries, None) for tries in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, None]


def test_waits_are_spread() -> None:
    spread = RetryPolicy(first=1.0, longest=4.5, random=lambda: 0.999)
    assert 1.2 < (spread.wait(UnavailableError(""), 1, None) or 0) < 1.25
    assert spread.wait(UnavailableError(""), 3, None) == 4.5


def test_a_server_that_says_when_is_heard() -> None:
    assert POLICY.wait(OverloadedError("", retry_after=3.0), 1, None) == 3.0
    assert POLICY.wait(OverloadedError("", retry_after=0.0), 1, None) == 1.0
    assert POLICY.wait(UnavailableError("", retry_after=6.0), 1, None) is None  # longer than we wait


def test_what_would_fail_again_is_not_tried_again() -> None:
    for error in (OverloadedError(""), InvalidRequestError(""), InternalError("")):
        assert POLICY.wait(error, 1, None) is None


def test_a_request_that_runs_is_our_own_if_it_was_lost() -> None:
    taken = DuplicateRequestError("")
    assert POLICY.wait(taken, 2, None, lost=True) == 2 and POLICY.wait(taken, 2, None) is None


def test_there_must_be_time_left() -> None:
    assert POLICY.wait(UnavailableError(""), 1, 1.5) == 1.0
    assert POLICY.wait(UnavailableError(""), 1, 1.0) is None


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"first": -1.0}, {"first": 2.0, "longest": 1.0}, {"longest": float("inf")}]
)
def test_what_is_no_policy_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=min(options)):
        RetryPolicy(**options)
