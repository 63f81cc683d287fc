"""What models are known by short names, and where they are cached."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

from ..errors import HubError, ModelNotFoundError


@dataclass(frozen=True)
class WheelSource:
    """A file inside a wheel of the Python package index."""

    package: str
    version: str
    member: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class KnownModel:
    """An alias: from a wheel, or from a repository of the model hub."""

    name: str
    about: str
    hub: str | None = None
    wheel: WheelSource | None = None


@dataclass(frozen=True)
class CachedModel:
    """A model on this machine. `shared`: it lies in the hub's cache, which other programs use too."""

    name: str
    path: Path
    bytes: int
    shared: bool = False


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The alias table, in its order."""
    table = json.loads(Path(__file__).with_name("aliases.json").read_text(encoding="utf-8"))
    return tuple(
        KnownModel(name, entry["about"], entry.get("hub"), WheelSource(**entry["wheel"]) if "wheel" in entry else None)
        for name, entry in table.items()
    )


def cache_dir() -> Path:
    """Where Distaff keeps models that do not come from the hub: DISTAFF_CACHE, or `distaff` in the user's cache."""
    own = os.environ.get("DISTAFF_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "distaff"


def wheel_path(model: KnownModel, cache: Path | None = None) -> Path:
    """Where a model from a wheel is cached."""
    assert model.wheel is not None
    return (cache or cache_dir()) / "models" / model.name / Path(model.wheel.member).name


def cached_models(cache: Path | None = None) -> list[CachedModel]:
    """Models on this machine: those of Distaff's cache, then the repositories of the hub's cache."""
    own = (cache or cache_dir()) / "models"
    found = [
        CachedModel(folder.name, folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        for folder in (sorted(own.iterdir()) if own.is_dir() else [])
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    aliases = {model.hub: model.name for model in known_models()}
    for repo in _hub_repos():
        found.append(
            CachedModel(aliases.get(repo.repo_id, repo.repo_id), repo.repo_path, repo.size_on_disk, shared=True)
        )
    return found


def clear_cache(names: Iterable[str] | None = None, *, cache: Path | None = None) -> list[CachedModel]:
    """Delete cached models and return them.

    Args:
        names: as `cached_models` gives them, or hub ids. None: everything in Distaff's own cache, and nothing of the
            hub's, which other programs share.
        cache: Distaff's cache; `cache_dir()` by default.

    Raises:
        ModelNotFoundError: a name that is not cached. Nothing is deleted then.
        HubError: a folder cannot be deleted.
    """
    present = cached_models(cache)
    if names is None:
        chosen = [model for model in present if not model.shared]
    else:
        hubs = {model.hub: model.name for model in known_models()}
        wanted = [hubs.get(name, name) for name in names]
        absent = [name for name in wanted if name not in {model.name for model in present}]
        if absent:
            raise ModelNotFoundError(
                f"cache: found no {absent[0]!r}, expected one of {', '.join(model.name for model in present) or 'none'}"
            )
        chosen = [model for model in present if model.name in wanted]
    for model in chosen:
        try:
            shutil.rmtree(model.path)
        except OSError as error:
            raise HubError(f"{model.path}: cannot be deleted ({error.strerror})") from error
    return chosen


def _hub_repos() -> list["CachedRepoInfo"]:
    from huggingface_hub import constants, scan_cache_dir  # slow to import, and few commands need it
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(
            (repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model"),
            key=lambda r: r.repo_id,
        )
    except CacheNotFound:
        return []
