import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from distaff.models.checkpoints.byte_files import ReadCount
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.checkpoints.safetensors import SafetensorsFile, open_folder
from distaff.models.errors import CheckpointError, CorruptCheckpointError, UnsupportedQuantizationError


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
        "c": np.arange(8).astype(ml_dtypes.bfloat16).reshape(4, 2),
        "d": np.zeros((0, 3), np.float32),
    }
    save_file(tensors, path, {"format": "pt"})
    return path


def _write(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_reads_boxes_of_rows(small: Path) -> None:
    reads = ReadCount()
    file = SafetensorsFile(small, reads)
    np.testing.assert_array_equal(file.read_rows("a", 0, 2), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert file.read_rows("c", 1, 3).dtype == ml_dtypes.bfloat16 and file.read_rows("c", 1, 3).tolist() == [
        [2, 3],
        [4, 5],
    ]
    assert file.read_rows("c", 0, 4, ((1, 2),)).tolist() == [[1], [3], [5], [7]]
    assert file.read_rows("d", 0, 0).shape == (0, 3)
    assert file.entries["b"].info.dtype == "F16"
    assert (reads.wanted, reads.read, reads.requests) == (24 + 16 + 8,) * 2 + (1 + 2 + 4,)


_ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

_HEADERS: dict[str, tuple[object, type[CheckpointError], str]] = {
    "not JSON": (b"{]", CorruptCheckpointError, r"header: found text that is not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', CorruptCheckpointError, r"header: found text that is not valid JSON"),
    "deep": (b"[" * 5000 + b"]" * 5000, CorruptCheckpointError, r"header: found"),
    "a list": ([1, 2], CorruptCheckpointError, r"header: found a JSON list, expected an object"),
    "a name twice": (b'{"a":1,"a":2}', CorruptCheckpointError, r"key 'a' occurs twice"),
    "no object": ({"a": 5}, CorruptCheckpointError, r"tensor 'a': found '5', expected an object"),
    "an unknown type": (
        {"a": _ONE | {"dtype": "F8_E9"}},
        UnsupportedQuantizationError,
        r"tensor 'a': dtype: found 'F8_E9', expected one of F64, F32, F16, BF16",
    ),
    "a negative dimension": (
        {"a": _ONE | {"shape": [-2]}},
        CorruptCheckpointError,
        r"tensor 'a': shape: found \[-2\], expected whole numbers",
    ),
    "a huge dimension": ({"a": _ONE | {"shape": [10**30]}}, CorruptCheckpointError, r"shape: found \[1000"),
    "a true dimension": ({"a": _ONE | {"shape": [True, 2]}}, CorruptCheckpointError, r"shape: found \[True, 2\]"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, CorruptCheckpointError, r"data_offsets: found None"),
    "offsets turned": ({"a": _ONE | {"data_offsets": [8, 0]}}, CorruptCheckpointError, r"found \[8, 0\], expected two"),
    "beyond the end": (
        {"a": _ONE | {"data_offsets": [0, 16]}},
        CorruptCheckpointError,
        r"data_offsets: found \[0, 16\], expected two offsets within the 8 bytes of data; the file is truncated",
    ),
    "another size": (
        {"a": _ONE | {"shape": [3]}},
        CorruptCheckpointError,
        r"tensor 'a': found 8 bytes, expected 12 for F32 of shape \[3\]",
    ),
    "an overlap": (
        {"a": _ONE, "b": _ONE},
        CorruptCheckpointError,
        r"tensor 'b': found its data at byte \d+, expected \d+",
    ),
    "a gap": (
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        CorruptCheckpointError,
        r"tensor 'a': found its data at byte \d+, expected \d+, where the tensor before ends",
    ),
    "bytes left over": (
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        CorruptCheckpointError,
        r"found \d+ bytes, expected \d+ by the header; the file is truncated or padded",
    ),
}


@pytest.mark.parametrize("case", _HEADERS)
def test_names_what_is_wrong(tmp_path: Path, case: str) -> None:
    header, kind, message = _HEADERS[case]
    path = _write(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(kind, match=message) as raised:
        SafetensorsFile(path)
    assert str(path) in str(raised.value) and "fetch" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 100) + b"{}"])
def test_a_length_that_the_file_does_not_have(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"found a header of \d+ bytes in a file of \d+, expected 2 to"):
        SafetensorsFile(path)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_raise_nothing_but_checkpoint_errors(small: Path, data: st.DataObject) -> None:
    content = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"99999999999", b"1e999", b"-1", b"[[[[", b"null", b'"', b"}", b"F8_E4M3"]),
            )
        )
        content[at : at + len(patch)] = patch
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    broken = small.with_name("broken.safetensors")
    broken.write_bytes(content)
    tracemalloc.start()
    message = None
    try:
        file = SafetensorsFile(broken)
    except CheckpointError as error:
        message = str(error)
    else:
        infos = [entry.info for entry in file.entries.values() if entry.info.readable and entry.info.shape]
        assert sum(file.read_rows(info.name, 0, info.shape[0]).nbytes for info in infos) < len(content)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message is None or str(broken) in message
    assert peak < 2**20


def test_reads_shards(tiny_folder: Callable[..., Path], tiny_tensors: dict[str, np.ndarray]) -> None:
    tensors = open_folder(tiny_folder(shards=3))
    assert tensors.infos.keys() == tiny_tensors.keys()
    for name, expected in tiny_tensors.items():
        np.testing.assert_array_equal(tensors.read_rows(name, 1, 5), expected[1:5])
    assert len({info.file for info in tensors.infos.values()}) == 3


def _edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_a_missing_shard(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"index\.json: found no model-00002-of-00003\.safetensors .* expected 3 shards"
    ):
        open_folder(folder)


def test_an_index_that_promises_too_much(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(shards=2)
    _edit_index(folder, lambda names: names.update({"model.extra": "model-00001-of-00002.safetensors"}))
    with pytest.raises(CorruptCheckpointError, match=r"weight_map: found 'model\.extra' in model-00001-of-00002"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 5, "model.bin"])
def test_an_index_that_points_elsewhere(tiny_folder: Callable[..., Path], name: object) -> None:
    folder = tiny_folder(shards=2)
    _edit_index(folder, lambda names: names.update({"model.norm.weight": name}))
    with pytest.raises(CorruptCheckpointError, match=r"weight_map: expected tensor names with names of files in this"):
        open_folder(folder)


def test_a_tensor_in_two_shards(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(shards=2)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = json.loads(first.read_bytes()[8:].split(b"}}")[0] + b"}}")
    second.write_bytes(first.read_bytes())
    _edit_index(folder, lambda index: [index.pop(name) for name in list(index) if name not in names])
    _edit_index(folder, lambda index: index.update({next(iter(names)): second.name}))
    with pytest.raises(
        CorruptCheckpointError, match=r"found it in model-00001-of-00002\.safetensors too, expected it once"
    ):
        open_folder(folder)


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        CheckpointError, match=r"found pytorch_model\.bin, which is not read, expected model\.safetensors"
    ):
        open_folder(tmp_path)


def test_eight_bit_floats_are_refused_when_they_are_needed(tiny_folder: Callable[..., Path]) -> None:
    from distaff.models.families import config_from_hf

    values = np.zeros((288, 256), ml_dtypes.float8_e4m3fn)
    folder = HFFolder(tiny_folder(change={"lm_head.weight": values}))
    with pytest.raises(
        UnsupportedQuantizationError, match=r"tensor 'lm_head\.weight': found type F8_E4M3, expected float"
    ):
        folder.load_weights(config_from_hf(folder.hf_config), dtype="float32")


@pytest.mark.parametrize("method", ["fp8", "hqq", "eetq"])
def test_other_quantisations_are_refused_by_name(tiny_folder: Callable[..., Path], method: str) -> None:
    folder = tiny_folder(config={"quantization_config": {"quant_method": method}})
    with pytest.raises(
        UnsupportedQuantizationError, match=rf"config\.json: quantization_config\.quant_method: found '{method}'"
    ):
        HFFolder(folder)


@pytest.mark.parametrize(
    ("stored", "name"), [(np.float32, "float32"), (ml_dtypes.bfloat16, "bfloat16"), (np.float16, "float16")]
)
def test_says_which_dtype_keeps_what_is_stored(tiny_folder: Callable[..., Path], stored: Any, name: str) -> None:
    assert HFFolder(tiny_folder(dtype=stored)).stored_dtype.name == name


def test_end_tokens_come_from_either_file(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    assert HFFolder(folder).generation_config == {"eos_token_id": 2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_k": 3}')
    assert HFFolder(folder).generation_config == {"eos_token_id": [2, 7], "top_k": 3}
    (folder / "generation_config.json").write_text("nonsense")
    with pytest.raises(CorruptCheckpointError, match=r"generation_config\.json: found text that is not valid JSON"):
        _ = HFFolder(folder).generation_config
