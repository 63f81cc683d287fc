import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.models.checkpoints import convert, open_checkpoint, resolve_model, save
from distaff.models.checkpoints.safetensors import open_folder
from distaff.models.decoder import flatten
from distaff.models.errors import CheckpointError
from distaff.models.families import config_from_hf
from distaff.serving import LLM, SamplingParams

FAMILIES = sorted(path.parent.name for path in (Path(__file__).parents[2] / "golden").glob("*/config.json"))


def _stored(folder: Path) -> dict[str, np.ndarray]:
    """Tensors by name, as the safetensors library reads them."""
    return {name: values for file in sorted(folder.glob("*.safetensors")) for name, values in load_file(file).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_the_tensors_that_transformers_wrote(golden: Path, tmp_path: Path, family: str) -> None:
    """Loading and saving are one table read both ways: names, shapes and bits come back."""
    convert(str(golden / family), tmp_path / "out", to="safetensors")
    before = {name.removeprefix("language_model."): values for name, values in _stored(golden / family).items()}
    after = _stored(tmp_path / "out")
    ignored = ("vision_tower.", "multi_modal_projector.")
    assert after.keys() == {name for name in before if not name.startswith(ignored)}
    for name, values in after.items():
        assert values.dtype == before[name].dtype
        np.testing.assert_array_equal(values, before[name], err_msg=name)


def test_the_long_way_round_is_bit_equal(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """GGUF to Orbax to safetensors to weights."""
    from gguf import GGMLQuantizationType as Kind

    source = tiny_gguf(kind=Kind.Q4_K, raw=_finite_q4_k)
    convert(str(source), tmp_path / "orbax", to="orbax")
    convert(str(tmp_path / "orbax"), tmp_path / "folder", to="safetensors")
    loaded: list[dict[str, np.ndarray]] = []
    for path in (source, tmp_path / "orbax", tmp_path / "folder"):
        checkpoint = open_checkpoint(path)
        config = config_from_hf(checkpoint.hf_config)
        loaded.append({k: np.asarray(v) for k, v in flatten(checkpoint.load_weights(config, dtype="float32")).items()})
        assert checkpoint.stored_dtype == jnp.float32
        tokenizer = checkpoint.tokenizer()
        assert tokenizer.encode("hello, hell") == open_checkpoint(source).tokenizer().encode("hello, hell")
        assert tokenizer.eos_ids == {2} and tokenizer.bos_id == 1
        assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x"
    for path, leaf in loaded[0].items():
        assert np.isfinite(leaf).all() and leaf.std() > 0
        np.testing.assert_array_equal(loaded[1][path].view(np.uint32), leaf.view(np.uint32), err_msg=path)
        np.testing.assert_array_equal(loaded[2][path].view(np.uint32), leaf.view(np.uint32), err_msg=path)


@pytest.mark.slow
def test_the_long_way_round_with_a_real_model(tmp_path: Path) -> None:
    source = resolve_model("smollm2-135m-instruct", offline=False)
    convert(str(source), tmp_path / "orbax", to="orbax")
    convert(str(tmp_path / "orbax"), tmp_path / "folder", to="safetensors")
    convert(str(tmp_path / "folder"), tmp_path / "again.gguf", to="gguf")
    first = open_checkpoint(source)
    config = config_from_hf(first.hf_config)
    expected = flatten(first.load_weights(config, dtype="float32"))
    text = "Grüße, 東京!  1234 don't\n\tdef f(x): return 🎉"
    for path in (tmp_path / "orbax", tmp_path / "folder", tmp_path / "again.gguf"):
        checkpoint = open_checkpoint(path)
        assert config_from_hf(checkpoint.hf_config) == config
        assert checkpoint.tokenizer().encode(text) == first.tokenizer().encode(text)
        assert checkpoint.tokenizer().eos_ids == first.tokenizer().eos_ids
        for name, leaf in flatten(checkpoint.load_weights(config, dtype="float32")).items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    params = SamplingParams(max_tokens=24, temperature=0)
    folders = (str(source), str(tmp_path / "folder"))
    answers = [LLM(folder).generate("The three longest rivers are", params) for folder in folders]
    assert answers[0].token_ids == answers[1].token_ids and len(answers[0].token_ids) >= 16


def _finite_q4_k(shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 256, 144), np.uint8)
    blocks[..., :4] = rng.uniform(0.001, 0.1, (*blocks.shape[:-1], 2)).astype(np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def test_cuts_shards_and_lists_them(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_folder())
    config = config_from_hf(checkpoint.hf_config)
    weights = checkpoint.load_weights(config, dtype="float32")
    out = tmp_path / "out"
    seen: list[tuple[int, int]] = []
    save(
        weights, config=config, source=checkpoint, destination=out, format="safetensors", max_shard_bytes=2**20,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3 and all(f"of-{len(files):05}" in file.name for file in files)
    assert all(file.stat().st_size < 2**20 + 10_000 for file in files)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in flatten(weights).values()) == seen[-1][1]
    assert seen[-1][0] == seen[-1][1]
    assert open_folder(out).infos.keys() == _stored(tmp_path / "folder").keys() == index["weight_map"].keys()


def test_converts_to_another_dtype(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder()
    report = convert(str(folder), tmp_path / "half", to="safetensors", dtype="bfloat16")
    for name, values in _stored(tmp_path / "half").items():
        np.testing.assert_array_equal(values, _stored(folder)[name].astype(values.dtype))
        assert values.dtype.name == "bfloat16"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert report.tensors == 12 and report.bytes == 2 * sum(v.size for v in _stored(folder).values())
    checkpoint = open_checkpoint(tmp_path / "half")
    config = config_from_hf(checkpoint.hf_config)
    weights = checkpoint.load_weights(config, dtype="bfloat16")
    for format in ("orbax", "safetensors"):
        out = tmp_path / format
        save(weights, config=config, source=checkpoint, destination=out, format=format, dtype="float32")
        assert open_checkpoint(out).stored_dtype == jnp.float32


@pytest.mark.parametrize("to", ["safetensors", "orbax", "gguf"])
def test_progress_is_of_reading_and_writing(tiny_folder: Callable[..., Path], tmp_path: Path, to: Any) -> None:
    seen: list[tuple[int, int]] = []
    report = convert(str(tiny_folder()), tmp_path / "out", to=to, progress=lambda *done: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == (2 * report.bytes, 2 * report.bytes)


def test_keeps_what_is_stored(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    convert(str(tiny_folder(dtype=np.float16)), tmp_path / "orbax", to="orbax")
    assert open_checkpoint(tmp_path / "orbax").stored_dtype == jnp.float16


def test_copies_the_files_beside_the_weights(golden: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder()
    files = {"tokenizer.json": "{}", "chat_template.jinja": "x", "tokenizer_config.json": "{}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("y")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    convert(str(folder), tmp_path / "orbax", to="orbax")
    convert(str(tmp_path / "orbax"), tmp_path / "again", to="safetensors")
    for name, text in files.items():
        assert (tmp_path / "again" / name).read_text() == text
    assert (tmp_path / "again" / "additional_chat_templates" / "tool_use.jinja").read_text() == "y"
    assert open_checkpoint(tmp_path / "again").generation_config == {"eos_token_id": [5, 6]}


def test_never_replaces_unasked(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(
        UsageError, match=r"out: found it there already, expected a new path; choose another, or --overwrite"
    ):
        convert(str(folder), out, to="safetensors")
    assert (out / "precious").exists()
    convert(str(folder), out, to="safetensors", overwrite=True)
    assert not (out / "precious").exists() and (out / "model.safetensors").exists()


@pytest.mark.parametrize("to", ["safetensors", "orbax", "gguf"])
def test_a_failure_leaves_nothing_behind(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    folder, out = tiny_folder(), tmp_path / "place" / "out"
    out.mkdir(parents=True)
    (out / "precious").touch()
    checkpoint = type(open_checkpoint(folder))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "copy_tokenizer", fail)
    monkeypatch.setattr("distaff.models.checkpoints.gguf_writer._write", fail)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device\)"):
        convert(str(folder), out, to=to, overwrite=True)  # pyright: ignore[reportArgumentType]
    assert list((tmp_path / "place").iterdir()) == [out] and (out / "precious").exists()


def test_refuses_dtypes_by_name(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(tiny_folder())
    with pytest.raises(InvalidParameterError, match=r"dtype is 'q8_0', expected one of float32, float16, bfloat16"):
        convert(folder, tmp_path / "out", to="safetensors", dtype="q8_0")
