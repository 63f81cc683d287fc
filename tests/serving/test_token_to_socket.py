"""From the engine's token to the socket: on an idle machine in less than 2 ms at the median."""

import pytest

from .token_to_socket import measure


@pytest.mark.soak
def test_a_token_is_on_its_way_within_two_milliseconds_and_idle_connections_change_nothing() -> None:
    alone = measure()
    beside = measure(idle=1000)
    assert alone["p50_ms"] < 2.0, alone
    assert beside["p50_ms"] < 1.25 * alone["p50_ms"] and beside["idle_mb"] < 100, (alone, beside)
