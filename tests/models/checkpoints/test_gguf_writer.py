import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from distaff.backends.errors import UnsupportedError
from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.checkpoints.gguf_names import ARCHITECTURES
from distaff.models.decoder import flatten
from distaff.models.families import config_from_hf

# Golden checkpoints, and fields that are changed where they have values that GGUF cannot say.
WRITABLE: dict[str, dict[str, Any]] = {
    "llama2": {},
    "llama31": {},
    "llama32": {},
    "llama_bias": {},
    "llama_linear": {},
    "llama_yarn": {},
    "smollm2": {},
    "smollm3": {},
    "mistral": {"sliding_window": None},
    "mixtral": {},
    "qwen25": {},
    "qwen3": {},
    "qwen3_moe": {},
    "gemma2": {"query_pre_attn_scalar": 12},
    "gemma3": {"query_pre_attn_scalar": 8},
    "phi3": {},
    "phi3_longrope": {},
    "olmo2": {},
    "gpt_oss": {"swiglu_limit": 7.0},
}
REFUSED = {
    "opt": r"found model_type 'opt', expected one of llama",
    "llama_dynamic": r"config\.layers\.0\.attention\.rope: found RopeConfig\(.*'dynamic'",
    "mistral": r"config\.layers\.0\.attention\.window: found 7, but in GGUF this model has None; convert to",
    "gemma2": r"config\.layers\.0\.attention\.scale: found 0\.37\d+, but in GGUF this model has 0\.28\d+",
    "gpt_oss": r"config\.layers\.0\.mlp\.expert\.limit: found 1\.5, but in GGUF this model has 7\.0",
    "qwen3_moe_mixed": r"tensor 'model\.layers\.0\.mlp\.\w+\.weight': GGUF has no name for it",
}


@pytest.mark.parametrize("family", WRITABLE)
def test_comes_back_the_same(golden: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    shutil.copytree(golden / family, folder)
    config = json.loads((folder / "config.json").read_text()) | WRITABLE[family]
    (folder / "config.json").write_text(json.dumps(config))
    path = tmp_path / "out.gguf"
    convert(str(folder), path, to="gguf", dtype="float32")
    loaded: list[dict[str, np.ndarray]] = []
    for place in (folder, path):
        checkpoint = open_checkpoint(place)
        weights = checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")
        loaded.append({name: np.asarray(leaf) for name, leaf in flatten(weights).items()})
    for name, leaf in loaded[0].items():
        np.testing.assert_array_equal(loaded[1][name], leaf, err_msg=name)
    assert loaded[0].keys() == loaded[1].keys()


def test_every_architecture_is_covered(golden: Path) -> None:
    types = {json.loads((golden / family / "config.json").read_text())["model_type"] for family in WRITABLE}
    assert all(types & set(arch.model_types) for arch in ARCHITECTURES.values())


@pytest.mark.parametrize("family", REFUSED)
def test_refuses_what_gguf_cannot_say(golden: Path, tmp_path: Path, family: str) -> None:
    with pytest.raises(UnsupportedError, match=f"--to gguf: {REFUSED[family]}"):
        convert(str(golden / family), tmp_path / "out.gguf", to="gguf")
    assert list(tmp_path.iterdir()) == []


def test_names_are_those_of_the_package() -> None:
    """gguf's own table of names agrees with ours, rule by rule."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    for arch in ARCHITECTURES.values():
        table = gguf.get_tensor_name_map(kinds[arch.name], 4)
        for rule in arch.rules:
            if "{expert}" in "".join(rule.gguf):
                continue  # names that the package no longer has
            hf = rule.hf.format(layer=3, expert=0)
            ours = {name.format(layer=3) for name in rule.gguf}
            stem = hf.removesuffix(".weight").removesuffix(".bias")
            # llama.cpp's converter splits and stacks before it looks a name up.
            stems = [stem, stem.replace(".experts.0.", ".experts."), stem.removesuffix("_bias")]
            stems += [part.replace("gate_up_proj", half) for part in stems for half in ("gate_proj", "up_proj")]
            stems += ["layers.3.feed_forward.experts." + stem.rsplit(".", 1)[-1]]
            known = {table.get_name(part) for part in stems} - {None}
            assert {name.rsplit(".", 1)[0] for name in ours} <= known, (arch.name, rule)


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 4e-3), ("q8_0", "Q8_0", 8e-3)]
)
def test_writes_other_types(
    tiny_folder: Callable[..., Path],
    tiny_tensors: dict[str, np.ndarray],
    tmp_path: Path,
    dtype: str,
    kind: str,
    bound: float,
) -> None:
    path = tmp_path / "out.gguf"
    convert(str(tiny_folder()), path, to="gguf", dtype=dtype)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found = stored["blk.0.ffn_down.weight"]
    assert found.tensor_type.name == kind and stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    values = gguf.dequantize(np.asarray(found.data), found.tensor_type)
    expected = tiny_tensors["model.layers.0.mlp.down_proj.weight"]
    error = np.abs(values - expected).max() / np.abs(expected).max()
    assert 0 < error < bound


def test_carries_the_tokenizer(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    original = open_checkpoint(tiny_gguf()).tokenizer()
    convert(str(tmp_path / "tiny.gguf"), tmp_path / "folder", to="safetensors")
    convert(str(tmp_path / "folder"), tmp_path / "again.gguf", to="gguf")
    tokenizer = open_checkpoint(tmp_path / "again.gguf").tokenizer()
    text = "hello hell \n ünïcode 東京"
    assert tokenizer.encode(text) == original.encode(text)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (original.bos_id, original.eos_ids)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x"


def test_reads_experts_in_tensors_of_their_own(golden: Path, tmp_path: Path) -> None:
    """Mixtral files made before April 2024."""
    convert(str(golden / "mixtral"), tmp_path / "new.gguf", to="gguf", dtype="float32")
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    writer = gguf.GGUFWriter(tmp_path / "old.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if "_exps." not in tensor.name:
            writer.add_tensor(tensor.name, np.asarray(tensor.data))
            continue
        for expert, values in enumerate(np.asarray(tensor.data)):
            writer.add_tensor(tensor.name.replace("_exps.", f".{expert}."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new, old = (open_checkpoint(tmp_path / f"{name}.gguf") for name in ("new", "old"))
    config = config_from_hf(old.hf_config)
    expected = flatten(new.load_weights(config, dtype="float32"))
    for name, leaf in flatten(old.load_weights(config, dtype="float32")).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
