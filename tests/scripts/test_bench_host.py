"""`distaff bench host`: the engine alone."""

import json
from collections.abc import Callable

import pytest


@pytest.mark.parametrize("decode_steps", [1, 4])
def test_the_engine_is_timed_without_a_model(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], decode_steps: int
) -> None:
    command = ("bench", "host", "--running", "12", "--steps", "15", "--decode-steps", str(decode_steps), "--json")
    assert distaff(*command) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["running"], value["steps"], value["decode_steps"]) == (12, 15, decode_steps)
    assert 0 < value["p50_ms"] <= value["p99_ms"]
    assert value["tokens_per_s"] == pytest.approx(12 * decode_steps * value["steps_per_s"], rel=1e-3)
