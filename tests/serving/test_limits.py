"""The machine's limits can be measured anywhere."""

import jax.numpy as jnp
import pytest

from distaff.backends.reference import ReferenceBackend
from distaff.serving import limits as module
from distaff.serving.limits import MachineLimits, measure_limits


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_limits_are_plausible(monkeypatch: pytest.MonkeyPatch, dtype: jnp.dtype) -> None:
    monkeypatch.setattr(module, "_TARGET_SECONDS", 0.0)
    monkeypatch.setattr(module, "_START_SIZE", 64)
    limits = measure_limits(ReferenceBackend(), dtype, num_bytes=2**22)
    assert 1e7 < limits.bytes_per_s < 1e14
    assert 1e6 < limits.flops_per_s < 1e16


def test_the_slower_one_is_the_bound() -> None:
    limits = MachineLimits(bytes_per_s=10.0, flops_per_s=1000.0)
    assert limits.bound(flops=1001, num_bytes=10) == "compute"
    assert limits.bound(flops=999, num_bytes=10) == "bandwidth"
