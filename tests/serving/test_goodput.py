"""Limits of requests: how they are read, and what keeps them."""

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.goodput import Goodput

from .made_times import Made


def times(ttft: float, tpot: float, latency: float, *, succeeded: bool = True) -> Made:
    """A request that took about so many seconds for its first token, each further one, and the last one."""
    return Made(ttft, latency, tokens=1 + round((latency - ttft) / tpot), succeeded=succeeded)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ttft:500,tpot:50", Goodput(500, 50)),
        ("tpot:0.5", Goodput(None, 0.5)),
        (" tpot:5 , ttft:7", Goodput(7, 5)),
        ("e2el:9000", Goodput(e2el=9000)),
    ],
)
def test_it_is_read(text: str, want: Goodput) -> None:
    assert Goodput.parse(text) == want


@pytest.mark.parametrize("text", ["", "ttft", "ttft:", "ttft:x", "ttft:0", "ttft:inf", "itl:5", "ttft:5,ttft:6"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="ttft:MS,tpot:MS"):
        Goodput.parse(text)


def test_what_keeps_the_limits_and_comes_to_its_end_counts() -> None:
    limits = Goodput(ttft=1000, tpot=100, e2el=3000)
    assert limits.keeps(times(1.0, 0.1, 3.0))
    assert not limits.keeps(times(1.001, 0.05, 3.0))
    assert not limits.keeps(times(0.5, 0.2, 3.0))
    assert not limits.keeps(times(0.5, 0.05, 3.1))
    assert not limits.keeps(times(0.5, 0.05, 1.0, succeeded=False)) and not limits.keeps(Made())
    assert Goodput().keeps(times(9.0, 99.0, 99.0))
    assert limits.to_dict() == {"ttft_ms": 1000, "tpot_ms": 100, "e2el_ms": 3000}


def test_a_run_is_summed_up() -> None:
    requests = [times(1.0, 0.1, 3.0), times(2.0, 0.1, 3.0), Made(succeeded=False)]
    value = Goodput(ttft=1500).report(requests, 4.0)
    assert (value["requests_per_s"], value["share"]) == (0.25, pytest.approx(1 / 3))
    assert (value["ttft_ms"], value["tpot_ms"]) == (1500, None)
    assert Goodput().report([], 0.0)["share"] == 0.0
