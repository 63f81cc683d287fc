"""Checkpoints that stay where they are: fsspec's filesystem of memory in place of a bucket."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distaff.backends.quantized import is_quantized
from distaff.models.checkpoints import (
    Checkpoint,
    assemble,
    convert,
    open_checkpoint,
    resolve_model,
    stored_numbers,
)
from distaff.models.checkpoints.byte_files import MAX_WASTE, ReadCount, open_bytes
from distaff.models.checkpoints.gguf import GGUFCheckpoint
from distaff.models.checkpoints.gguf_file import GGUFFile
from distaff.models.checkpoints.remote import MissingFilesystemError, RemotePath
from distaff.models.checkpoints.runs import Runs
from distaff.models.decoder import WeightSpec, flatten
from distaff.models.errors import CheckpointError, CorruptCheckpointError, HubError, ModelNotFoundError
from distaff.models.families import config_from_hf


@pytest.fixture
def bucket() -> Iterator[Callable[[Path], str]]:
    """Puts a file or folder into memory://, and says where."""
    memory = fsspec.filesystem("memory")

    def upload(path: Path) -> str:
        if memory.exists(f"/bucket/{path.name}"):
            memory.rm(f"/bucket/{path.name}", recursive=True)
        memory.put(str(path), f"/bucket/{path.name}", recursive=True)
        return f"memory://bucket/{path.name}"

    yield upload
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def _weights(checkpoint: Checkpoint, **options: Any) -> dict[str, jax.Array]:
    return flatten(checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32", **options))


def _columns(spec: WeightSpec) -> NamedSharding:
    """Splits what matrices are stored along within rows."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    split = spec.axes[-1] if spec.path.endswith("down.weight") else "heads"
    return NamedSharding(mesh, PartitionSpec(*["x" if axis == split else None for axis in spec.axes]))


def test_every_format_loads_from_a_url(
    bucket: Callable[[Path], str], tiny_folder: Callable[..., Path], tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder(shards=3)
    convert(str(folder), tmp_path / "orbax", to="orbax")
    for path in (folder, tiny_gguf(), tmp_path / "orbax"):
        here, there = open_checkpoint(path), open_checkpoint(resolve_model(bucket(path)))
        assert type(there) is type(here) and there.hf_config == here.hf_config
        expected: Any = here
        remote: Any = there
        whole = _weights(here)
        for place in (None, _columns):
            remote.reads.clear()
            for name, leaf in _weights(there, place=place).items():
                np.testing.assert_array_equal(leaf, whole[name], err_msg=f"{path.name}: {name}")
            # All parts are on this process: together they are one range, and nothing is fetched twice.
            assert remote.reads.read == remote.reads.wanted == expected.reads.read
            assert remote.reads.requests < 40
    assert there.stored_dtype == jnp.float32


@pytest.mark.parametrize("place", [None, _columns])
@pytest.mark.parametrize("block_bytes", [None, 4096])
def test_blocks_that_stay_are_fetched_once(
    bucket: Callable[[Path], str],
    tiny_gguf: Callable[..., Path],
    place: Any,
    block_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers, scales and minima lie in the same blocks; also where numbers are read in more steps than scales."""
    path = tiny_gguf(kind=Kind.Q4_1)
    here, there = open_checkpoint(path), open_checkpoint(bucket(path))
    assert isinstance(there, GGUFCheckpoint)
    if block_bytes is not None:
        monkeypatch.setattr(assemble, "REMOTE_BLOCK_BYTES", block_bytes)
    keep = stored_numbers(there, config_from_hf(there.hf_config)).roundings
    there.reads.clear()
    expected, found = (_weights(each, place=place, keep=keep) for each in (here, there))
    for name, leaf in found.items():
        assert is_quantized(leaf) == (name in keep)
        for one, other in zip(jax.tree.leaves(leaf), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
    assert there.reads.wanted == sum(tensor.nbytes for tensor in GGUFFile(path).tensors.values())
    assert there.reads.read <= there.reads.wanted * (1 + MAX_WASTE)


def test_a_tokenizer_comes_along(bucket: Callable[[Path], str], tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    convert(str(tiny_gguf()), tmp_path / "folder", to="safetensors")
    there = open_checkpoint(bucket(tmp_path / "folder"))
    assert there.tokenizer().encode("hello, hell") == open_checkpoint(tmp_path / "folder").tokenizer().encode(
        "hello, hell"
    )


@pytest.mark.parametrize("gap", [0, 1, 16, 17, 1000])
def test_gaps_are_read_over_while_little_is_wasted(bucket: Callable[[Path], str], tmp_path: Path, gap: int) -> None:
    content = np.random.default_rng(gap).integers(0, 256, 90_000, np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    runs = Runs(7, 100, (5, 10), (10 * (100 + gap) + 5000, 100 + gap))
    expected = np.concatenate([content[start : start + 100] for start in runs.starts()])
    here, there = ReadCount(), ReadCount()
    np.testing.assert_array_equal(open_bytes(tmp_path / "file", here).read(runs), expected)
    np.testing.assert_array_equal(open_bytes(RemotePath(bucket(tmp_path / "file")), there).read(runs), expected)
    assert (here.wanted, here.read, here.requests) == (5000, 5000, 50)
    assert there.wanted == 5000 and there.waste <= MAX_WASTE == 0.15
    bridged = {0: 45, 1: 45, 16: 45, 17: 44, 1000: 0}[gap]  # 750 bytes may be wasted
    assert (there.requests, there.read) == (50 - bridged, 5000 + bridged * gap)


def test_what_is_not_there(bucket: Callable[[Path], str], tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"memory://bucket/nothing: found no such file or folder"):
        open_checkpoint("memory://bucket/nothing")
    folder = tiny_folder(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: found no model-00002-of-00002\.safetensors in the folder"):
        open_checkpoint(bucket(folder))


def test_a_file_cut_short(bucket: Callable[[Path], str], tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CorruptCheckpointError, match=r"memory://bucket/folder/model\.safetensors.*truncated"):
        open_checkpoint(bucket(folder))
    file.write_bytes(whole)
    checkpoint = open_checkpoint(bucket(folder))
    fsspec.filesystem("memory").pipe_file(
        "/bucket/folder/model.safetensors", whole[:20_000]
    )  # after the header was read
    with pytest.raises(CheckpointError, match=r"memory://bucket/folder/model\.safetensors"):
        _weights(checkpoint)


def test_a_filesystem_that_is_not_installed() -> None:
    with pytest.raises(MissingFilesystemError, match=r"gs://bucket/model: gs:// needs a package .*distaff\[remote\]"):
        open_checkpoint("gs://bucket/model")
    with pytest.raises(MissingFilesystemError, match=r"found the unknown scheme gopher://"):
        open_checkpoint("gopher://bucket/model")


def test_offline_fetches_nothing() -> None:
    with pytest.raises(HubError, match="because of --offline"):
        resolve_model("gs://bucket/model", offline=True)
