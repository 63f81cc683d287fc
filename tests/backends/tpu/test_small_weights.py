"""Small numbers of layers that lie in one array change nothing of what a loop over layers computes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu.small_weights import with_joined_numbers

LOOP = ReferenceBackend().layer_loop


def layers() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "norm": ((3, 8), "float32"), "scale": ((3, 4, 2), "float32"), "bias": ((3, 8), "bfloat16"),
        "other": ((3, 8), "bfloat16"), "alone": ((3, 5), "float16"), "matrix": ((3, 512, 256), "float32"),
        "number": ((3,), "float32"),
    }  # fmt: skip
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, (shape, dtype) in shapes.items()} | {
        "places": jnp.arange(12, dtype=jnp.int32).reshape(3, 4)
    }


def test_each_layer_finds_its_own_numbers() -> None:
    seen: list[set[tuple[int, ...]]] = []

    def body(carry: list[jax.Array], layer: dict[str, jax.Array], number: jax.Array) -> list[jax.Array]:
        assert {name: leaf.dtype for name, leaf in layer.items()} == {name: x.dtype for name, x in layers().items()}
        return [kept.at[number].set(leaf) for kept, leaf in zip(carry, jax.tree.leaves(layer), strict=True)]

    def watched(body: Any, carry: Any, stacked: Any, length: int) -> Any:
        seen.append({leaf.shape for leaf in jax.tree.leaves(stacked)})
        return LOOP(body, carry, stacked, length)

    stacked = layers()
    empty = [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(stacked)]
    found = with_joined_numbers(watched, body, empty, stacked, 3)
    for got, want in zip(found, jax.tree.leaves(stacked), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    # fp32: 8 + 8 + 1 numbers; bf16: 8 + 8; one of a type, whole numbers and matrices stay by themselves.
    assert seen == [{(3, 17), (3, 16), (3, 5), (3, 512, 256), (3, 4)}]
