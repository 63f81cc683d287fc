"""A checkpoint's fingerprint: the same for a copy, another one for other weights, tokenizers or parts."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from distaff.models.checkpoints import fingerprint, resolve_model
from distaff.models.checkpoints.byte_files import LocalFile
from distaff.models.checkpoints.runs import Runs

MODULE = sys.modules[fingerprint.__module__]


def test_a_copy_is_the_same_and_a_change_of_any_file_is_not(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder(shards=2)
    (folder / "tokenizer.json").write_text("{}")
    told = fingerprint(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    os.utime(copy / "config.json", (0, 0))
    (copy / "README.md").write_text("no part of what answers")
    assert fingerprint(copy) == told and len(told) == 16
    fs = fsspec.filesystem("memory")
    fs.put(str(copy), "/fingerprint", recursive=True)
    assert fingerprint(resolve_model("memory://fingerprint")) == told
    fs.rm("/fingerprint", recursive=True)
    found = {told}
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        found.add(fingerprint(folder))
        path.write_bytes(kept)
    assert len(found) == 1 + 5 and fingerprint(folder) == told


def test_every_part_of_a_split_file_counts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-{part:05}-of-00002.gguf" for part in (1, 2))
    first.write_bytes(b"GGUF one")
    second.write_bytes(b"GGUF two")
    told = fingerprint(first)
    second.write_bytes(b"GGUF 2nd")
    assert fingerprint(first) != told


def test_random_weights_are_told_by_their_name() -> None:
    names = ("random:qwen3-0.6b", "random:qwen3-0.6b@1")
    assert len({fingerprint(Path(name)) for name in names}) == 2


def test_long_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their beginning, their end, and places between: little is read, and other weights are found out."""
    for name, value in {"_WHOLE_BYTES": 2**14, "_HEAD_BYTES": 512, "_SAMPLE_BYTES": 16}.items():
        monkeypatch.setattr(MODULE, name, value)
    asked: list[int] = []
    read = LocalFile.read

    def counted(self: LocalFile, runs: Runs) -> Any:
        asked.append(runs.nbytes)
        return read(self, runs)

    monkeypatch.setattr(LocalFile, "read", counted)
    rng, file = np.random.default_rng(0), tmp_path / "model.safetensors"
    values = rng.integers(0, 256, 10**6, dtype=np.uint8)
    others = np.concatenate([values[:512], rng.integers(0, 256, 10**6 - 512, dtype=np.uint8)])
    found = []
    for changed in (values, others, *(np.where(np.arange(10**6) == at, ~values, values) for at in (511, 10**6 - 1))):
        file.write_bytes(changed.tobytes())
        found.append(fingerprint(tmp_path))
    assert len(set(found)) == 4 and sum(asked) == 4 * (512 + 64 * 16)
