"""docs/deploy: manifests that Kubernetes takes, an image that a linter takes, and options that `distaff` has."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from distaff.scripts.main import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "docs" / "deploy"
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
# What operators define, by the template within that Kubernetes itself knows; their own fields are not checked.
INNER = {"JobSet": "replicatedJobs", "RayJob": None}


def objects(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def known(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in one of a manifest that Kubernetes has a schema for: itself, or the jobs within."""
    if found["kind"] not in INNER:
        return [found]
    name = INNER[found["kind"]]
    jobs = found["spec"][name] if name else []
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job["template"]} for job in jobs]


def containers(node: Any) -> Iterator[dict[str, Any]]:
    """Every container anywhere in a manifest."""
    if isinstance(node, list):
        for item in node:
            yield from containers(item)
    elif isinstance(node, dict):
        if "image" in node:
            yield node
        for value in node.values():
            yield from containers(value)


def check_arguments(arguments: list[str]) -> None:
    """A subcommand exists, and has every option; an option without "=" is followed by its value, or is a flag."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        # `distaff batch` has a command of its own, and runs what has no name otherwise.
        command = command.commands[rest.pop(0)] if rest[0] in command.commands else command.commands["run"]
    options = {name for option in command.params for name in option.opts + option.secondary_opts}
    for name in (argument.split("=")[0] for argument in rest if argument.startswith("--")):
        assert name in options, f"{arguments[0]} has no option {name}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    for found in objects(path):
        for each in known(found):
            kubernetes_validate.validate(each, "1.37", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_containers_are_given_options_that_exist(path: Path) -> None:
    for container in (each for found in objects(path) for each in containers(found)):
        if "command" not in container and "args" in container and container["image"].startswith("distaff"):
            check_arguments(container["args"])


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no option --modle"):
        check_arguments(["generate", "--modle=x"])


def test_the_image_is_made_of_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"extras=([\w,-]+)", DOCKERFILE)
    assert len(named) == 3
    assert {extra for names in named for extra in names.split(",")} <= set(extras)
    command = re.search(r"^CMD \[(.*)\]$", DOCKERFILE, re.MULTILINE)
    assert command
    check_arguments(re.findall(r'"([^"]*)"', command[1]))


def test_a_linter_takes_the_image() -> None:
    linter = shutil.which("hadolint", path=str(ROOT / ".venv" / "bin")) or shutil.which("hadolint")
    assert linter, "hadolint is missing: it comes with the extra dev"
    done = subprocess.run([linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
