"""The kernel that packs new tokens for the decode kernel, against what XLA makes of decode_pack.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.token_scales import LARGEST, LEAST, rounded
from distaff.backends.tpu.decode import decode_shape
from distaff.backends.tpu.decode_pack import pack_new, pack_queries
from distaff.backends.tpu.decode_round import round_new, rounds


@pytest.mark.parametrize(
    ("generation", "heads", "tokens"), [("v5e", (8, 2, 128), 32), ("v6e", (6, 3, 128), 16), ("v5e", (4, 1, 256), 128)]
)
def test_new_tokens_are_packed_as_by_xla(generation: str, heads: tuple[int, int, int], tokens: int) -> None:
    """Chunks of one head and of two, the last one half empty, heads of two registers, and two steps of the grid."""
    num_heads, num_kv_heads, head_dim = heads
    shape = decode_shape(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=128, kv_dtype="int8",
        generation=generation, table_width=4, token_scales=True,
    )  # fmt: skip
    assert rounds(shape, tokens)
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(tokens, n, head_dim)), jnp.bfloat16) for n in (num_heads, *[num_kv_heads] * 2)
    )
    packed, q_scale, new, scales = round_new(q, k, v, shape, 0.3, interpret=True)
    want, want_scale = pack_queries(q[:, None].astype(jnp.float32) * 0.3, shape)

    def joined(parts: jax.Array) -> np.ndarray:
        """High and low parts together: where a quotient lies between two high parts it may go to either."""
        whole = np.asarray(parts, np.int64)
        return whole[:, :, : shape.rows] * int(shape.low_weight) + whole[:, :, shape.rows : 2 * shape.rows]

    assert packed.dtype == want.dtype and not packed[:, :, 2 * shape.rows :].any()
    assert np.abs(joined(packed) - joined(want)).max() <= 1
    np.testing.assert_allclose(q_scale, want_scale[:, 0], rtol=1e-6)
    both = jnp.stack([k, v]).astype(jnp.float32)
    # Compiled, as the kernel is: XLA divides by 127 by multiplying with its reciprocal.
    largest = jax.jit(lambda x: jnp.maximum(jnp.abs(x).max(axis=(2, 3)) / LARGEST["int8"], LEAST))(both)
    np.testing.assert_array_equal(scales, largest)
    keys, values = [
        rounded(x / s[:, None, None], "int8").reshape(tokens, 1, -1) for x, s in zip(both, largest, strict=True)
    ]
    np.testing.assert_array_equal(new, pack_new(keys, values, shape))


def test_only_what_the_kernel_has_is_packed_by_it() -> None:
    of: dict[str, Any] = dict(num_heads=8, num_kv_heads=2, page_size=128, table_width=4, token_scales=True)
    for change in (dict(kv_dtype="float8_e4m3fn"), dict(head_dim=64), dict(max_decode_len=2), dict(generation="tpu7x")):
        given: dict[str, Any] = {"head_dim": 128, "generation": "v6e", "kv_dtype": "int8", **of, **change}
        shape = decode_shape(**given)
        assert not rounds(shape, 16)
