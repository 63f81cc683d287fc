"""`distaff compress distill` on tiny models: it learns, says what it did, goes on where it was stopped, and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distaff.models.compress.sample_text import sample_text

from ..golden.harness import GOLDEN

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
FEW = ["--window", "32", "--tokens", "96"]
SMALL = ["--length", "24", "--rows", "4", "--dtype", "float32", *FEW]


def told(capsys: Capture) -> dict[str, float]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def student(distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture) -> Path:
    """Of two of the tiny model's three layers."""
    made = tmp_path / "student"
    given = ["--pattern", "layers", "--sparsity", "0.34", "--calibration-tokens", "256", *FEW, "--dtype", "float32"]
    assert distaff("compress", "prune", str(tiny_model), str(made), *given) == 0
    capsys.readouterr()
    return made


@pytest.mark.slow
def test_a_pruned_model_recovers_and_says_what_it_learned(
    distaff: Run, tiny_model: Path, student: Path, tmp_path: Path, capsys: Capture
) -> None:
    made, texts = tmp_path / "made", tmp_path / "texts.jsonl"
    paragraphs = [text for text in sample_text("calibration").split("\n\n") if text.strip()]
    forms: list[Callable[[str], dict[str, object]]] = [
        lambda text: {"text": text},
        lambda text: {"response": {"body": {"choices": [{"text": text}]}}},
        lambda text: {"response": {"body": {"choices": [{"message": {"content": text}}]}}},
    ]
    texts.write_text("\n".join(json.dumps(forms[i % 3](text)) for i, text in enumerate(paragraphs)))
    given = ["--train", str(texts), "--steps", "60", "--learning-rate", "0.005", "--measure-every", "30"]
    assert distaff("compress", "distill", str(student), str(tiny_model), str(made), *given, *SMALL, "--json") == 0
    captured = capsys.readouterr()
    assert "step 30 of 60: loss" in captured.err and "held-out KL" in captured.err
    report = json.loads(captured.out.splitlines()[-1])
    assert report["kl_after"] < 0.7 * report["kl_before"] and report["acceptance"] > report["acceptance_before"]
    config = json.loads((made / "config.json").read_text())
    assert config["distaff"]["steps"] == 60 and config["distaff"]["before"]["removed"]
    assert not (tmp_path / "made.training").exists()
    assert distaff("eval", str(made), "--against", str(tiny_model), *FEW, "--json") == 0
    again = told(capsys)
    assert again["mean_kl"] == pytest.approx(report["mean_kl"], rel=1e-4)
    assert distaff("generate", "-m", str(made), "-p", "abc", "--max-tokens", "4", "--temperature", "0") == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data=2", "tensor=2", "data=2,tensor=2"])
def test_a_layout_changes_nothing(
    distaff: Run, tiny_model: Path, student: Path, tmp_path: Path, capsys: Capture, layout: str
) -> None:
    reports = []
    for name, given in (("one", []), ("several", ["--layout", layout])):
        options = ["--steps", "6", "--learning-rate", "0.01", *SMALL, *given, "--json"]
        assert distaff("compress", "distill", str(student), str(tiny_model), str(tmp_path / name), *options) == 0
        reports.append(told(capsys))
    for key in ("kl_after", "acceptance", "mean_kl"):
        assert reports[1][key] == pytest.approx(reports[0][key], rel=1e-3)


@pytest.mark.slow
def test_a_training_that_is_killed_ends_as_if_it_had_not_been(
    distaff: Run, tiny_model: Path, student: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = [
        "--steps",
        "30",
        "--save-every",
        "5",
        "--measure-every",
        "5",
        "--learning-rate",
        "0.01",
        *SMALL,
        "--json",
    ]
    names = [str(student), str(tiny_model)]
    assert distaff("compress", "distill", *names, str(tmp_path / "whole"), *options) == 0
    whole = told(capsys)
    made = tmp_path / "killed"
    program = "from distaff.scripts.main import main; main()"
    command = [sys.executable, "-c", program, "compress", "distill", *names, str(made), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("step 10 of 30"):
                running.send_signal(signal.SIGKILL)
                break
        running.wait(60)
    assert not made.exists() and (tmp_path / "killed.training").is_dir()
    assert distaff("compress", "distill", *names, str(made), *options, "--seed", "1") == 2
    assert "holds the state of a training with seed 0, this one has 1" in capsys.readouterr().err

    assert distaff("compress", "distill", *names, str(made), *options) == 0
    captured = capsys.readouterr()
    assert "step 5 of 30" not in captured.err
    rest = json.loads(captured.out.splitlines()[-1])
    for key in ("kl_after", "acceptance", "greedy_agreement", "mean_kl"):
        assert rest[key] == whole[key]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--train SHORT", "train is '3 tokens', expected a text of at least 4 rows of 24 tokens"),
        ("--train EMPTY", "expected a file with text in it"),
        ("--train BAD.jsonl", 'line 2 has no text, expected {"text": ...} or an answer of distaff batch'),
        ("--text SHORT", "text is '3 tokens', expected at least 64 tokens"),
        ("--temperature 0", "temperature is 0.0, expected a number above 0"),
        ("--learning-rate -1", "learning_rate is -1.0, expected a number above 0"),
        ("--warmup 1", "warmup is 1.0, expected a share of the steps"),
        ("--accumulate 3", "accumulate is 3, expected a divisor of the 4 rows"),
        ("--length 129", "length is 129, expected at most 128"),
        ("--layer-map 0:1", "--layer-map pairs hidden states, which count nothing here; give --hidden-weight too"),
        ("--layer-map 0-1", "layer_map is '0-1', expected pairs of layers such as 0:1,1:3"),
        ("--hidden-weight 1 --layer-map 0:3", "layer_map is '0:3', expected layers below 3"),
        ("--layout stage=2", "layout 'stage=2': a training is split over data and tensor, not over stage"),
        ("--layout data=8", "layout is 'data=8', expected replicas that divide the 4 rows computed at once"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, arguments: str, message: str
) -> None:
    (tmp_path / "SHORT").write_text("abc")
    (tmp_path / "EMPTY").write_text(" \n")
    (tmp_path / "BAD.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n')
    words = [str(tmp_path / word) if word.split(".")[0].isupper() else word for word in arguments.split()]
    small = SMALL[2:] if "--length" in words else SMALL
    made = tmp_path / "made"
    assert distaff("compress", "distill", str(tiny_model), str(tiny_model), str(made), *small, *words) == 2
    assert message in capsys.readouterr().err and not made.exists()


def test_a_model_of_another_vocabulary_teaches_nothing(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(GOLDEN / "mistral", other, ignore=shutil.ignore_patterns("expected.npz"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, other / name)
    config = json.loads((other / "config.json").read_text())
    config["vocab_size"] += 1
    (other / "config.json").write_text(json.dumps(config))
    made = tmp_path / "made"
    assert distaff("compress", "distill", str(other), str(tiny_model), str(made), *SMALL) == 2
    assert "expected one tokenizer" in capsys.readouterr().err and not made.exists()
