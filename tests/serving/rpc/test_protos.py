"""The .proto files: in the style that buf asks for, and the same for clients that were made of an earlier state.

distaff_v1.binpb is that state. After a change that breaks nobody: buf build serving/rpc/protos --path
serving/rpc/protos/distaff -o tests/serving/rpc/distaff_v1.binpb
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parents[3]
PROTOS = ROOT / "serving" / "rpc" / "protos"
BASELINE = Path(__file__).with_name("distaff_v1.binpb")


def buf(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs the buf of this environment."""
    program = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("buf is not installed: pip install '.[dev]'")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False)


def breaking(protos: Path) -> "subprocess.CompletedProcess[str]":
    return buf("breaking", protos, "--against", BASELINE)


def test_the_protocol_is_in_style_and_breaks_no_client() -> None:
    for done in (buf("lint", PROTOS), breaking(PROTOS)):
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_earlier_state_has_every_file() -> None:
    """buf takes a file that is not in it for a new one, in which anything may change."""
    kept = {file.name for file in FileDescriptorSet.FromString(BASELINE.read_bytes()).file}
    assert kept >= {str(proto.relative_to(PROTOS)) for proto in (PROTOS / "distaff").rglob("*.proto")}


def test_another_number_for_a_field_would_be_noticed(tmp_path: Path) -> None:
    shutil.copytree(PROTOS, tmp_path / "protos")
    path = tmp_path / "protos" / "distaff" / "v1" / "generation.proto"
    text = path.read_text()
    assert "int32 cached_prompt_tokens = 3;" in text
    path.write_text(text.replace("int32 cached_prompt_tokens = 3;", "int32 cached_prompt_tokens = 9;"))
    done = breaking(tmp_path / "protos")
    assert done.returncode != 0 and "cached_prompt_tokens" in done.stdout


def test_the_build_finds_what_protoc_made() -> None:
    """Every .proto file has its messages and its service beside it, importable where they lie."""
    for proto in PROTOS.rglob("*.proto"):
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            made = proto.with_name(proto.stem + suffix)
            assert made.is_file(), f"{proto} is newer: run python .build/build_backend.py"
    from distaff.serving.rpc.protos.distaff.v1 import generation_pb2, inference_pb2

    request = inference_pb2.GenerateBatchRequest(items=[{"key": "a", "request": {"text": "hello"}}])
    assert isinstance(request.items[0].request, generation_pb2.GenerateRequest)
