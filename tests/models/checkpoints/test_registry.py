from pathlib import Path

import pytest

from distaff.models.checkpoints import CachedModel, cache_dir, cached_models, clear_cache
from distaff.models.errors import ModelNotFoundError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Distaff's cache with two models, and a hub cache with one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, size in (("one", 10), ("two", 20)):
        folder = tmp_path / "distaff" / "models" / name
        folder.mkdir(parents=True)
        (folder / "x.gguf").write_bytes(bytes(size))
    (tmp_path / "distaff" / "models" / ".fetch-1").mkdir()
    repo = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B"
    blob = repo / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(7))
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blob)
    return tmp_path / "distaff"


def _names(models: list[CachedModel]) -> list[tuple[str, int, bool]]:
    return [(model.name, model.bytes, model.shared) for model in models]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DISTAFF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "distaff"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/distaff")
    monkeypatch.setenv("DISTAFF_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


def test_lists_both_caches(cache: Path) -> None:
    assert _names(cached_models(cache)) == [("one", 10, False), ("two", 20, False), ("qwen3-0.6b", 7, True)]


def test_clears_its_own_unless_named(cache: Path) -> None:
    assert _names(clear_cache(cache=cache)) == [("one", 10, False), ("two", 20, False)]
    assert _names(cached_models(cache)) == [("qwen3-0.6b", 7, True)]
    assert clear_cache(cache=cache) == []
    assert _names(clear_cache(["Qwen/Qwen3-0.6B"], cache=cache)) == [("qwen3-0.6b", 7, True)]
    assert cached_models(cache) == []


def test_clears_nothing_when_a_name_is_wrong(cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"cache: found no 'three', expected one of one, two, qwen3-0.6b"):
        clear_cache(["one", "three"], cache=cache)
    assert len(cached_models(cache)) == 3


def test_an_empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert cached_models(tmp_path) == [] and clear_cache(cache=tmp_path) == []
