"""Stand-ins for AMD's libraries; and with them, where somebody has made them, the compiler."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distaff.backends.aot import CompileJob, compile_report
from distaff.backends.compiler import rocm

needs_tools = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("readelf")), reason="needs cc and readelf")


@needs_tools
def test_stand_ins_define_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plugin that needs a library which is not there loads with its stand-in, and is told that there is no device."""
    gone, folder = tmp_path / "gone", tmp_path / "folder"
    gone.mkdir()
    folder.mkdir()
    (gone / "lib.c").write_text("int amdCount(void) { return 7; } int amdTable[4] = {1, 2, 3, 4};\n")
    (gone / "versions.map").write_text("amd_4.2 { global: amdCount; };\n")
    versions = f"-Wl,--version-script={gone / 'versions.map'}"
    _cc(gone / "lib.c", "-Wl,-soname,libamdtest.so.7", versions, "-o", gone / "libamdtest.so.7")
    (tmp_path / "plugin.c").write_text(
        "int amdCount(void); extern int amdTable[]; int ask(void) { return amdCount() + 0 * amdTable[0]; }\n"
    )
    _cc(tmp_path / "plugin.c", gone / "libamdtest.so.7", "-o", folder / "plugin.so")
    shutil.rmtree(gone)

    run = subprocess.run
    installs: list[list[str]] = []

    def without_pip(command: list[str], **options: object) -> object:
        if "pip" in command:
            return installs.append(command)
        return run(command, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]

    monkeypatch.setattr(rocm.subprocess, "run", without_pip)
    rocm.make_rocm_folder(folder)
    assert installs[0][-2:] == list(rocm.PLUGINS)
    program = (
        f"import ctypes; ctypes.CDLL({str(folder / 'stand-ins' / 'libamdtest.so.7')!r}); "
        f"print(ctypes.CDLL({str(folder / 'plugin.so')!r}).ask())"
    )
    asked = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert asked.stdout == "100\n"
    with pytest.raises(OSError, match="libamdtest"):
        ctypes.CDLL(str(folder / "plugin.so"))


def _cc(*arguments: object) -> None:
    subprocess.run(["cc", "-shared", "-fPIC", *map(str, arguments)], check=True)


@pytest.mark.slow
def test_a_program_for_mi300x() -> None:
    if not (rocm.rocm_folder() / "stand-ins").is_dir():
        pytest.skip("python -m distaff.backends.compiler.rocm has not been run")
    builder = f"{Path(__file__).parent.parent / 'builders.py'}:matmul"
    report = compile_report(CompileJob(builder, {"size": 512}, "mi300x:8"), timeout=300)
    assert report.compiler.startswith("XLA for rocm ")
    assert report.flops == 2 * 512**3 and report.memory.outputs == 2 * 512 * 512
    assert os.environ.get("JAX_PLATFORMS") == "cpu"
