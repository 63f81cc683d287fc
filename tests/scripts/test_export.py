"""`distaff export` with a tiny model, as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distaff.backends.compiler.report import CompileReport

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.mark.slow
def test_a_decode_step_for_a_tpu(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    arguments = ("export", "-m", str(GOLDEN / "llama31"), "--topology", "v6e:2x2", "--out", str(tmp_path / "out"))
    assert distaff(*arguments, "--phase", "decode", "--batch", "4", "--context", "64", "--backend", "reference") == 0
    out, err = capsys.readouterr()
    assert "decode on one device of v6e:2x2 (libtpu" in out and "to and from HBM" in out
    assert err == "Compiling decode for v6e:2x2\n"

    assert "stablehlo.dot_general" in (tmp_path / "out" / "decode.stablehlo.mlir").read_text()
    assert "ENTRY" in (tmp_path / "out" / "decode.hlo.txt").read_text()
    fusions = (tmp_path / "out" / "decode.fusions.txt").read_text()
    # The layers are a loop: what is in one runs as often as there are layers.
    layers = json.loads((GOLDEN / "llama31" / "config.json").read_text())["num_hidden_layers"]
    assert f"fusion x{layers}" in fusions and "/dot_general" in fusions
    report = CompileReport.from_dict(json.loads((tmp_path / "out" / "decode.json").read_text()))
    assert report.flops > 0 and report.memory.aliased > 0 and report.topology == "v6e:2x2"


@pytest.mark.slow
def test_a_prefill_step_for_a_gpu(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("jax_cuda12_plugin", reason="the compiler for NVIDIA GPUs is in the extra `aot-cuda`")
    arguments = ("export", "-m", str(GOLDEN / "llama31"), "--topology", "h100:1", "--out", str(tmp_path))
    assert distaff(*arguments, "--phase", "prefill", "--tokens", "32", "--backend", "reference", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["steps"]) == ["prefill"]
    assert printed["files"] == [
        str(tmp_path / f"prefill.{kind}") for kind in ("fusions.txt", "hlo.txt", "json", "stablehlo.mlir")
    ]
    assert printed["steps"]["prefill"]["flops"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--topology", "v99:2x2"), 2, "topology 'v99:2x2' is not known: name a topology such as"),
        (("--topology", "v6e:2x2", "--batch", "0"), 2, "--batch is 0, expected a whole number from 1"),
        (("--topology", "v6e:2x2", "--context", "16"), 2, "--context 16 is shorter than the 512 --tokens"),
        (("--topology", "v6e:2x2", "--backend", "gpu"), 2, "--backend gpu: the kernels for v6e:2x2 are those of auto"),
        (("--topology", "v6e:2x2", "-m", "no-such-model", "--offline"), 2, "no-such-model"),
        (("--topology", "mi300x:1", "--backend", "reference"), 1, "holds no compiler for ROCm"),
        (("--topology", "v6e:2x2", "--timeout", "0.1"), 1, "was not compiled within 0.1 s"),
        (("--topology", "v6e:2x2", "--out", "/dev/null/x"), 2, "--out /dev/null/x: cannot be made"),
    ],
)
def test_what_is_wrong_is_said(
    distaff: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTAFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DISTAFF_ROCM_COMPILER", str(tmp_path / "rocm"))
    assert distaff("export", "-m", str(GOLDEN / "llama31"), *arguments) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("error: ")
