"""`distaff compress prune` on tiny models: what is written runs and says what it is, limits are kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ..golden.harness import GOLDEN

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
FEW = ["--window", "32", "--tokens", "64"]


def told(capsys: Capture) -> dict[str, float]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("--pattern layers --sparsity 0.34", "num_hidden_layers", 2),
        ("--pattern channels --sparsity 0.5 --method sparsegpt", "intermediate_size", 22),
        ("--pattern heads --sparsity 0.5", "num_key_value_heads", 1),
        ("--pattern unstructured --sparsity 0.5 --method sparsegpt", "num_hidden_layers", 3),
        ("--pattern 2:4 --method magnitude", "num_hidden_layers", 3),
    ],
)
def test_a_pruned_checkpoint_runs_and_says_what_it_is(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, given: str, field: str, value: int
) -> None:
    made = tmp_path / "made"
    options = [*given.split(), "--dtype", "float32", *FEW, "--json"]
    if "magnitude" not in given:
        options += ["--calibration-tokens", "256"]
    assert distaff("compress", "prune", str(tiny_model), str(made), *options) == 0
    report = told(capsys)
    config = json.loads((made / "config.json").read_text())
    assert config[field] == value
    assert config["distaff"]["pattern"] == given.split()[1] and config["distaff"]["mean_kl"] == report["mean_kl"] > 0
    smaller = field != "num_hidden_layers" or value == 2
    assert (report["parameters"] < report["parameters_before"]) == smaller
    if not smaller:
        assert config["distaff"]["zeros"] == pytest.approx(0.5, abs=0.01)
    assert distaff("eval", str(made), "--against", str(tiny_model), *FEW, "--json") == 0
    assert told(capsys)["mean_kl"] == pytest.approx(report["mean_kl"], rel=1e-4)
    assert distaff("generate", "-m", str(made), "-p", "abc", "--max-tokens", "4", "--temperature", "0") == 0


@pytest.mark.slow
def test_limits_are_kept(distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    made = tmp_path / "made"
    given = ["--pattern", "unstructured", "--sparsity", "0.5", "--method", "magnitude", *FEW, "--max-kl", "1e-9"]
    assert distaff("compress", "prune", str(tiny_model), str(made), *given) == 1
    assert "allowed are 1e-09" in capsys.readouterr().err and not made.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pattern 3:4", "pattern is '3:4', expected one of unstructured, 2:4"),
        ("", "sparsity is None, expected the share of weights to remove, between 0 and 1"),
        ("--sparsity 1.5", "sparsity is 1.5, expected the share of weights to remove, between 0 and 1"),
        ("--sparsity 0", "sparsity is 0.0, expected the share"),
        ("--pattern 2:4 --sparsity 0.7", "sparsity is 0.7, expected none with pattern 2:4, which leaves 0.5"),
        ("--sparsity 0.5 --method oracle", "method is 'oracle', expected one of magnitude, wanda, sparsegpt"),
        ("--pattern layers --sparsity 0.3 --method wanda", "method is 'wanda', expected none: layers are chosen"),
        ("--pattern layers --sparsity 0.1", "expected a share of the 3 layers that leaves some, not all"),
        ("--pattern heads --sparsity 0.9", "expected a share of the 2 key and value heads that leaves some"),
        ("--sparsity 0.5 --calibration SHORT", "calibration is '3 tokens', expected a text of at least 256 tokens"),
        ("--sparsity 0.5 --calibration EMPTY", "expected a file with text in it"),
        ("--sparsity 0.5 --method magnitude --calibration SHORT", "method magnitude reads no text"),
        ("--sparsity 0.5 --window 129", "window is 129, expected at most 128"),
        ("--sparsity 0.5 --text SHORT", "text is '3 tokens', expected at least 64 tokens"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, arguments: str, message: str
) -> None:
    (tmp_path / "SHORT").write_text("abc")
    (tmp_path / "EMPTY").write_text(" \n")
    words = [str(tmp_path / word) if word.isupper() else word for word in arguments.split()]
    window = [] if "--window" in words else ["--window", "32"]
    made = tmp_path / "made"
    assert distaff("compress", "prune", str(tiny_model), str(made), *words, *window) == 2
    assert message in capsys.readouterr().err and not made.exists()


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("mixtral", "--pattern channels --sparsity 0.5", "family mixtral has experts, whose channels are not pruned"),
        ("mixtral", "--sparsity 0.5", "method wanda: family mixtral has experts, whose inputs are not observed"),
        ("olmo2", "--pattern heads --sparsity 0.5", "family olmo2 normalises queries over all heads"),
        ("opt", "--pattern heads --sparsity 0.5", "family opt: its configuration has no words for the model"),
        (
            "gemma3",
            "--pattern 4:8 --method magnitude",
            "inputs in groups of 8: segments.0.layers.0.attention.k.weight has 30",
        ),
    ],
)
def test_what_a_family_does_not_allow_is_refused_by_name(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, case: str, arguments: str, message: str
) -> None:
    folder, made = tmp_path / case, tmp_path / "made"
    shutil.copytree(GOLDEN / case, folder, ignore=shutil.ignore_patterns("expected.npz"))
    assert distaff("compress", "prune", str(folder), str(made), *arguments.split(), "--window", "32") == 2
    assert message in capsys.readouterr().err and not made.exists()
