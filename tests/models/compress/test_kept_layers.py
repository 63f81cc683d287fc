"""Layers in files are what they were, and those of another run are not taken."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import UsageError
from distaff.backends.quantized import Quantized, packed
from distaff.models.compress.kept_layers import KeptLayers, Leaves


def leaves() -> Leaves:
    numbers = jnp.arange(-8, 8, dtype=jnp.int8).reshape(2, 8)
    scale = jnp.asarray([[0.5], [0.25]], jnp.float32)
    return {
        "attention.q.weight": Quantized(packed(numbers), scale, "int4", jnp.dtype("bfloat16")),
        "mlp.up.weight": Quantized(numbers, scale, "int8", jnp.dtype("float32"), True),
        "mlp_norm.scale": np.asarray([1.5, -2], jnp.bfloat16),
    }


def test_a_layer_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = KeptLayers(tmp_path / "made", {"scheme": "int4"})
    assert kept.load(0) is None
    kept.save(0, leaves())
    found, wanted = KeptLayers(tmp_path / "made", {"scheme": "int4"}).load(0), leaves()
    assert found is not None and list(found) == list(wanted)
    assert found["mlp_norm.scale"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["mlp_norm.scale"], wanted["mlp_norm.scale"])
    for key in ("attention.q.weight", "mlp.up.weight"):
        np.testing.assert_array_equal(found[key].values, wanted[key].values)
        np.testing.assert_array_equal(found[key].scale, wanted[key].scale)
        for field in ("kind", "dtype", "activations"):
            assert getattr(found[key], field) == getattr(wanted[key], field)


def test_what_was_being_written_does_not_count(tmp_path: Path) -> None:
    kept = KeptLayers(tmp_path, {"scheme": "int4"})
    kept.save(0, leaves())
    (tmp_path / "layer-0001.part.npz").write_bytes((tmp_path / "layer-0000.npz").read_bytes()[:50])
    assert kept.load(0) is not None and kept.load(1) is None


def test_layers_of_another_run_are_refused_by_what_differs(tmp_path: Path) -> None:
    KeptLayers(tmp_path, {"scheme": "int4", "method": "gptq"})
    with pytest.raises(UsageError, match="layers of a run with another method are there, expected one that goes on"):
        KeptLayers(tmp_path, {"scheme": "int4", "method": "awq"})
