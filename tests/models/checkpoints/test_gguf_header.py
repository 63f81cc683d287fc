import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.models.checkpoints.gguf_header import read_header
from distaff.models.errors import CheckpointError, CorruptCheckpointError, UnsupportedQuantizationError


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file with a key of every value type, and three tensors."""
    import numpy as np

    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"test.u{bits}", bits)
        getattr(writer, f"add_int{bits}")(f"test.i{bits}", -bits)
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.25)
    writer.add_bool("test.flag", True)
    writer.add_string("test.text", "ein Wort: ß")
    writer.add_array("test.numbers", [3, 1, 2])
    writer.add_array("test.words", ["a", "", "日本"])
    writer.add_tensor("a.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("b.weight", np.ones(5, np.float16))
    writer.add_tensor("c.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_package_reads(small: Path) -> None:
    ours, theirs = read_header(small), gguf.GGUFReader(small)
    expected = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == expected
    assert ours.metadata["test.words"] == ["a", "", "日本"] and ours.metadata["test.flag"] is True
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert (found.type, found.start, found.nbytes) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
    assert len(ours.tensors) == len(theirs.tensors) == 3


def _put(data: bytes, at: int, form: str, value: int) -> bytes:
    new = struct.pack("<" + form, value)
    return data[:at] + new + data[at + len(new) :]


def _after(data: bytes, text: bytes, skip: int = 0) -> int:
    return data.index(text) + len(text) + skip


_CASES: dict[str, tuple[Callable[[bytes], bytes], type[CheckpointError], str]] = {
    "empty": (lambda d: b"", CorruptCheckpointError, r"found 0 bytes, a GGUF file has at least 24"),
    "magic": (lambda d: b"GGML" + d[4:], CorruptCheckpointError, r"magic: found b'GGML', expected b'GGUF'"),
    "version 1": (lambda d: _put(d, 4, "I", 1), CorruptCheckpointError, r"version: found 1, expected 2 or 3"),
    "big-endian": (lambda d: _put(d, 4, "I", 3 << 24), CorruptCheckpointError, r"big-endian files are not read"),
    "tensor count": (
        lambda d: _put(d, 8, "Q", 2**40),
        CorruptCheckpointError,
        r"tensor_count: found 1099511627776 entries, expected at most \d+",
    ),
    "key count": (lambda d: _put(d, 16, "Q", 2**63), CorruptCheckpointError, r"kv_count: found 9223372036854775808"),
    "more keys than there are": (lambda d: _put(d, 16, "Q", 40), CorruptCheckpointError, r"fetch it again"),
    "key length": (
        lambda d: _put(d, 24, "Q", 2**31),
        CorruptCheckpointError,
        r"key 0: found a string of 2147483648 bytes, expected at most 16777216",
    ),
    "value type": (
        lambda d: _put(d, _after(d, b"test.u8"), "I", 99),
        CorruptCheckpointError,
        r"test\.u8: found value type 99, expected 0 to 12",
    ),
    "array length": (
        lambda d: _put(d, _after(d, b"test.words", 8), "Q", 2**22),
        CorruptCheckpointError,
        r"test\.words: found 4194304 entries, expected at most \d+",
    ),
    "array of arrays": (
        lambda d: _put(d, _after(d, b"test.words", 4), "I", 9),
        CorruptCheckpointError,
        r"test\.words: found an array of arrays",
    ),
    "bool": (
        lambda d: _put(d, _after(d, b"test.flag", 4), "B", 7),
        CorruptCheckpointError,
        r"test\.flag: found 7, expected a bool",
    ),
    "text": (
        lambda d: _put(d, _after(d, b"test.text", 12), "B", 0xFF),
        CorruptCheckpointError,
        r"test\.text: found byte 0xff in a string, expected UTF-8",
    ),
    "dimensions": (
        lambda d: _put(d, _after(d, b"a.weight"), "I", 1000),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found 1000 dimensions, expected 1 to 4",
    ),
    "a dimension": (
        lambda d: _put(d, _after(d, b"a.weight", 4), "Q", 2**60),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found shape \[3, 1152921504606846976\]",
    ),
    "no dimension": (
        lambda d: _put(d, _after(d, b"a.weight", 4), "Q", 0),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found shape \[3, 0\]",
    ),
    "type": (
        lambda d: _put(d, _after(d, b"a.weight", 20), "I", 77),
        UnsupportedQuantizationError,
        r"tensor 'a\.weight' has quantisation type 77; known are F32, F16, .*fetch another quantisation",
    ),
    "block": (
        lambda d: _put(d, _after(d, b"a.weight", 20), "I", 8),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found rows of 4 values, expected a multiple of 32 for Q8_0",
    ),
    "offset": (
        lambda d: _put(d, _after(d, b"a.weight", 24), "Q", 31),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found offset 31, expected a multiple of 32",
    ),
    "overlap": (
        lambda d: _put(d, _after(d, b"b.weight", 16), "Q", 32),
        CorruptCheckpointError,
        r"tensor 'b\.weight': found bytes shared with 'a\.weight', expected tensors apart",
    ),
    "two of a name": (
        lambda d: d.replace(b"b.weight", b"a.weight"),
        CorruptCheckpointError,
        r"tensor 'a\.weight': found it twice",
    ),
    "two keys of a name": (
        lambda d: d.replace(b"test.u8", b"test.i8"),
        CorruptCheckpointError,
        r"found test\.i8, expected a key not seen before",
    ),
    "end of header": (lambda d: d[:200], CorruptCheckpointError, r"fetch it again"),
    "end of data": (
        lambda d: d[:-40],
        CorruptCheckpointError,
        r"tensor 'c\.weight': found bytes \d+ to \d+, expected the end within \d+ bytes; the file is truncated",
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_names_what_is_wrong(small: Path, case: str) -> None:
    change, kind, message = _CASES[case]
    small.write_bytes(change(small.read_bytes()))
    with pytest.raises(kind, match=message) as raised:
        read_header(small)
    assert str(small) in str(raised.value)


def test_alignment_must_be_a_power_of_two(tmp_path: Path, tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf(edit=lambda writer: writer.add_uint32("general.alignment", 32))
    data = path.read_bytes()
    path.write_bytes(_put(data, _after(data, b"general.alignment", 4), "I", 48))
    with pytest.raises(CorruptCheckpointError, match=r"general\.alignment: found 48, expected a power of two"):
        read_header(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_header(tmp_path)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_raise_nothing_but_checkpoint_errors(small: Path, data: st.DataObject) -> None:
    content = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8])))
        content[at : at + len(patch)] = patch
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    broken = small.with_name("broken.gguf")
    broken.write_bytes(content)
    tracemalloc.start()
    message = None
    try:
        header = read_header(broken)
    except CheckpointError as error:
        message = str(error)
    else:
        assert all(tensor.start + tensor.nbytes <= len(content) for tensor in header.tensors.values())
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message is None or str(broken) in message
    assert peak < 2**20
