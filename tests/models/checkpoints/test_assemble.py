import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file

from distaff.models.checkpoints import assemble
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.checkpoints.runs import Box
from distaff.models.decoder import WeightSpec, flatten
from distaff.models.errors import ExtraTensorError, MissingTensorError, ShapeMismatchError
from distaff.models.families import config_from_hf


def _load(folder: Path, **options: object) -> dict[str, jax.Array]:
    checkpoint = HFFolder(folder)
    config = config_from_hf(checkpoint.hf_config)
    return flatten(checkpoint.load_weights(config, **({"dtype": "float32"} | options)))  # pyright: ignore


def test_the_size_of_blocks_does_not_show(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder()
    whole = _load(folder)
    monkeypatch.setattr(assemble, "BLOCK_BYTES", 1)
    for path, leaf in _load(folder).items():
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)


def test_a_block_is_as_small_as_it_says(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    checkpoint = HFFolder(tiny_folder())
    tensors = checkpoint.tensors
    read = tensors.read_rows

    def noted(name: str, start: int, stop: int) -> np.ndarray:
        rows = read(name, start, stop)
        sizes.append(rows.nbytes)
        return rows

    monkeypatch.setattr(tensors, "read_rows", noted)
    monkeypatch.setattr(assemble, "BLOCK_BYTES", 2**16)
    checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")
    assert max(sizes) == 2**16
    assert sum(sizes) == sum(np.prod(info.shape) * 4 for info in tensors.infos.values())


def test_shards_are_placed_where_asked(tiny_folder: Callable[..., Path]) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    rules = {"mlp": "y", "heads": "y", "kv_heads": "x", "vocab": ("x", "y"), "embed": "x"}

    def place(spec: WeightSpec) -> NamedSharding:
        axes = [rules.get(axis) for axis in spec.axes]
        taken: set[str] = set()
        for i, axis in enumerate(axes):
            names = {axis} if isinstance(axis, str) else set(axis or ())
            if names & taken:
                axes[i] = None
            taken |= names
        return NamedSharding(mesh, PartitionSpec(*axes))

    folder = tiny_folder()
    whole, split = _load(folder), _load(folder, place=place)
    up = split["segments.0.layers.0.mlp.up.weight"]
    assert up.sharding.shard_shape(up.shape) == (2, 128, 128)
    for path, leaf in split.items():
        np.testing.assert_array_equal(np.asarray(leaf), whole[path], err_msg=path)


def test_a_shard_reads_its_own_rows_alone(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = HFFolder(tiny_folder())
    asked: list[tuple[str, int, int]] = []
    read = checkpoint.tensors.read_rows

    def noted(name: str, start: int, stop: int, *within: Box) -> np.ndarray:
        asked.append((name, start, stop))
        return read(name, start, stop, *within)

    monkeypatch.setattr(checkpoint.tensors, "read_rows", noted)
    config = config_from_hf(checkpoint.hf_config)
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def place(spec: WeightSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*["x" if axis == "mlp" else None for axis in spec.axes]))

    checkpoint.load_weights(config, dtype="float32", place=place)
    rows = sorted((start, stop) for name, start, stop in asked if name == "model.layers.1.mlp.up_proj.weight")
    assert rows == [(64 * i, 64 * i + 64) for i in range(8)]


def test_converts_as_jax_does(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    exact, rounded = _load(folder), _load(folder, dtype=jnp.bfloat16)
    for path, leaf in rounded.items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, exact[path].astype(jnp.bfloat16), err_msg=path)


def test_buffers_are_taken_over_without_a_copy() -> None:
    buffer = assemble.aligned_empty((33, 7), jnp.dtype(jnp.bfloat16))
    assert buffer.ctypes.data % 64 == 0
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    made = jax.make_array_from_callback(buffer.shape, sharding, lambda _: buffer)
    assert made.unsafe_buffer_pointer() == buffer.ctypes.data


def test_progress_ends_at_the_size_of_the_weights(tiny_folder: Callable[..., Path]) -> None:
    seen: list[tuple[int, int]] = []
    leaves = _load(tiny_folder(), progress=lambda done, total: seen.append((done, total)))
    total = sum(leaf.nbytes for leaf in leaves.values())
    assert seen[-1] == (total, total) and len(seen) == len(leaves)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_missing_tensors(tiny_folder: Callable[..., Path]) -> None:
    names = [f"model.layers.{i}.mlp.{x}_proj.weight" for i in range(2) for x in ("gate", "up")]
    with pytest.raises(MissingTensorError) as raised:
        _load(tiny_folder(change=dict.fromkeys(names)))
    message = str(raised.value)
    assert "found 17 tensors, expected also 'model.layers.0.mlp.gate_proj.weight'" in message
    assert "and 1 more: family llama with 2 layers needs them" in message and "check that the download" in message


def test_extra_tensors(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(
        ExtraTensorError, match=r"found 'model\.layers\.2\.mlp\.up_proj\.weight', expected only the 21 tensors"
    ):
        _load(tiny_folder(change={"model.layers.2.mlp.up_proj.weight": np.ones((2, 2), np.float32)}))


def test_known_extras_are_left_alone(tiny_folder: Callable[..., Path]) -> None:
    _load(tiny_folder(change={"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(32, np.float32)}))


def test_a_layer_that_predicts_further_ahead_is_left_alone(golden: Path, tmp_path: Path) -> None:
    """GLM-4.5 ships one layer more than it has; only that number is let pass."""
    shutil.copytree(golden / "glm4_moe", tmp_path, dirs_exist_ok=True)
    last = HFFolder(tmp_path).hf_config["num_hidden_layers"]
    for layer, fits in ((last, True), (last + 1, False)):
        save_file(
            {f"model.layers.{layer}.eh_proj.weight": np.zeros((2, 2), np.float32)}, tmp_path / "extra.safetensors"
        )
        weight_map = dict.fromkeys(_names(tmp_path / "model.safetensors"), "model.safetensors")
        weight_map[f"model.layers.{layer}.eh_proj.weight"] = "extra.safetensors"
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        with nullcontext() if fits else pytest.raises(ExtraTensorError, match=rf"layers\.{layer}\.eh_proj"):
            _load(tmp_path)


def _names(file: Path) -> list[str]:
    with safe_open(file, "np") as tensors:
        return list(tensors.keys())


def test_a_tied_checkpoint_may_repeat_its_embeddings(tiny_folder: Callable[..., Path]) -> None:
    leaves = _load(tiny_folder(config={"tie_word_embeddings": True}))
    assert "unembedder.table" not in leaves


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (255, 256), "[256, 256]"),
        ("model.layers.1.self_attn.k_proj.weight", (256, 128), "[128, 256]"),
        ("model.layers.0.mlp.down_proj.weight", (512, 256), "[256, 512]"),
        ("model.norm.weight", (256, 1), "[256]"),
        ("model.embed_tokens.weight", (289, 256), "[288, 256]"),
    ],
)
def test_another_shape(tiny_folder: Callable[..., Path], name: str, found: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ShapeMismatchError) as raised:
        _load(tiny_folder(change={name: np.ones(found, np.float32)}))
    message = str(raised.value)
    assert f"model.safetensors: tensor '{name}': found shape {list(found)}, expected {expected}; check" in message


def test_checks_come_before_reading(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = HFFolder(tiny_folder(change={"lm_head.weight": None}))

    def never(*_: object) -> np.ndarray:
        raise AssertionError("read before the check")

    monkeypatch.setattr(checkpoint.tensors, "read_rows", never)
    with pytest.raises(MissingTensorError):
        checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")
