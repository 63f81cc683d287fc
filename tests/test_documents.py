"""Documents show what exists: links resolve, embedded files and help are current, and every command shown works."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distaff.models.checkpoints.gguf_names import ARCHITECTURES
from distaff.models.families import FAMILIES
from distaff.scripts.main import app

ROOT = Path(__file__).resolve().parent.parent
EMBED = runpy.run_path(str(ROOT / "docs" / "embed.py"))
DOCUMENTS: list[Path] = EMBED["documents"]()
INSTALLS = {"README.md", "CONTRIBUTING.md", "docs/install.md"}  # may show what sets an environment up


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Shown:
    """A command and the output that a document shows behind it; "..." stands for anything."""

    command: str
    output: str

    def explain(self, done: "subprocess.CompletedProcess[str]") -> str | None:
        """What is wrong with how it went."""
        fails = self.output.startswith("error: ")
        if (done.returncode != 0) != fails:
            return f"exit code {done.returncode}"
        found = done.stderr.strip().splitlines()[-1] if fails else done.stdout.strip()
        pattern = ".*".join(re.escape(part) for part in " ".join(self.output.split()).split("..."))
        pattern = pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*")
        if re.fullmatch(pattern, " ".join(found.split()), re.DOTALL) is None:
            return "other output"
        return None


@pytest.mark.parametrize(
    ("output", "code", "stdout", "stderr", "right"),
    [
        ("", 0, "", "Loading", True),
        ("", 0, "text", "", False),
        ("...", 0, "any\ntext", "", True),
        ("...", 1, "any", "", False),
        ("a ... d", 0, "a b\nc d\n", "", True),
        ("a ... d", 0, "a b c", "", False),
        ("error: a is ..., not b", 2, "", "Loading\nerror: a is 1, not b\n", True),
        ("error: a is ..., not b", 2, "", "error: a is 1, not c\n", False),
        ("error: a", 0, "", "error: a\n", False),
    ],
)
def test_the_comparison_can_tell(output: str, code: int, stdout: str, stderr: str, right: bool) -> None:
    done = subprocess.CompletedProcess("", code, stdout, stderr)
    assert (Shown("", output).explain(done) is None) == right


def shown(path: Path) -> Iterator[Shown]:
    """The commands of the console blocks of a document, in order."""
    for block in re.findall(r"^```console\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
        for entry in block.split("$ ")[1:] if block.startswith("$ ") else []:
            command, _, output = entry.partition("\n")
            yield Shown(command, output.strip())


def cell_commands(path: Path) -> list[str]:
    """The commands in the last column of a document's tables."""
    rows = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    cells = (row.rstrip(" |").rsplit("| ", 1)[-1] for row in rows)
    return [cell.strip("`") for cell in cells if cell.startswith("`")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "mailto:")):
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), f"{name_of(path)} links to {target}"
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{name_of(path)} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_embedded_blocks_are_current(path: Path) -> None:
    assert EMBED["embedded"](path.read_text()) == path.read_text(), "run .venv/bin/python docs/embed.py"


def test_every_command_has_a_page() -> None:
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    pages = {page.stem: page.read_text() for page in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages.keys() == commands
    for name, page in pages.items():
        assert f"<!-- help: {name} -->" in page and f"$ distaff {name}" in page
        assert f"docs/commands/{name}.md" in (ROOT / "README.md").read_text()


def test_the_family_table_is_the_registry() -> None:
    section = (ROOT / "README.md").read_text().split("## Families")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    listed = {(name, arch) for row in rows for name in codes(row[1]) for arch in codes(row[2]) or [""]}
    held = {name: architecture.name for architecture in ARCHITECTURES.values() for name in architecture.model_types}
    known = {(name, held.get(name, "")) for family in FAMILIES for name in family.model_types}
    assert listed == known


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_only_installation_is_shown_without_being_run() -> None:
    for path in DOCUMENTS:
        kinds = set(re.findall(r"^```(\w+)$", path.read_text(), re.MULTILINE))
        assert kinds <= {"console", "python", "text", "mermaid", "sh"}, f"{name_of(path)}: {kinds}"
        assert "sh" not in kinds or name_of(path) in INSTALLS, f"{name_of(path)}: use a console block, which is run"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_shown_can_be_parsed(path: Path) -> None:
    """The quick half of the test below: the flags exist."""
    commands = [entry.command for entry in shown(path)] + cell_commands(path)
    for line in commands:
        for words in split_pipeline(line):
            if words[0] == "distaff":
                parse(words[1:])
            elif words[0] == "scripts/test":
                assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), line


def split_pipeline(line: str) -> list[list[str]]:
    """The words of each command of a shell line, without the variables set before it."""
    words = shlex.split(line.replace("$M", "--model m").replace("|", " | ").replace("&&", " | "))
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        elif parts[-1] or not re.match(r"[A-Z_]+=", word):
            parts[-1].append(word)
    return [part for part in parts if part]


def parse(arguments: list[str]) -> None:
    """Parse a `distaff` command line without running it."""
    import typer

    command: Any = typer.main.get_command(app)
    context = command.make_context("distaff", list(arguments), resilient_parsing=False)
    name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    child.make_context(name, rest, parent=context)


@pytest.fixture
def shell(tmp_path: Path, smollm2: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Runs a line in an empty folder where `distaff` is on the path and SmolLM2 is cached."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "distaff"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from distaff.scripts.main import main; main()" "$@"\n')
    command.chmod(0o755)
    cached = tmp_path / "cache" / "models" / smollm2.parent.name / smollm2.name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(smollm2)
    folder = tmp_path / "here"
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "DISTAFF_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
        "MODEL_FILE": str(smollm2),
        "M": "--model smollm2-135m-instruct",
    }

    def run(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if list(shown(path))], ids=name_of)
def test_commands_shown_do_what_is_shown(
    path: Path, shell: Callable[[str], "subprocess.CompletedProcess[str]"]
) -> None:
    for entry in shown(path):
        done = shell(entry.command)
        problem = entry.explain(done)
        assert problem is None, f"{entry.command}: {problem}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_commands_of_the_concepts_work(shell: Callable[[str], "subprocess.CompletedProcess[str]"]) -> None:
    commands = [line for line in cell_commands(ROOT / "docs" / "concepts.md") if line.startswith("distaff ")]
    assert len(commands) > 8
    for line in commands:
        done = shell(line)
        assert done.returncode == 0 and done.stdout, f"{line}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "count", "told"), [("README.md", 3, "Paris"), ("docs/architecture.md", 1, "True")]
)
def test_python_shown_runs(
    shell: Callable[[str], "subprocess.CompletedProcess[str]"], tmp_path: Path, document: str, count: int, told: str
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == count
    program = tmp_path / "shown.py"
    program.write_text("".join(blocks))
    done = shell(f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}")
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
