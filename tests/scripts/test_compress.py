"""`distaff compress` on a tiny model: what is written runs, limits are kept."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
FEW = "--window 32 --tokens 64"


def told(capsys: Capture) -> dict[str, float]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_rounded_checkpoint_runs_and_says_what_it_is(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = tmp_path / "int8"
    options = f"--scheme int8 --method smoothquant --dtype float32 {FEW} --calibration-tokens 256 --json".split()
    assert distaff("compress", "quantize", str(tiny_model), str(made), *options) == 0
    report = told(capsys)
    assert 0 < report["mean_kl"] < 0.1 and report["bytes"] < report["bytes_before"]
    config = json.loads((made / "config.json").read_text())
    assert config["distaff"]["method"] == "smoothquant" and config["distaff"]["mean_kl"] == report["mean_kl"]
    assert distaff("eval", str(made), "--against", str(tiny_model), *FEW.split(), "--json") == 0
    again = told(capsys)
    assert again["mean_kl"] == pytest.approx(report["mean_kl"], rel=1e-5)
    assert distaff("eval", str(made), "--quantize", "int8", *FEW.split()) == 2
    assert "is quantised already (compressed-tensors)" in capsys.readouterr().err
    assert distaff("compress", "quantize", str(made), str(tmp_path / "twice"), *FEW.split()) == 2
    assert "is quantised already (compressed-tensors)" in capsys.readouterr().err
    assert distaff("generate", "-m", str(made), "-p", "abc", "--max-tokens", "4", "--temperature", "0") == 0
    assert distaff("generate", "-m", str(made), "-p", "abc", "--quantize", "int8") == 2
    assert "is quantised already (compressed-tensors)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_turned_checkpoint_runs_and_its_head_is_rounded(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, method: str
) -> None:
    made = tmp_path / "turned"
    options = f"--scheme int8 --method {method} --rotate --head --dtype float32 {FEW} --json".split()
    assert distaff("compress", "quantize", str(tiny_model), str(made), *options) == 0
    report = told(capsys)
    assert 0 < report["mean_kl"] < 0.1 and report["rotate"] and report["head"]
    stored = load_file(made / "model.safetensors")
    assert stored["lm_head.weight"].dtype == np.int8 and stored["model.embed_tokens.weight"].dtype == np.float32
    assert (stored["model.norm.weight"] == 1).all()
    config = json.loads((made / "config.json").read_text())
    assert config["distaff"]["rotate"] and "lm_head" not in config["quantization_config"]["ignore"]
    assert distaff("generate", "-m", str(made), "-p", "abc", "--max-tokens", "4", "--temperature", "0") == 0


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    """Killed once a layer is done, it does the others, and the files are those of a run that was left alone."""
    given = f"--scheme int8-weight --method gptq {FEW} --calibration-tokens 256".split()
    whole, made, partial = tmp_path / "whole", tmp_path / "made", tmp_path / "made.partial"
    assert distaff("compress", "quantize", str(tiny_model), str(whole), *given) == 0
    arguments = ["compress", "quantize", str(tiny_model), str(made), *given]
    command = [sys.executable, "-c", "from distaff.scripts.main import main; main()", *arguments]
    with subprocess.Popen(command) as process:
        while not (partial / "layer-0000.npz").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not made.exists()
    done = (partial / "layer-0000.npz").stat().st_mtime_ns
    other = [word if word != "gptq" else "awq" for word in arguments]
    assert distaff(*other) == 2
    assert "layers of a run with another method are there" in capsys.readouterr().err
    assert (partial / "layer-0000.npz").stat().st_mtime_ns == done
    assert distaff(*arguments) == 0
    assert not partial.exists()
    assert (made / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_limits_are_kept(distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    made = tmp_path / "fp8"
    given = f"--scheme fp8 {FEW} --max-kl 1e-9".split()
    assert distaff("compress", "quantize", str(tiny_model), str(made), *given) == 1
    assert "allowed are 1e-09" in capsys.readouterr().err and not made.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compress quantize MODEL DST --scheme int3", "scheme is 'int3', expected one of int8"),
        ("compress quantize MODEL DST --scheme int4:64", "expected groups that divide the 32 inputs"),
        ("compress quantize MODEL DST --method gptq --scheme fp8", "gptq is for whole numbers"),
        ("compress quantize MODEL DST --method awq --scheme int4:4 --calibration EMPTY", "expected a file with text"),
        (
            "compress quantize MODEL DST --method gptq --scheme int8 --window 32 --calibration SHORT",
            "a text of at least 256",
        ),
        ("compress quantize MODEL DST --calibration SHORT", "method rtn reads no text: leave calibration out"),
        ("compress quantize MODEL DST --calibration-tokens 300", "method rtn reads no text: leave calibration out"),
        ("compress quantize MODEL DST --head --scheme int4:4", "a scale for each output, not int4:4"),
        ("compress quantize MODEL DST --window 129", "window is 129, expected at most 128"),
        ("compress quantize MODEL DST --window 32 --text SHORT", "text is '3 tokens', expected at least 64 tokens"),
        ("compress quantize MODEL DST --calibration NONE --method gptq", "--calibration"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, arguments: str, message: str
) -> None:
    names = {"MODEL": tiny_model, "DST": tmp_path / "out", "EMPTY": tmp_path / "empty", "SHORT": tmp_path / "short"}
    names["NONE"] = tmp_path / "none"
    names["EMPTY"].write_text(" \n")
    names["SHORT"].write_text("abc")
    assert distaff(*(str(names.get(word, word)) for word in arguments.split())) == 2
    assert message in capsys.readouterr().err and not names["DST"].exists()
