import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.checkpoints.orbax import OrbaxFolder
from distaff.models.decoder import WeightSpec, flatten
from distaff.models.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ExtraTensorError,
    MissingTensorError,
    ShapeMismatchError,
)
from distaff.models.families import config_from_hf


@pytest.fixture
def orbax(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    convert(str(tiny_folder()), tmp_path / "orbax", to="orbax")
    return tmp_path / "orbax"


def _load(folder: Path, **options: Any) -> dict[str, jax.Array]:
    checkpoint = open_checkpoint(folder)
    return flatten(checkpoint.load_weights(config_from_hf(checkpoint.hf_config), **{"dtype": "float32", **options}))


def test_restores_what_was_saved(orbax: Path) -> None:
    saved, restored = _load(orbax.with_name("folder")), _load(orbax)
    assert saved.keys() == restored.keys()
    for path, leaf in restored.items():
        np.testing.assert_array_equal(leaf, saved[path], err_msg=path)
    assert OrbaxFolder(orbax).stored_dtype == jnp.float32


def test_orbax_itself_can_read_it(orbax: Path) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)) as checkpointer:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        arguments = {path: ocp.ArrayRestoreArgs(sharding=device) for path in OrbaxFolder(orbax).leaves}
        restored = checkpointer.restore(orbax / "weights", args=ocp.args.PyTreeRestore(restore_args=arguments))
    for path, leaf in _load(orbax).items():
        np.testing.assert_array_equal(leaf, restored[path], err_msg=path)


def test_restores_shards_in_another_dtype(orbax: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))

    def place(spec: WeightSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*["x" if axis in ("mlp", "vocab") else None for axis in spec.axes]))

    whole = _load(orbax)
    for path, leaf in _load(orbax, dtype="bfloat16", place=place).items():
        np.testing.assert_array_equal(np.asarray(leaf), whole[path].astype(jnp.bfloat16), err_msg=path)


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "distaff.json").read_text())
    change(manifest)
    (folder / "distaff.json").write_text(json.dumps(manifest))


def _chunks(folder: Path, leaf: str) -> list[Path]:
    return sorted(path for path in (folder / "weights" / leaf / "c").rglob("*") if path.is_file())


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


_LEAF = "segments.0.layers.0.mlp.up.weight"

_DAMAGE: dict[str, tuple[Callable[[Path], Any], type[CheckpointError], str]] = {
    "manifest": (
        lambda f: (f / "distaff.json").write_text("{"),
        CorruptCheckpointError,
        r"distaff\.json: found text that is not valid JSON",
    ),
    "version": (
        lambda f: _edit(f, lambda m: m.update(format_version=7)),
        CheckpointError,
        r"distaff\.json: format_version: found 7, expected 1; convert",
    ),
    "leaves": (
        lambda f: _edit(f, lambda m: m.update(leaves=[1])),
        CorruptCheckpointError,
        r"distaff\.json: leaves: expected an object",
    ),
    "dtype": (
        lambda f: _edit(f, lambda m: m["leaves"]["final_norm.scale"].update(dtype="int9")),
        CorruptCheckpointError,
        r"leaves: 'final_norm\.scale': found .*, expected a shape and a dtype of float32",
    ),
    "no leaf": (
        lambda f: _edit(f, lambda m: m["leaves"].pop(_LEAF)),
        MissingTensorError,
        r"distaff\.json: found no leaf 'segments\.0\.layers\.0\.mlp\.up\.weight', expected 12 leaves",
    ),
    "one leaf more": (
        lambda f: _edit(f, lambda m: m["leaves"].update(extra={"shape": [1], "dtype": "float32"})),
        ExtraTensorError,
        r"distaff\.json: found leaf 'extra', expected only 12",
    ),
    "shape": (
        lambda f: _edit(f, lambda m: m["leaves"][_LEAF].update(shape=[2, 512, 255])),
        ShapeMismatchError,
        r"leaf '.*up\.weight': found shape \[2, 512, 255\], expected \[2, 512, 256\]",
    ),
    "stored shape": (
        lambda f: (f / "weights" / _LEAF / "zarr.json").write_text(
            (f / "weights" / _LEAF / "zarr.json").read_text().replace('"shape":[2,512,256]', '"shape":[2,512,128]')
        ),
        CorruptCheckpointError,
        r"up\.weight: found float32 \[2, 512, 128\], expected float32 \[2, 512, 256\]",
    ),
    "array description": (
        lambda f: (f / "weights" / _LEAF / "zarr.json").write_text("[]"),
        CorruptCheckpointError,
        r"up\.weight: found no readable array \(",
    ),
    "array": (
        lambda f: shutil.rmtree(f / "weights" / _LEAF),
        CorruptCheckpointError,
        r"up\.weight: found no readable array \(NOT_FOUND",
    ),
    "weights": (lambda f: shutil.rmtree(f / "weights"), CorruptCheckpointError, r"found no readable array"),
    "a chunk": (
        lambda f: _chunks(f, _LEAF)[0].unlink(),
        CorruptCheckpointError,
        r"up\.weight: found no readable array",
    ),
    "end of a chunk": (
        lambda f: _chunks(f, _LEAF)[0].write_bytes(_chunks(f, _LEAF)[0].read_bytes()[:-100]),
        CorruptCheckpointError,
        r"up\.weight/c/0/0/0: found another content",
    ),
    "a bit": (
        lambda f: _flip(_chunks(f, _LEAF)[0]),
        CorruptCheckpointError,
        r"up\.weight/c/0/0/0: found another content than distaff\.json has the CRC-32 of; copy or convert",
    ),
    "checksums": (
        lambda f: _edit(f, lambda m: m.pop("crc32")),
        CorruptCheckpointError,
        r"distaff\.json: crc32: expected an object",
    ),
    "config": (lambda f: (f / "config.json").unlink(), CheckpointError, r"config\.json: cannot be read \(No such file"),
}


@pytest.mark.parametrize("case", _DAMAGE)
def test_names_what_is_damaged(orbax: Path, case: str) -> None:
    damage, kind, message = _DAMAGE[case]
    damage(orbax)
    with pytest.raises(kind, match=message):
        _load(orbax)
