"""Layouts are read, printed and checked by arithmetic alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from distaff.models.checkpoints import shipped_configs
from distaff.models.config import ModelConfig
from distaff.models.families import config_from_hf
from distaff.sharding.arrange import arranged
from distaff.sharding.check import Devices, candidates, check_layout, choose_layout, problem
from distaff.sharding.collectives import StepShape, predict
from distaff.sharding.errors import (
    AxisClashError,
    DevicesError,
    IndivisibleError,
    LayoutError,
    LayoutMemoryError,
    LayoutSyntaxError,
    UnsupportedLayoutError,
)
from distaff.sharding.footprint import footprint
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import layout_yaml, parse_layout
from distaff.sharding.presets import PRESETS

GIB = 2**30
GOLDEN = Path(__file__).parents[1] / "golden"


def shipped(name: str) -> ModelConfig:
    return config_from_hf(json.loads(shipped_configs()[name].read_text()))


LLAMA_8B, LLAMA_70B, QWEN = shipped("llama-3.1-8b"), shipped("llama-3.1-70b"), shipped("qwen3-30b-a3b")


@pytest.mark.parametrize(
    "text",
    [
        "sequence:sequence=4,tensor=2",
        "pipeline:stage=2,tensor=2",
        "data=2,tensor=4",
        "data=1",
        "replica:data=8",
        "expert:expert=4,tensor=2",
        "tensor-2d:tensor=4,tensor2=2",
        "pipeline+attention-ff:stage=2,tensor=2,tensor2=2",
    ],
)
def test_a_layout_prints_what_gives_it(text: str) -> None:
    layout = parse_layout(text, num_devices=8)
    assert parse_layout(str(layout), num_devices=8) == layout


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_by_name_takes_all_devices_and_its_file_gives_the_same_table(name: str, tmp_path: Path) -> None:
    layout = parse_layout(name, num_devices=8)
    assert layout.num_devices == 8
    (tmp_path / "layout.yaml").write_text(layout_yaml(layout))
    again = parse_layout(str(tmp_path / "layout.yaml"), num_devices=8)
    assert (again.mesh, again.rules, again.prefill) == (layout.mesh, layout.rules, layout.prefill)
    assert again.capacity == layout.capacity


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("tensors=4", LayoutSyntaxError, "no mesh axis is named 'tensors', expected data, stage"),
        ("tensor=four", LayoutSyntaxError, "'tensor=four' is no axis=size"),
        ("tensor=0", LayoutSyntaxError, "tensor=0, expected a whole number from 1"),
        ("tensor=2,tensor=4", LayoutSyntaxError, "tensor is given twice"),
        ("tensor3d", LayoutSyntaxError, "Presets are replica, tensor"),
        ("tensor=2,tensor2=2", LayoutSyntaxError, "say what tensor2 splits: tensor-2d:tensor=2,tensor2=2"),
        ("stage=2,tensor2=2", LayoutSyntaxError, "or pipeline+attention-ff:stage=2,tensor2=2 (feed-forward"),
        ("replica:tensor=2", LayoutSyntaxError, "nothing is split over tensor=2"),
        ("tensor:stage=2", LayoutSyntaxError, "nothing is split over stage=2"),
        ("pipeline+expert", LayoutSyntaxError, "as in pipeline+expert:stage=2,expert=2,tensor=2"),
        ("pipeline+experts:stage=2", LayoutSyntaxError, "Presets are replica, tensor"),
        ("missing.yaml", LayoutSyntaxError, "cannot be read"),
    ],
)
def test_what_is_no_layout_is_refused(text: str, error: type[LayoutError], says: str) -> None:
    with pytest.raises(error) as raised:
        parse_layout(text, num_devices=8)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("mesh", "rules", "prefill"),
    [({"tensor": 2}, {"head": ["tensor"]}, {}), ({"tensor": 2}, {"heads": ["x"]}, {}),
     ({"tensor": 2}, {}, {"mlp": ["tensor"]}), ({"tensor": True}, {}, {}), ([2], {}, {})],
)  # fmt: skip
def test_a_file_that_is_no_layout_is_refused(mesh: object, rules: object, prefill: object, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(json.dumps({"mesh": mesh, "rules": rules, "prefill": prefill}))
    with pytest.raises(LayoutSyntaxError):
        parse_layout(str(tmp_path / "a.yaml"), num_devices=8)


@pytest.mark.parametrize(
    ("config", "text", "devices", "error", "says"),
    [
        (LLAMA_8B, "data=4,tensor=4", Devices(8), DevicesError, "data=4 x tensor=4 takes 16 devices, there are 8"),
        (LLAMA_8B, "tensor=3", Devices(8), IndivisibleError, "32 heads (layer 0) over tensor=3"),
        (LLAMA_8B, "expert=2", Devices(8), UnsupportedLayoutError, "llama has no experts"),
        (
            replace(LLAMA_70B, layers=LLAMA_70B.layers[:5]),
            "stage=4",
            Devices(8),
            IndivisibleError,
            "5 layers, that are 5 blocks of 1, leave some of 4 stages without a block",
        ),
        (LLAMA_70B, "tensor=4", Devices(8, 32 * GIB), LayoutMemoryError, "of the 131.42 GiB of weights"),
    ],
)
def test_what_does_not_fit_is_explained(
    config: ModelConfig, text: str, devices: Devices, error: type[LayoutError], says: str
) -> None:
    with pytest.raises(error) as raised:
        check_layout(parse_layout(text, num_devices=8), config, devices, dtype=jnp.bfloat16)
    message = str(raised.value)
    assert says in message
    for other in message.split("nearest that fit: ")[1].split(" or ") if "nearest" in message else []:
        layout = parse_layout(other, num_devices=devices.count)
        assert problem(layout, config, devices, dtype=jnp.bfloat16) is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("sequence=16", "sequence:sequence=8"),
        ("tensor-2d:tensor=4,tensor2=3", "tensor-2d:tensor=4,tensor2=2"),
        ("stage=2,tensor=3", "pipeline:stage=2,tensor=2"),
    ],
)
def test_the_nearest_are_of_the_same_preset_where_that_fits(text: str, near: str) -> None:
    with pytest.raises(LayoutError) as raised:
        check_layout(parse_layout(text, num_devices=8), LLAMA_8B, Devices(8), dtype=jnp.bfloat16)
    assert near in str(raised.value).split("nearest that fit: ")[1].split(" or ")


def test_sizes_alone_give_the_product_of_what_they_name() -> None:
    layout = parse_layout("stage=2,expert=4,tensor=2", num_devices=16)
    assert str(layout) == "pipeline+expert:stage=2,expert=4,tensor=2" and layout.prefill.table == ()
    assert layout.axes("layers") == ("stage",) and layout.axes("vocab") == ("stage", "expert", "tensor")
    assert layout.axes("heads") == ("expert", "tensor") and layout.axes("expert") == ("expert",)
    layout = parse_layout("expert=4,sequence=2", num_devices=8)
    assert layout.axes("tokens", prefill=True) == ("sequence",) and layout.axes("routed", prefill=True) == ()
    exchanged = parse_layout("sequence-alltoall+expert:sequence=2,expert=2,tensor=2", num_devices=8)
    assert exchanged.axes("cache_heads") == ("expert", "tensor", "sequence")
    assert problem(exchanged, QWEN, Devices(8), dtype=jnp.bfloat16) is None


def test_routed_tokens_lie_along_their_experts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mesh: {expert: 2}\nrules: {expert: [expert]}\nprefill: {routed: [expert]}\n")
    layout = parse_layout(str(tmp_path / "a.yaml"), num_devices=8)
    with pytest.raises(UnsupportedLayoutError, match="experts and tokens must be along the same axes"):
        check_layout(layout, QWEN, Devices(8), dtype=jnp.bfloat16)
    for capacity in ("0", "true", "much"):
        (tmp_path / "a.yaml").write_text(f"mesh: {{expert: 2}}\nrules: {{expert: [expert]}}\ncapacity: {capacity}\n")
        with pytest.raises(LayoutSyntaxError, match="capacity"):
            parse_layout(str(tmp_path / "a.yaml"), num_devices=8)


def test_one_mesh_axis_for_two_dimensions_of_a_tensor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mesh: {tensor: 2}\nrules: {mlp: [tensor], embed: [tensor]}\n")
    layout = parse_layout(str(tmp_path / "a.yaml"), num_devices=8)
    with pytest.raises(AxisClashError, match="tensor splits both"):
        check_layout(layout, LLAMA_8B, Devices(8), dtype=jnp.bfloat16)


def test_auto_takes_the_smallest_replicas_that_memory_allows() -> None:
    assert str(choose_layout(LLAMA_8B, Devices(8, 32 * GIB), dtype=jnp.bfloat16)) == "replica:data=8"
    assert str(choose_layout(LLAMA_8B, Devices(8, 16 * GIB), dtype=jnp.bfloat16)) == "data=4,tensor=2"
    assert str(choose_layout(LLAMA_70B, Devices(8, 32 * GIB), dtype=jnp.bfloat16)) == "tensor=8"
    # Nine heads: no more than three devices share them.
    config = config_from_hf(json.loads((GOLDEN / "smollm2" / "config.json").read_text()))
    third = footprint(config, parse_layout("data=1", num_devices=8), jnp.bfloat16).weights // 3
    assert str(choose_layout(config, Devices(8, third), dtype=jnp.bfloat16)) == "pipeline:stage=2,tensor=3"
    with pytest.raises(LayoutMemoryError, match="131.42 GiB"):
        choose_layout(LLAMA_70B, Devices(8, 16 * GIB), dtype=jnp.bfloat16)


def test_a_footprint_is_the_share_of_the_weights_and_the_copies() -> None:
    # 8 KV heads on 16 devices: each is held twice, in 32 layers of k and v [8, 128, 4096].
    held = footprint(LLAMA_8B, parse_layout("tensor=16", num_devices=16), jnp.bfloat16)
    assert held.kv_copies == 32 * 2 * (8 * 128 * 4096) * 2 // 16
    norms = 65 * 4096 * 2
    assert held.weights == (8_030_261_248 * 2 - norms) // 16 + norms + held.kv_copies
    assert held.cache_token == 2 * 2 * 32 * 128 and held.padding == 0


def test_every_candidate_that_fits_splits_evenly() -> None:
    for layout in candidates(QWEN, Devices(16)):
        if problem(layout, QWEN, Devices(16), dtype=jnp.bfloat16) is None:
            for path, leaf in arranged(QWEN, layout, jnp.bfloat16).items():
                whole = [size * layout.size(axes) for size, axes in zip(leaf.part, leaf.axes, strict=True)]
                assert tuple(whole) == leaf.shape, (str(layout), path)


def test_a_mesh_takes_no_more_devices_than_there_are() -> None:
    with pytest.raises(DevicesError, match="takes 16 devices, there are 8"):
        make_mesh(parse_layout("tensor=16", num_devices=16))


def test_steps_with_few_tokens_gather_no_weights(tmp_path: Path) -> None:
    gathered = parse_layout("weight-gathered:tensor=8", num_devices=8)
    (tmp_path / "a.yaml").write_text(layout_yaml(replace(gathered, prefill_from=4096)))
    layout = parse_layout(str(tmp_path / "a.yaml"), num_devices=8)
    assert layout.prefill_from == 4096
    for tokens, weights, sums in ((2048, 0, 65), (4096, 7 * 32, 1)):
        sent = predict(LLAMA_8B, layout, StepShape(1, tokens), "bfloat16")
        assert sum(each.count for each in sent if each.what.startswith("weights: ")) == weights
        assert sum(each.count for each in sent if each.op == "all-reduce" and not each.when) == sums
    (tmp_path / "a.yaml").write_text("mesh: {tensor: 2}\nprefill_from: many\n")
    with pytest.raises(LayoutSyntaxError, match="prefill_from"):
        parse_layout(str(tmp_path / "a.yaml"), num_devices=8)


def test_the_page_of_layouts_has_every_preset() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
    for name, preset in PRESETS.items():
        axes = ", ".join(("data", *preset.axes))
        assert f"| `{name}` | {axes} | {preset.about} | {preset.use} |" in page
    assert page.split("## Presets")[1].split("\n## ")[0].count("\n| `") == len(PRESETS)


def test_the_page_of_layouts_draws_every_preset() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
    section = page.split("## What lies where, and what moves")[1].split("\n## ")[0]
    drawn = [part for part in re.split(r"\n(?=\*\*)", section) if "```text" in part]
    for name in PRESETS:
        assert sum(f"**{name}**" in part for part in drawn) == 1, name
