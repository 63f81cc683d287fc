"""Why a row is as fast as it is."""

import pytest

from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.explain import advice, counterfactuals, one, only, shares
from distaff.sharding.sweep.plan import score
from distaff.sharding.sweep.rows import rows_of

from .asked import V5E, request


def test_a_row_is_explained_by_changing_one_thing() -> None:
    asked = request(phase="decode", axes=("data", "tensor"))
    layout = parse_layout("tensor=4", num_devices=4)
    row = one(only(asked, rows_of(score(asked), [0])[0], layout, V5E), layout, V5E)
    changes = {each["change"]: each for each in counterfactuals(asked, row, layout, V5E)}
    assert changes["twice the memory bandwidth"]["tpot_ms_best"] < row["tpot_ms_best"]
    assert changes["twice the batch"]["tokens_per_second_per_chip"] > row["tokens_per_second_per_chip"]
    assert sum(shares(row["decode_ms"]).values()) == pytest.approx(1, abs=0.02)
    fastest = min(changes.values(), key=lambda each: each["tpot_ms_best"])
    assert advice(row, list(changes.values()), "decode").startswith(
        f"{fastest['change']} would save most of each token"
    )
