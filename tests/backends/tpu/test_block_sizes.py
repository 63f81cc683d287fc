"""Every generation has its block sizes; others are refused by name."""

import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.tpu.block_sizes import block_sizes
from distaff.backends.tpu.decode_shape import GENERATIONS

VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_decode_has_sizes_that_fit(generation: str) -> None:
    sizes = block_sizes("decode", generation)
    assert sizes["block"] >= 256 and sizes["block"] & (sizes["block"] - 1) == 0
    assert sizes["vmem_mib"] <= VMEM_MIB[generation]


def test_a_generation_without_sizes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="TPU generation v3, the decode kernel has sizes for v4, v5e"):
        block_sizes("decode", "v3")
