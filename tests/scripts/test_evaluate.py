"""`distaff eval` on a tiny model: what it reports, and what it refuses."""

import json
from collections.abc import Callable
from importlib.util import find_spec
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
    assert "greedy tokens alike, of 16" in out
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
        "greedy_divergence",
        "greedy_tokens",
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
        ("--tasks arc_easy --text SHORT --max-kl 1", "asks MODEL alone, and reads no text: leave --text, --max-kl out"),
        ("--tasks arc_easy --window 64", "asks MODEL alone, and reads no text: leave --window out"),
        ("--task-limit 5", "--task-folder and --task-limit are for tasks: give --tasks NAMES"),
        ("--tasks mine --task-folder NONE", "found no folder there, expected one with YAML files of tasks"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, options: str, message: str
) -> None:
    names = {"SHORT": tmp_path / "short", "NONE": tmp_path / "none"}
    names["SHORT"].write_text("abc")
    assert distaff("eval", str(tiny_model), *(str(names.get(word, word)) for word in options.split())) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_tasks_say_what_to_install(distaff: Run, tiny_model: Path, capsys: Capture) -> None:
    assert distaff("eval", str(tiny_model), "--tasks", "arc_easy") == 2
    assert "pip install 'distaff[eval]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="the harness is not installed")
def test_tasks_of_ones_own_are_answered(
    distaff: Run, tiny_model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice, a text and an answer, from YAML files and a file of questions; nothing is fetched."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    questions = [{"q": f"number {index}", "a": ["one", "another one"], "gold": index % 2} for index in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    data = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/questions.jsonl}}}}\ntest_split: test\n"
    )
    bodies = {
        "choose": "output_type: multiple_choice\ndoc_to_text: '{{q}} is'\ndoc_to_choice: a\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n",
        "read": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}, {{a[0]}}'\n"
        "metric_list: [{metric: word_perplexity}]\n",
        "write": "output_type: generate_until\ndoc_to_text: '{{q}} is'\ndoc_to_target: '{{a[0]}}'\n"
        "generation_kwargs: {max_gen_toks: 4, until: ['.']}\nmetric_list: [{metric: exact_match}]\n",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}{body}")
    options = ["--task-folder", str(tmp_path), "--backend", "cpu", "--quantize", "int8", "--json"]
    assert distaff("eval", str(tiny_model), "--tasks", "choose,read,write", *options) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["quantize"] == "int8" and set(report["tasks"]) == set(bodies)
    assert 0 <= report["tasks"]["choose"]["acc"] <= 1 and report["tasks"]["read"]["word_perplexity"] > 1
    assert distaff("eval", str(tiny_model), "--tasks", "none_such", *options) == 2
    assert "the harness has no such task" in capsys.readouterr().err
