"""The repository describes itself truthfully: package list, pins, links, dependencies, and nothing of one machine."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import files, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("backends", "models", "scripts", "serving", "sharding")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Distributions that are required without being imported, and why.
NOT_IMPORTED = {"jaxlib": "jax's other half: it must not be older than the jax range says"}


def tracked_files() -> list[Path]:
    """Every file that a clone has or would have: tracked, or new and not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def sources() -> list[Path]:
    """The Python files that are shipped, without those that are made of .proto files."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if not re.search(r"_pb2(_grpc)?\.py$", path.name)]


def imported_modules(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def pins(name: str) -> dict[str, str]:
    """Distribution -> version from a constraints file in which every line is an exact pin."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            distribution, separator, exact = line.partition("==")
            assert separator and re.fullmatch(r"[0-9][0-9A-Za-z.]*", exact), f"{name}: {line!r} is not an exact pin"
            found[canonicalize_name(distribution)] = exact
    return found


def requirements(*extras: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def test_package_list_is_what_is_on_disk() -> None:
    on_disk = {
        ".".join(("distaff", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {f"distaff.{folder}": folder for folder in FOLDERS}


def test_every_data_file_is_shipped() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    shell = {"setup.sh", "demo", "test", "verify_device"}  # commands of the checkout
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".py", ".pyi"):
                matched = any(path.match(pattern) for pattern in patterns)
                assert matched or (folder == "scripts" and path.name in shell), f"{path} is in no wheel"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_typed_and_linked(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()
    link = ROOT / ".types" / "distaff" / folder
    assert link.is_symlink() and link.resolve() == (ROOT / folder).resolve()


def test_folders_are_at_most_two_deep() -> None:
    too_deep = [path for path in sources() if len(path.relative_to(ROOT).parts) > 3]
    assert too_deep == []


def test_imports_between_ours_are_relative() -> None:
    absolute = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in imported_modules(path)
        if name.split(".")[0] in {*FOLDERS, "distaff"}
    ]
    assert absolute == []


@pytest.mark.parametrize("extra", ["dev", "tpu", "aot-cuda"])
def test_pins_satisfy_the_ranges(extra: str) -> None:
    pinned = pins("constraints.txt")
    for requirement in requirements(extra):
        exact = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(exact), (
            f"constraints.txt: {requirement.name}=={exact} is not {requirement}"
        )


def test_nothing_is_installed_unpinned_and_nothing_pinned_in_vain() -> None:
    """Follows what the installed distributions require, as pip does."""
    pinned = pins("constraints.txt")
    build = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["build-system"]["requires"]}
    waiting, seen = requirements("dev", "tpu", "aot-cuda"), set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                assert version(name) == pinned.get(name), f"constraints.txt does not pin {name}=={version(name)}"
                for line in requires(name) or []:
                    needed = Requirement(line)
                    if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                        waiting.append(needed)
    assert {name for name, _ in seen} | build == pinned.keys()


def test_lower_bounds_are_stated_and_nothing_is_listed_twice() -> None:
    names = [canonicalize_name(requirement.name) for requirement in requirements("dev", "tpu")]
    assert len(names) == len(set(names))
    for requirement in requirements("dev", "tpu", "cuda", "aot-cuda"):
        assert any(spec.operator in (">=", "==") for spec in requirement.specifier), f"{requirement} has no lower bound"


def owners(module: str, distributions: list[str]) -> list[str]:
    """Whose module it is; a namespace such as google or opentelemetry belongs to many distributions, and its modules to
    one each."""
    if len(distributions) == 1:
        return distributions
    path = module.replace(".", "/")
    parts = {name: {str(file) for file in files(name) or ()} for name in set(distributions)}
    return [name for name, own in parts.items() if {f"{path}.py", f"{path}/__init__.py", f"{path}/__init__.pyi"} & own]


def test_dependencies_are_what_is_imported() -> None:
    distributions = packages_distributions()
    imported: dict[str, Path] = {}
    for path in sources():
        for name in imported_modules(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names:
                for distribution in owners(name, distributions.get(top, [top])):
                    imported[canonicalize_name(distribution)] = path
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    extras = [extra for extra in PYPROJECT["project"]["optional-dependencies"] if extra != "dev"]
    optional = {canonicalize_name(requirement.name) for requirement in requirements(*extras)}
    undeclared = {name: str(path) for name, path in imported.items() if name not in optional}
    assert undeclared == {}
    assert declared - imported.keys() - NOT_IMPORTED.keys() == set(), "declared in pyproject.toml and imported nowhere"


@pytest.mark.parametrize(
    ("module", "folder"),
    [
        ("jax.experimental.pallas", "backends"),
        ("torch", "backends"),
        ("torch_xla", "backends"),
        ("grpc", "serving"),
        ("threading", "serving"),
        ("asyncio", "serving"),
    ],
)
def test_only_one_folder_imports(module: str, folder: str) -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in sources()
        for name in imported_modules(path)
        if (name == module or name.startswith(module + ".")) and path.relative_to(ROOT).parts[0] != folder
    ]
    assert offenders == []


def test_the_version_has_one_source() -> None:
    stated = PYPROJECT["project"]["version"]
    assert version("distaff") == stated, "the environment is stale: run scripts/test, which installs anew"
    assert f"## [{stated}]" in (ROOT / "CHANGELOG.md").read_text()
    again = [str(path) for path in sources() if f'"{stated}"' in path.read_text()]
    assert again == []


def test_nothing_of_one_machine_is_tracked() -> None:
    # Spelled in pieces, so that this file does not find itself.
    machine_paths = re.compile("|".join("/" + name + "/[a-z0-9]" for name in ("tmp", "work", "root", "farm", "home")))
    registry_hosts = re.compile(r"(pythonhosted|registry\.npmjs|download\.pytorch)\.org|--(extra-)?index-url")
    found: list[str] = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__).resolve():
            found += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
                for number, line in enumerate(text.splitlines(), 1)
                if machine_paths.search(line) or registry_hosts.search(line)
            ]
    assert found == []


def test_nothing_big_is_tracked() -> None:
    big = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked_files() if path.stat().st_size > 2**20}
    assert big == {}


def test_the_extras_are_explained() -> None:
    explained = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert set(PYPROJECT["project"]["optional-dependencies"]) <= set(explained)
