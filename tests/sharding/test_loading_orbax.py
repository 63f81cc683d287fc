"""Checkpoints that are cut where a layout's parts end, and read under others."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.checkpoints.orbax import OrbaxFolder
from distaff.models.decoder import flatten, weight_specs
from distaff.models.families import config_from_hf
from distaff.sharding.arrange import arranged
from distaff.sharding.errors import IndivisibleError
from distaff.sharding.loading import split_for, stored_boxes
from distaff.sharding.parsing import parse_layout
from distaff.sharding.shard import shard_backends

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two KV heads, cut for four devices."""
    folder = tmp_path_factory.mktemp("orbax") / "cut"
    layout = parse_layout("tensor=4", num_devices=4)
    convert(str(GOLDEN / "llama31"), folder, to="orbax", layout=split_for(layout, jax.devices()))
    return folder


def test_chunks_end_where_parts_end(cut: Path) -> None:
    config = config_from_hf(OrbaxFolder(cut).hf_config)
    where = arranged(config, parse_layout("tensor=4", num_devices=4), jnp.float32)
    assert json.loads((cut / "distaff.json").read_text())["layout"] == "tensor=4"
    for path, leaf in where.items():
        grid = json.loads((cut / "weights" / path / "zarr.json").read_text())["chunk_grid"]
        stored = weight_specs(config, jnp.float32)[path].shape
        for size, part, chunk, repeats in zip(
            stored, leaf.part, grid["configuration"]["chunk_shape"], leaf.repeats, strict=True
        ):
            if part * 4 == size:
                assert part % chunk == 0, path
            assert repeats == 1 or chunk == 1, path


@pytest.mark.parametrize("text", [None, "tensor=4", "tensor-2d:tensor=2,tensor2=2"])
def test_another_layout_restores_the_same_bits(cut: Path, text: str | None) -> None:
    original, checkpoint = open_checkpoint(GOLDEN / "llama31"), OrbaxFolder(cut)
    config = config_from_hf(original.hf_config)
    place = prepare = None
    if text is not None:
        (backend,) = shard_backends(ReferenceBackend(), config, text, jnp.float32)
        place, prepare = backend.place, backend.prepare_params
    weights = original.load_weights(config, dtype="float32", place=place)
    restored = checkpoint.load_weights(config, dtype="float32", place=place)
    if prepare is not None:
        weights, restored = prepare(weights), prepare(restored)
    for path, leaf in flatten(restored).items():
        np.testing.assert_array_equal(leaf, flatten(weights)[path], err_msg=path)
    # Every chunk once, whatever the layout.
    assert checkpoint.reads.read == sum(
        file.stat().st_size for file in (cut / "weights").glob("*/c/**/*") if file.is_file()
    )


@pytest.mark.parametrize("text", ["tensor=4", "tensor=2"])
def test_a_process_fetches_the_chunks_of_its_parts_alone(cut: Path, text: str) -> None:
    checkpoint = OrbaxFolder(cut)
    config = config_from_hf(checkpoint.hf_config)
    layout = parse_layout(text, num_devices=4)
    where = arranged(config, layout, jnp.float32)
    wanted = whole = 0
    checkpoint.load_weights(config, dtype="float32")
    all_of_it = checkpoint.reads.read
    checkpoint.reads.clear()
    for spec in weight_specs(config, jnp.float32).values():
        if "vocab" in spec.axes:
            continue
        boxes = stored_boxes(where[spec.path], spec.shape, layout, [1])
        wanted += sum(part.nbytes for part in checkpoint.reader(spec)(boxes))
        whole += spec.dtype.itemsize * int(np.prod(spec.shape))
    assert wanted / whole < 1.2 / layout.num_devices
    assert checkpoint.reads.read < 1.2 * all_of_it / layout.num_devices


def test_a_layout_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    layout = parse_layout("tensor=7", num_devices=7)
    with pytest.raises(IndivisibleError, match="do not divide into 7 parts"):
        convert(str(GOLDEN / "llama31"), tmp_path / "out", to="orbax", layout=split_for(layout, jax.devices()))
    assert not (tmp_path / "out").exists()
