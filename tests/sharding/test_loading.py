"""What each process reads of a checkpoint of 141 GB, and that it is what the plan says."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.checkpoints.assemble import leaf_plans
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.decoder import flatten
from distaff.models.families import config_from_hf
from distaff.sharding.arrange import arranged
from distaff.sharding.footprint import footprint
from distaff.sharding.loading import load_plan, staging_bytes, stored_boxes
from distaff.sharding.parsing import parse_layout
from distaff.sharding.shard import shard_backends

from .sparse import sparse_model

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> HFFolder:
    """Llama-3.1-70B: 723 tensors in 30 files."""
    return HFFolder(sparse_model(tmp_path_factory.mktemp("sparse") / "model", "llama-3.1-70b", 30))


@pytest.mark.parametrize(
    ("text", "per_process"),
    [
        ("tensor=16", 4),
        ("stage=4,tensor=4", 4),
        pytest.param("tensor=16", 1, marks=pytest.mark.slow),
        pytest.param("tensor-2d:tensor=8,tensor2=8", 4, marks=pytest.mark.slow),
        pytest.param("sequence=4,tensor=4", 4, marks=pytest.mark.slow),
        pytest.param("attention-ff:tensor=8,tensor2=2", 4, marks=pytest.mark.slow),
    ],
)
def test_every_process_reads_its_share_of_a_70b_checkpoint(large: HFFolder, text: str, per_process: int) -> None:
    config = config_from_hf(large.hf_config)
    layout = parse_layout(text, num_devices=16)
    held = footprint(config, layout, jnp.bfloat16)
    positions = range(layout.num_devices - per_process, layout.num_devices)
    plan = load_plan(large.tensors, config, layout, jnp.bfloat16, positions=positions)
    assert plan.held == per_process * held.weights
    assert abs(plan.read / plan.share - 1) <= 0.02 and plan.read <= plan.held
    if not text.startswith("attention-ff"):  # there two devices hold the same heads, which are read once
        # The footprint knows nothing of files.
        once = per_process * (held.weights - held.kv_copies - held.padding)
        assert once <= plan.read * 1.02 and plan.read <= once + per_process * held.kv_copies
    assert large.reads.read == 0


@pytest.mark.slow
@pytest.mark.parametrize("text", ["expert=8", "expert:expert=4,tensor=2"])
def test_every_process_reads_its_share_of_a_mixture(tmp_path: Path, text: str) -> None:
    """Qwen3-30B-A3B: 18,867 tensors, of which a process needs every layer's own experts."""
    folder = HFFolder(sparse_model(tmp_path / "model", "qwen3-30b-a3b", 16))
    config = config_from_hf(folder.hf_config)
    layout = parse_layout(text, num_devices=8)
    held = footprint(config, layout, jnp.bfloat16)
    plan = load_plan(folder.tensors, config, layout, jnp.bfloat16, positions=[layout.num_devices - 1])
    assert plan.held == held.weights and plan.read == plan.share
    assert abs(plan.read / (held.weights - held.padding) - 1) <= 0.02


@pytest.mark.parametrize(("text", "position"), [("tensor=16", 5), ("stage=4,tensor=4", 15)])
def test_a_device_reads_what_was_planned_and_nothing_else(large: HFFolder, text: str, position: int) -> None:
    """One of the layers; the kernel's own count of bytes read is the witness."""
    config = config_from_hf(large.hf_config)
    layout = parse_layout(text, num_devices=16)
    where = arranged(config, layout, jnp.bfloat16)
    large.reads.clear()
    planned = expected = 0
    before = _read_by_this_process()
    for leaf in leaf_plans(large.tensors, config, dtype=jnp.bfloat16, source="sparse"):
        (box,) = stored_boxes(where[leaf.spec.path], leaf.spec.shape, layout, [position])
        if leaf.spec.axes[0] == "layers":
            box = ((box[0][0], box[0][0] + 1), *box[1:])
        elif "vocab" in leaf.spec.axes:
            box = ((box[0][0], box[0][0] + 512), *box[1:])
        planned += leaf.cost([box]).wanted
        (made,) = leaf.read([box])
        expected += made.nbytes
    counted = _read_by_this_process() - before
    assert planned == large.reads.wanted == large.reads.read == expected
    assert abs(counted / expected - 1) < 0.001


@pytest.mark.soak
@pytest.mark.parametrize("text", ["tensor=16", "stage=4,tensor=4"])
def test_a_process_loads_its_share_of_every_layer(large: HFFolder, text: str) -> None:
    """All that four devices hold, one part after the other, so that this machine has room for it."""
    config = config_from_hf(large.hf_config)
    layout = parse_layout(text, num_devices=16)
    where, positions = arranged(config, layout, jnp.bfloat16), range(12, 16)
    plan = load_plan(large.tensors, config, layout, jnp.bfloat16, positions=positions)
    large.reads.clear()
    before = _read_by_this_process()
    for leaf in leaf_plans(large.tensors, config, dtype=jnp.bfloat16, source="sparse"):
        for box in stored_boxes(where[leaf.spec.path], leaf.spec.shape, layout, positions):
            leaf.read([box])
    counted = _read_by_this_process() - before
    print(
        f"{text}: planned {plan.read}, share {plan.share:.0f}, read {large.reads.read}, by the kernel {counted} bytes"
    )
    assert large.reads.read == plan.read
    assert abs(counted / plan.share - 1) < 0.02


def _read_by_this_process() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.parametrize("text", ["tensor=4", "tensor-2d:tensor=3,tensor2=2", "data=2,tensor=2"])
def test_weights_lie_where_they_did_before(text: str) -> None:
    """Loading straight to each device's part gives what arranging whole weights gives, KV heads twice and the
    vocabulary padded; whatever is held several times is read once."""
    checkpoint: Any = open_checkpoint(GOLDEN / ("smollm2" if "3" in text else "llama31"))
    config = config_from_hf(checkpoint.hf_config)
    backend = shard_backends(ReferenceBackend(), config, text, jnp.float32)[-1]
    whole = flatten(backend.prepare_params(checkpoint.load_weights(config, dtype=jnp.float32)))
    checkpoint.reads.clear()
    loaded = checkpoint.load_weights(config, dtype=jnp.float32, place=backend.place)
    for path, leaf in flatten(backend.prepare_params(loaded)).items():
        assert isinstance(leaf, jax.Array) and leaf.sharding == whole[path].sharding
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    assert checkpoint.reads.read == sum(
        checkpoint.tensors.planned(name, 0, info.shape[0])[0].nbytes for name, info in checkpoint.tensors.infos.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("text", ["tensor=16", "stage=4,tensor=4", "tensor-2d:tensor=8,tensor2=2"])
def test_remote_reads_waste_little(large: HFFolder, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Four processes of four devices. Columns of a matrix are one request for each row: files that are cut for the
    layout (distaff convert --layout) are what a bucket should hold."""
    config = config_from_hf(large.hf_config)
    layout = parse_layout(text, num_devices=16)
    monkeypatch.setattr(type(large.tensors), "local", False)
    plan = load_plan(large.tensors, config, layout, jnp.bfloat16, positions=range(4))
    assert 0.999 < plan.read / plan.share <= 1.15
    waste = f"{100 * (plan.read / plan.share - 1):.1f} %".replace("0.0 %", "0")
    page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
    assert f"\n| `{text}` | {plan.share / 1e9:.2f} GB | {waste} | {plan.requests:,} |\n" in page


def test_memory_for_loading_is_known_beforehand(large: HFFolder) -> None:
    config = config_from_hf(large.hf_config)
    layout = parse_layout("tensor=16", num_devices=16)
    plan = load_plan(large.tensors, config, layout, jnp.bfloat16, positions=[0])
    assert plan.staging <= staging_bytes(config, layout, jnp.bfloat16) < 2.4e9  # of 8.8e9 that the device holds
