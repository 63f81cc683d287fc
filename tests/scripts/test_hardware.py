"""`distaff hardware`: the table, what is not known, and figures of one's own."""

import json
from collections.abc import Callable

import pytest

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]


def test_ratios_are_those_of_the_scaling_book(distaff: Run, capsys: Capture) -> None:
    """B_crit of v5e: 240 in bf16, 120 with int8 weights and bf16 arithmetic, 240 with both in int8."""
    assert distaff("hardware", "v5e", "h100", "--json") == 0
    v5e, h100 = json.loads(capsys.readouterr().out)["chips"]
    found = v5e["ratios"]
    names = ("bf16", "8bit_weights", "8bit")
    assert [round(found[f"compute_bound_batch_{name}"] / 120) for name in names] == [2, 1, 2]
    assert found["flops_per_watt"] is None and v5e["watts"] is None
    assert h100["ratios"]["flops_per_watt"] == pytest.approx(989e12 / 700)
    assert h100["sources"]["watts"]["page"].startswith("https://")


def test_what_nobody_published_is_printed_as_such(distaff: Run, capsys: Capture) -> None:
    assert distaff("hardware", "v5e", "wse3", "--price", "v5e=0.6", "--sources") == 0
    out = capsys.readouterr().out
    head, v5e, wse3 = (line.split() for line in out.splitlines()[:3])
    assert v5e[7:10] == ["torus-2d", "n/a", "0.60"] and wse3[1] == "n/a"
    assert "dollars_per_hour         given by the user" in out and len(head) == 19


def test_an_unknown_chip_or_price_is_wrong_use(distaff: Run, capsys: Capture) -> None:
    assert distaff("hardware", "v99") == 2
    assert "chip 'v99' is not in the hardware table" in capsys.readouterr().err
    assert distaff("hardware", "--price", "v5e") == 2
    assert "expected CHIP=DOLLARS" in capsys.readouterr().err
