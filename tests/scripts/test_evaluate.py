"""`distaff eval` on a tiny model: what it reports, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
FEW = "--window 32 --tokens 64"


@pytest.mark.slow
def test_a_rounded_model_is_compared_with_itself(distaff: Run, tiny_model: Path, capsys: Capture) -> None:
    options = ["eval", str(tiny_model), "--quantize", "int8", "--backend", "cpu", *FEW.split()]
    assert distaff(*options, "--max-ppl-increase", "0.5") == 0
    out = capsys.readouterr().out
    assert "mean KL, nats" in out and "same most likely token" in out
    assert distaff(*options, "--max-kl", "1e-9", "--json") == 1
    shown = capsys.readouterr()
    report = json.loads(shown.out.splitlines()[-1])
    assert list(report) == [
        "model",
        "reference",
        "dtype",
        "quantize",
        "kv_dtype",
        "backend",
        "window",
        "tokens",
        "perplexity",
        "reference_perplexity",
        "mean_kl",
        "p99_kl",
        "max_kl",
        "top1_agreement",
    ]
    assert report["backend"] == "cpu" and report["reference"] == str(tiny_model)
    assert "allowed are 1e-09" in shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-kl 1", "need something to compare with: give --against REF"),
        ("--window 32 --text SHORT", "text is '3 tokens', expected at least 64 tokens"),
        ("--window 129", "window is 129, expected at most 128, the model's own context"),
        ("--kv-dtype int3", "kv_dtype is 'int3', expected one of"),
        ("--quantize int3", "quantize is 'int3', expected one of"),
        ("--text NONE", "--text"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, options: str, message: str
) -> None:
    names = {"SHORT": tmp_path / "short", "NONE": tmp_path / "none"}
    names["SHORT"].write_text("abc")
    assert distaff("eval", str(tiny_model), *(str(names.get(word, word)) for word in options.split())) == 2
    assert message in capsys.readouterr().err
