"""Which layouts a slice can have."""

import jax.numpy as jnp

from distaff.sharding.check import Devices, problem
from distaff.sharding.sweep.space import layouts

from .asked import SMALL

BF16 = jnp.dtype(jnp.bfloat16)


def test_every_layout_of_a_slice_is_there_once_and_fits_the_model() -> None:
    found = layouts(SMALL, 8, ("data", "tensor", "tensor2", "stage", "sequence", "expert"))
    assert len({(each.mesh, each.rules, each.prefill) for each in found}) == len(found)
    assert all(each.num_devices == 8 and problem(each, SMALL, Devices(8), dtype=BF16) is None for each in found)
    names = {str(each) for each in found}
    assert {"tensor=8", "data=2,tensor=4", "tensor-2d:tensor=4,tensor2=2", "pipeline:stage=2,tensor=4"} <= names
    assert {each.preset for each in layouts(SMALL, 8, ("data",))} == {"replica", "attention-data"}
