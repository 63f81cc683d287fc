"""A sweep, or why there is none."""

from dataclasses import replace

import pytest

from distaff.backends.hardware import chip
from distaff.sharding.sweep.errors import NothingFitsError, SweepError
from distaff.sharding.sweep.request import Workload
from distaff.sharding.sweep.slices import Slice, parse_slice
from distaff.sharding.sweep.sweep import plan

from .asked import LLAMA, request


@pytest.mark.slow
def test_without_a_price_or_a_power_what_needs_them_is_refused() -> None:
    cheap = Slice(replace(chip("v5e"), dollars_per_hour=None), (2, 2))
    for objective, flag in (("cost", "--price CHIP=DOLLARS"), ("energy", "--set CHIP.watts=N")):
        with pytest.raises(SweepError, match=f"of v5e is not known; give it with {flag}"):
            plan(request(slices=(cheap,), objective=objective))


@pytest.mark.slow
def test_a_model_that_is_too_large_says_by_how_much_and_what_would_do() -> None:
    with pytest.raises(
        NothingFitsError, match=r"needs at least .* GiB too little; the smallest v5e slice that fits is v5e:2x2"
    ):
        plan(request(config=LLAMA, slices=(parse_slice("v5e:1x1"),), batches=(1,), workload=Workload.of(16384, 64)))
