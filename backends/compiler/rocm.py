"""AMD's compiler without AMD's libraries and without a GPU, for programs that are compiled and never run.

JAX's plugin for ROCm holds the whole compiler, but it loads only beside a dozen libraries of ROCm that no package index
has, and only where it finds a GPU. Compiling calls none of those libraries, so stand-ins will do: this makes a folder
with the plugin and with libraries of the same names, in which every function returns "no device".

    python -m distaff.backends.compiler.rocm [FOLDER]

makes the folder (134 MB to fetch; a C compiler and readelf are needed). DISTAFF_ROCM_COMPILER names another place.
"""

import ctypes
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jax
from jax._src import hardware_utils

from .errors import CompilerNotFoundError

PLUGINS = ("jax-rocm7-plugin==0.12.0", "jax-rocm7-pjrt==0.12.0")
_MODULE = "xla_rocm7"
_STAND_INS = "stand-ins"
_NO_DEVICE = 100  # hipErrorNoDevice
_PROVIDED = re.compile(r"(librt|libdl|libm|libpthread|libstdc\+\+|libc|libgcc_s|ld-linux)[-.]")
_FROM_ELSEWHERE = re.compile(r"_?Py|.*@(GLIBC|GLIBCXX|CXXABI|GCC)")


def rocm_folder() -> Path:
    """Where the plugin and its stand-ins lie, or would."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DISTAFF_ROCM_COMPILER") or cache_home / "distaff" / "rocm-compiler")


def rocm_version() -> str:
    """Version of the plugin.

    Raises:
        CompilerNotFoundError: the folder has not been made.
    """
    found = sorted(rocm_folder().glob("jax_rocm*_plugin-*.dist-info"))
    if not found or not (rocm_folder() / _STAND_INS).is_dir():
        raise CompilerNotFoundError(
            f"{rocm_folder()} holds no compiler for ROCm. 'python -m distaff.backends.compiler.rocm' makes it: JAX's "
            "plugin with stand-ins for AMD's libraries, which no package index has and without which it does not load"
        )
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2]


@cache
def load_rocm() -> None:
    """Makes JAX know the plugin, in this process.

    Raises:
        CompilerNotFoundError: the folder has not been made, or does not load.
    """
    rocm_version()
    folder = rocm_folder()
    try:
        for library in sorted((folder / _STAND_INS).glob("*.so*")):
            ctypes.CDLL(str(library))  # a library that is loaded already is found by its name
        jax.local_devices(backend="cpu")  # JAX has looked for devices, and will not come upon this plugin
        sys.path.append(str(folder))
        importlib.invalidate_caches()
        before = hardware_utils.num_available_amd_gpus
        hardware_utils.num_available_amd_gpus = lambda stop_at=None: 1
        try:
            importlib.import_module(f"jax_plugins.{_MODULE}").initialize()
        finally:
            hardware_utils.num_available_amd_gpus = before
    except (ImportError, OSError, RuntimeError) as error:
        raise CompilerNotFoundError(f"the compiler for ROCm in {folder} does not load ({error})") from error


def make_rocm_folder(folder: Path) -> None:
    """Fetches the plugin and builds the stand-ins.

    Raises:
        subprocess.CalledProcessError: pip, readelf or the C compiler failed; they say why on stderr.
    """
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(folder), *PLUGINS]
    subprocess.run(install, check=True)
    libraries: set[str] = set()
    symbols: dict[str, str] = {}
    for binary in folder.rglob("*.so"):
        needed = re.findall(r"NEEDED.*\[(.*?)\]", _readelf("-d", binary))
        libraries |= {name for name in needed if not _PROVIDED.match(name)}
        symbols |= _missing(_readelf("--dyn-syms", binary))
    stand_ins = folder / _STAND_INS
    stand_ins.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        source, versions = Path(work, "stand_ins.c"), Path(work, "versions.map")
        source.write_text(_source(symbols))
        versions.write_text(_version_script(symbols))
        for library in sorted(libraries):
            named = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}", "-o", str(stand_ins / library)]
            subprocess.run(["cc", "-w", "-shared", "-fPIC", "-fno-builtin", str(source), *named], check=True)


def _readelf(option: str, binary: Path) -> str:
    done = subprocess.run(["readelf", "-W", option, str(binary)], capture_output=True, text=True, check=True)
    return done.stdout


def _missing(symbol_table: str) -> dict[str, str]:
    """Symbols that a library expects of others: "name@version" -> FUNC, OBJECT or NOTYPE."""
    missing: dict[str, str] = {}
    for line in symbol_table.splitlines():
        fields = line.split()  # number, value, size, type, binding, visibility, section, name
        if len(fields) >= 8 and fields[4] == "GLOBAL" and fields[6] == "UND" and not _FROM_ELSEWHERE.match(fields[7]):
            missing[fields[7]] = fields[3]
    return missing


def _source(symbols: Mapping[str, str]) -> str:
    """C that defines every symbol; C++ functions return nothing that counts."""
    lines = dict[str, None]()
    for symbol, kind in symbols.items():
        name = symbol.partition("@")[0]
        if kind == "OBJECT":
            lines[f"char {name}[4096];"] = None
        else:
            lines[f"int {name}(void) {{ return {0 if name.startswith('_Z') else _NO_DEVICE}; }}"] = None
    return "\n".join([*lines, ""])


def _version_script(symbols: Mapping[str, str]) -> str:
    """The linker's list of which symbol belongs to which version."""
    versions: dict[str, list[str]] = {}
    for symbol in symbols:
        name, _, version = symbol.partition("@")
        if version:
            versions.setdefault(version.lstrip("@"), []).append(name)
    return "".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items())


if __name__ == "__main__":
    make_rocm_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else rocm_folder())
