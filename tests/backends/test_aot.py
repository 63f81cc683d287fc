"""Compiling for chips that are not there, in this process and in others."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.aot import CompileJob, CompileReport, compile_ahead, compile_report, compile_reports
from distaff.backends.compile_process import CompileProcess
from distaff.backends.compiler.errors import (
    CompileError,
    CompilerAbortedError,
    CompileTimeoutError,
    KernelRejectedError,
    OutOfMemoryError,
    OutOfVmemError,
    UnknownTopologyError,
)
from distaff.backends.errors import UsageError

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

BUILDERS = Path(__file__).with_name("builders.py")


def _job(name: str, topology: str = "v6e:2x2", **arguments: Any) -> CompileJob:
    return CompileJob(builder=f"{BUILDERS}:{name}", topology=topology, arguments=arguments)


def test_a_matmul_compiles_for_v6e() -> None:
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    program = compile_ahead(lambda a, b: a @ b, (x, x), "v6e:2x2")
    assert "convolution" in (program.as_text() or "")  # what the TPU compiler makes of a matmul
    assert program.memory_analysis().argument_size_in_bytes == 2 * 256 * 256 * 2


def test_options_reach_the_compiler() -> None:
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    known = {"xla_tpu_scoped_vmem_limit_kib": 32768}
    compile_ahead(lambda a: a @ a, (x,), "v6e:2x2", compiler_options=known)
    with pytest.raises(CompileError, match="xla_tpu_no_such_option"):
        compile_ahead(lambda a: a @ a, (x,), "v6e:2x2", compiler_options={"xla_tpu_no_such_option": 1})


def test_one_process_compiles_for_every_kind_of_chip() -> None:
    topologies = {"v5e:2x4": "v5e", "v6e:4x4": "v6e", "v5p:2x2x4": "v5p", "v7x:2x2x1": "tpu7x", "v4:2x2x2": "v4"}
    if find_spec("jax_cuda12_plugin"):
        topologies["h100:8"] = "h100"
    jobs = [_job("matmul", topology=topology, size=1024) for topology in topologies]
    for job, report in compile_reports(jobs, timeout=120):
        assert isinstance(report, CompileReport), report
        assert report.topology.split(":")[0] == topologies[job.topology]
        assert report.flops == 2 * 1024**3 and report.hbm_bytes == 3 * 1024 * 1024 * 2
        assert report.memory.arguments == 2 * 1024 * 1024 * 2
        assert (report.estimated_cycles is None) == job.topology.startswith("h100")


def test_one_process_compiles_many_jobs_and_survives_those_that_fail() -> None:
    jobs = [
        _job("matmul", size=256),
        _job("aborting", topology="v5e:2x4"),
        _job("kernel", topology="v7x:2x2x1", rows=256),
        _job("kernel", rows=2**18),
        _job("matmul", topology="v5e:2x4", size=2**16),
        _job("rejected_kernel"),
        _job("failing"),
    ]
    matmul, aborted, kernel, vmem, hbm, rejected, bug = (outcome for _, outcome in compile_reports(jobs, timeout=120))

    assert isinstance(matmul, CompileReport)
    assert matmul.memory.arguments == 2 * 256 * 256 * 2 and matmul.compiler.startswith("libtpu ")

    assert isinstance(aborted, CompilerAbortedError)
    assert "v5e:2x4" in str(aborted) and "SIGABRT" in str(aborted)
    assert "check failed: unsupported layout" in str(aborted)

    assert isinstance(kernel, CompileReport)
    assert kernel.kernels[0].bundles > 0 and kernel.topology == "tpu7x:2x2x1"

    assert isinstance(vmem, OutOfVmemError) and vmem.kind == "vmem"
    assert isinstance(hbm, OutOfMemoryError) and hbm.kind == "hbm"
    assert isinstance(rejected, KernelRejectedError), rejected
    assert isinstance(bug, CompileError) and "ZeroDivisionError: a bug in the builder" in str(bug)


def test_a_compile_that_takes_too_long_is_ended() -> None:
    with CompileProcess() as process:
        with pytest.raises(CompileTimeoutError, match=r"v6e:2x2: .*sleeping was not compiled within 3 s"):
            process.run(_job("sleeping", seconds=600), timeout=3)
        assert process.run(_job("matmul", size=128), timeout=120).memory.outputs == 128 * 128 * 2


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even by a process that was ended while it compiled."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with CompileProcess() as process:
        process.run(_job("kernel", rows=256), timeout=120)
        assert list(tmp_path.glob("distaff-compile-*/distaff-libtpu-*/*"))
        with pytest.raises(CompileTimeoutError):
            process.run(_job("sleeping", seconds=600), timeout=0.1)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_compile_at_once() -> None:
    with CompileProcess() as one:
        assert one.run(_job("matmul", size=128), timeout=120).num_devices == 1
        # `one` lives on, libtpu loaded
        assert compile_report(_job("matmul", topology="v5p:2x2x4", size=128), timeout=120).num_devices == 1
        assert one.run(_job("matmul", size=256), timeout=120).num_devices == 1


def test_errors_of_use_come_back_as_what_they_are() -> None:
    with CompileProcess() as process:
        with pytest.raises(UnknownTopologyError, match="v99:2x2"):
            process.run(_job("matmul", topology="v99:2x2", size=128))
        with pytest.raises(UsageError, match="builder 'no.such.module:name' cannot be imported"):
            process.run(CompileJob("no.such.module:name", {}, "v6e:2x2"))


def test_a_missing_compiler_says_what_to_install() -> None:
    program = f"""
import importlib.metadata as metadata
import sys
real = metadata.version
def version(name):
    if name in ("libtpu", "jax-cuda12-plugin"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
import os
os.environ["DISTAFF_ROCM_COMPILER"] = "/nowhere"
sys.modules["libtpu"] = None
sys.path.insert(0, {str(BUILDERS.parent)!r})
import builders
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.static_cost import analyze
case = builders.matmul(8)
for topology in ("v6e:2x2", "h100:1", "mi300x:8"):
    try:
        analyze(case.function, case.abstract_args, topology)
    except CompilerNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tpu, cuda, rocm = done.stdout.splitlines()
    assert "pip install 'distaff[tpu]'" in tpu
    assert "pip install 'distaff[aot-cuda]'" in cuda
    assert "stand-ins for AMD's libraries" in rocm
