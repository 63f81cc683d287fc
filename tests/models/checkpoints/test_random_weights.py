from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distaff.models.checkpoints import open_checkpoint, shipped_configs
from distaff.models.checkpoints.random_weights import RandomCheckpoint
from distaff.models.decoder import flatten
from distaff.models.errors import TokenizerError
from distaff.models.families import config_from_hf


def _table(name: str) -> np.ndarray:
    checkpoint = open_checkpoint(Path(name))
    seen: list[tuple[int, int]] = []
    weights = flatten(
        checkpoint.load_weights(
            config_from_hf(checkpoint.hf_config), dtype="bfloat16", progress=lambda *done: seen.append(done)
        )
    )
    total = sum(leaf.nbytes for leaf in weights.values())
    assert seen == [(total, total)]
    return np.asarray(weights["embedder.table"], np.float32)


def test_the_seed_decides(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(config={"num_hidden_layers": 1, "intermediate_size": 32})
    first, again, other = (
        _table(f"random:{folder}"),
        _table(f"random:{folder}?seed=0"),
        _table(f"random:{folder}?seed=9"),
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (288, 256) and 0.01 < first.std() < 0.1
    assert not np.array_equal(first, other)


def test_takes_a_folder_a_file_or_a_name(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    assert (
        RandomCheckpoint(f"random:{folder / 'config.json'}").hf_config == RandomCheckpoint(f"random:{folder}").hf_config
    )
    assert RandomCheckpoint("random:llama-3.1-8b?seed=4").seed == 4
    assert RandomCheckpoint("random:llama-3.1-8b").stored_dtype.name == "bfloat16"


def test_has_a_tokenizer_where_the_folder_has_one(
    tiny_folder: Callable[..., Path], tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=r"a shipped configuration has no tokenizer; give token ids"):
        RandomCheckpoint("random:palm-62b").tokenizer()
    folder = tiny_folder()
    open_checkpoint(tiny_gguf()).copy_tokenizer(folder)
    checkpoint = RandomCheckpoint(f"random:{folder}")
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    (tmp_path / "copy").mkdir()
    checkpoint.copy_tokenizer(tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").is_file()


def test_lists_what_is_shipped() -> None:
    assert set(shipped_configs()) == {
        "gemma-3-27b", "gpt-oss-20b", "llama-3.1-70b", "llama-3.1-8b", "palm-540b", "palm-62b", "qwen3-30b-a3b",
    }  # fmt: skip
