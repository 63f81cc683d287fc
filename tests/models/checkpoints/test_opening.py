import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.backends.errors import DistaffError
from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.checkpoints.gguf import GGUFCheckpoint
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.checkpoints.orbax import OrbaxFolder
from distaff.models.checkpoints.random_weights import RandomCheckpoint
from distaff.models.errors import CheckpointError, CorruptCheckpointError, ModelNotFoundError, UnknownArchitectureError
from distaff.models.families import config_from_hf


def test_knows_a_format_by_looking(
    tiny_folder: Callable[..., Path], tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    folder, file = tiny_folder(), tiny_gguf("model.bin")
    convert(str(folder), tmp_path / "orbax", to="orbax")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(file, alone / "x.gguf")
    kinds = {folder: HFFolder, file: GGUFCheckpoint, tmp_path / "orbax": OrbaxFolder, alone: GGUFCheckpoint}
    for path, kind in kinds.items():
        assert type(open_checkpoint(path)) is kind
    assert type(open_checkpoint(Path("random:palm-62b"))) is RandomCheckpoint


def test_says_what_it_found_instead(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere: found no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    folder = tiny_folder()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: found a file, expected the folder that holds it"):
        open_checkpoint(folder / "model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt: found a file that starts with b'hell', expected a \.gguf"):
        open_checkpoint(tmp_path / "notes.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        CheckpointError, match=r"empty: found nothing; expected config\.json with safetensors, distaff\.json"
    ):
        open_checkpoint(empty)
    for name in ("a.gguf", "b.gguf"):
        (empty / name).touch()
    with pytest.raises(CheckpointError, match=r"empty: found 2 GGUF files; name one; expected"):
        open_checkpoint(empty)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CorruptCheckpointError, match=r"config\.json: found a JSON list, expected an object"):
        open_checkpoint(folder)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_gguf_header_raises_nothing_but_our_errors(
    tiny_gguf: Callable[..., Path], data: st.DataObject
) -> None:
    """All the way to the weights: what passes as a header must not do harm behind it."""
    path = tiny_gguf("broken.gguf")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(
            st.sampled_from([b"llama.", b"general.", b"split", b"token_embd", b"blk.0.", b"blk.1.", b"output"])
        )
        places = [at for at in range(6000) if content.startswith(key, at)]
        if not places:
            continue
        at = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 60))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "little")),
                st.sampled_from([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 8]),
            )
        )
        content[at : at + len(patch)] = patch
    path.write_bytes(content)
    message = str(path)
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.load_weights(config_from_hf(checkpoint.hf_config, source=str(path)), dtype="float32")
    except DistaffError as error:
        message = str(error)
    assert str(path) in message


def test_an_unknown_architecture_is_named_before_a_word_about_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnknownArchitectureError, match=r"config\.json: model_type is 'mamba', expected one of"):
        open_checkpoint(tmp_path)
