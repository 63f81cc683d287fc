from collections.abc import Callable
from pathlib import Path

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from distaff.models.checkpoints.gguf import GGUFCheckpoint
from distaff.models.checkpoints.gguf_file import GGUFFile, can_dequantize
from distaff.models.checkpoints.gguf_tensors import GGUFTensors
from distaff.models.decoder import flatten
from distaff.models.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ExtraTensorError,
    MissingTensorError,
    UnknownArchitectureError,
    UnsupportedQuantizationError,
)
from distaff.models.families import config_from_hf

READABLE = [kind for kind in Kind if can_dequantize(kind)]
NEEDED = {
    Kind.F32,
    Kind.F16,
    Kind.BF16,
    Kind.Q8_0,
    Kind.Q4_0,
    Kind.Q4_1,
    Kind.Q5_0,
    Kind.Q5_1,
    Kind.Q2_K,
    Kind.Q3_K,
    Kind.Q4_K,
    Kind.Q5_K,
    Kind.Q6_K,
    Kind.MXFP4,
}


def _tensors(path: Path) -> GGUFTensors:
    checkpoint = GGUFCheckpoint(path)
    return GGUFTensors(GGUFFile(path), checkpoint.hf_config)


def test_every_type_of_the_issue_is_readable() -> None:
    assert set(READABLE) >= NEEDED


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_reads_a_type_as_the_package_does(tiny_gguf: Callable[..., Path], kind: Kind) -> None:
    rng = np.random.default_rng(int(kind))
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]

    def raw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 256, (*shape[:-1], shape[-1] // block * nbytes), np.uint8)

    path = tiny_gguf(kind=kind, raw=raw) if kind not in (Kind.F32, Kind.F16) else tiny_gguf(kind=kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}["blk.1.ffn_down.weight"]
    with np.errstate(all="ignore"):
        if kind == Kind.F64:
            expected = np.asarray(stored.data).view(np.float64).reshape(256, 512)
        else:
            expected = gguf.dequantize(np.asarray(stored.data), kind)
    tensors = _tensors(path)
    name = "model.layers.1.mlp.down_proj.weight"
    assert tensors.infos[name].shape == (256, 512)
    for rows in ((0, 256), (0, 1), (37, 101), (255, 256)):
        found = tensors.read_rows(name, *rows)
        np.testing.assert_array_equal(np.asarray(found, expected.dtype), expected[slice(*rows)])


def test_undoes_the_order_of_rotated_rows(tiny_gguf: Callable[..., Path], tiny_tensors: dict[str, np.ndarray]) -> None:
    tensors = _tensors(tiny_gguf())
    for name, expected in tiny_tensors.items():
        np.testing.assert_array_equal(tensors.read_rows(name, 0, len(expected)), expected, err_msg=name)
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(tensors.read_rows(name, 70, 131), tiny_tensors[name][70:131])


def test_loads_the_weights(tiny_gguf: Callable[..., Path], tiny_tensors: dict[str, np.ndarray]) -> None:
    checkpoint = GGUFCheckpoint(tiny_gguf())
    assert checkpoint.stored_dtype == jnp.float32
    flat = flatten(checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32"))
    np.testing.assert_array_equal(flat["embedder.table"], tiny_tensors["model.embed_tokens.weight"])
    queries = [tiny_tensors[f"model.layers.{i}.self_attn.q_proj.weight"].reshape(4, 64, 256) for i in range(2)]
    np.testing.assert_array_equal(flat["segments.0.layers.0.attention.q.weight"], np.stack(queries))
    outputs = [tiny_tensors[f"model.layers.{i}.self_attn.o_proj.weight"].reshape(256, 4, 64) for i in range(2)]
    np.testing.assert_array_equal(flat["segments.0.layers.0.attention.o.weight"], np.stack(outputs))


def test_reads_configuration_and_tokenizer(tiny_gguf: Callable[..., Path]) -> None:
    checkpoint = GGUFCheckpoint(tiny_gguf())
    expected = {
        "model_type": "llama",
        "vocab_size": 288,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: checkpoint.hf_config[key] for key in expected} == expected
    assert checkpoint.generation_config == {"eos_token_id": 2, "bos_token_id": 1}
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello you")) == "hello you"


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, "float16"), (Kind.BF16, "bfloat16"), (Kind.Q8_0, "float32")])
def test_says_which_dtype_keeps_what_is_stored(tiny_gguf: Callable[..., Path], kind: Kind, dtype: str) -> None:
    assert GGUFCheckpoint(tiny_gguf(kind=kind)).stored_dtype == jnp.dtype(dtype)


def test_bfloat16_stays_as_it_is(tiny_gguf: Callable[..., Path]) -> None:
    rows = _tensors(tiny_gguf(kind=Kind.BF16)).read_rows("lm_head.weight", 0, 2)
    assert rows.dtype == ml_dtypes.bfloat16


def test_refuses_a_type_that_has_no_values(tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf(kind=Kind.Q8_1, raw=lambda shape: np.zeros((*shape[:-1], shape[-1] // 32 * 40), np.uint8))
    checkpoint = GGUFCheckpoint(path)
    with pytest.raises(
        UnsupportedQuantizationError, match=r"tiny\.gguf: tensor 'model\.embed_tokens\.weight': found type Q8_1"
    ):
        checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")


def test_refuses_an_unknown_architecture(tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf()
    path.write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(
        UnknownArchitectureError, match=r"general\.architecture is 'lamma', expected one of llama, smollm3"
    ):
        GGUFCheckpoint(path)


def test_names_missing_and_extra_tensors(tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf(leave_out=("blk.1.ffn_up.weight",))
    checkpoint = GGUFCheckpoint(path)
    with pytest.raises(
        MissingTensorError, match=r"expected also 'model\.layers\.1\.mlp\.up_proj\.weight': family llama"
    ):
        checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")
    path = tiny_gguf(
        "more.gguf", edit=lambda writer: writer.add_tensor("blk.0.attn_gate.weight", np.ones((2, 2), "f4"))
    )
    checkpoint = GGUFCheckpoint(path)
    with pytest.raises(ExtraTensorError, match=r"found 'blk\.0\.attn_gate\.weight', expected only the 21 tensors"):
        checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32")


def _split(path: Path, folder: Path) -> list[Path]:
    """The same model as two files, as gguf-split names them."""
    reader = gguf.GGUFReader(path)
    files: list[Path] = []
    for part in range(2):
        file = folder / f"tiny-{part + 1:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        if part == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    item = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(name, field.contents(), field.types[0], item)
        writer.add_uint16("split.count", 2)
        for tensor in reader.tensors[part::2]:
            writer.add_tensor(tensor.name, np.asarray(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(file)
    return files


def test_reads_the_parts_of_a_split_file(
    tiny_gguf: Callable[..., Path], tmp_path: Path, tiny_tensors: dict[str, np.ndarray]
) -> None:
    first, second = _split(tiny_gguf(), tmp_path)
    tensors = _tensors(first)
    assert tensors.infos.keys() == tiny_tensors.keys()
    for name, expected in tiny_tensors.items():
        np.testing.assert_array_equal(tensors.read_rows(name, 0, len(expected)), expected)
    with pytest.raises(CheckpointError, match=r"open the part named \.\.\.-00001-of-00002\.gguf"):
        GGUFFile(second)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorruptCheckpointError, match=r"found it in an earlier part too"):
        GGUFFile(first)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"tiny-00002-of-00002\.gguf is missing beside it; fetch every part"):
        GGUFFile(first)
