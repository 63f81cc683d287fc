"""How the package is built: setuptools, after Python was made of the .proto files.

pip calls the functions of this module (PEP 517; pyproject.toml names it). `python .build/build_backend.py` makes the
Python alone, in place, where grpcio-tools is installed.
"""

import re
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

PROTOS = Path(__file__).resolve().parent.parent / "serving" / "rpc" / "protos"

# protoc knows only absolute imports, of packages that lie where its paths begin; ours lie inside distaff.serving.
_ABSOLUTE = re.compile(r"^(?:from [\w.]+ )?import (\w+_pb2)\b", re.MULTILINE)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    compile_protos()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    compile_protos()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    compile_protos()
    return build_meta.build_sdist(sdist_directory, config_settings)


def compile_protos() -> None:
    """Makes messages, their types and stubs of every .proto file, beside it."""
    from grpc_tools import protoc

    sources = sorted(PROTOS.rglob("*.proto"))
    arguments = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    arguments += [f"--{kind}={PROTOS}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", *arguments, *map(str, sources)]) != 0:
        sys.exit("error: the .proto files do not compile; protoc's messages are above")
    for source in sources:
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            made = source.with_name(source.stem + suffix)
            made.write_text(_ABSOLUTE.sub(partial(_relative, source.parent), made.read_text()))


def _relative(folder: Path, found: re.Match[str]) -> str:
    """The import of a file that lies in the same folder; others, such as google.protobuf's, stay as they are."""
    here = (folder / f"{found[1].removesuffix('_pb2')}.proto").exists()
    return f"from . import {found[1]}" if here and not found[0].startswith("from google.") else found[0]


if __name__ == "__main__":
    compile_protos()
