"""RMSNorm with rounding to 8 bits, interpreted, against NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.tpu import norm
from distaff.backends.tpu.norm import norm_work, rms_norm_quantised, tile_rows


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [((40, 256), "int8", 0.501), ((5, 640), "int8", 0.501), ((64, 128), "float8_e4m3fn", 17.0)],
)
def test_numbers_and_scales_are_those_of_the_norm(shape: tuple[int, int], dtype: str, error: float) -> None:
    """Rounded to half a step; of 8-bit floats near 448 steps are 32. A row of zeros stays one."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32)
    x[3] = 0
    numbers, scales = rms_norm_quantised(
        jnp.asarray(x), jnp.asarray(w), epsilon=1e-5, generation="v6e", dtype=dtype, interpret=True
    )
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) * w
    got, scales = np.asarray(numbers.astype(jnp.float32)), np.asarray(scales)[:, None]
    assert numbers.dtype == jnp.dtype(dtype) and got.shape == shape and not got[3].any()
    others = np.arange(len(x)) != 3
    assert (np.abs(got).max(axis=1)[others] == {"int8": 127, "float8_e4m3fn": 448}[dtype]).all()
    assert (np.abs(got * scales - want) <= error * scales)[others].all()


def test_two_tiles_fit_into_vmem_whatever_the_width() -> None:
    assert tile_rows(8192, 4096, "bfloat16", "v6e") == 256 and tile_rows(5, 4096, "bfloat16", "v6e") == norm._ROWS
    assert tile_rows(8192, 16384, "bfloat16", "v4") == 64
    work = norm_work(512, 4096, "v6e")
    assert work.hbm_bytes == 512 * (4096 * 3 + 512) + 4096 * 4 and list(work.trips) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=100), "width 100, supported are multiples of 128"),
        (dict(dtype="int4"), "rounding to int4, supported are int8, float8_e4m3fn"),
        (dict(width=2**20, generation="v4"), "width 1048576, supported is what fits 14 MiB"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    asked = dict(width=128, dtype="int8", generation="v6e") | change
    width = asked.pop("width")
    with pytest.raises(UnsupportedError, match=message):
        rms_norm_quantised(jnp.zeros((1, width)), jnp.zeros(width), epsilon=0.0, **asked)  # pyright: ignore
