"""`distaff sweep`: planned, explained, compared, written out and shown."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from distaff.backends.compiler.report import CompileReport, MemoryReport
from distaff.scripts.sweep_request import parse_time, request_of
from distaff.scripts.sweep_tables import draw_front
from distaff.scripts.sweep_verify import BUILDERS
from distaff.sharding.parsing import parse_layout
from distaff.sharding.presets import preset
from distaff.sharding.sweep.compile_cache import CompileCache
from distaff.sharding.sweep.models import model_config
from distaff.sharding.sweep.store import load
from distaff.sharding.sweep.verify import checks_of

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]

TINY = "llama:layers=2,embed=256,mlp=512,heads=4,kv_heads=2,vocab=512"
PLAN = ("sweep", "plan", "-m", TINY, "--hw", "v5e:2x2", "--batch", "1:8", "--isl", "128", "--osl", "32")


@pytest.fixture
def planned(distaff: Run, capsys: Capture, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    assert distaff(*PLAN, "--out", str(tmp_path / "run"), "--json") == 0
    return tmp_path / "run", json.loads(capsys.readouterr().out)


def test_a_plan_is_explained_compared_and_written_out(
    planned: tuple[Path, dict[str, Any]], distaff: Run, capsys: Capture, tmp_path: Path
) -> None:
    folder, found = planned
    first, second = found["rows"][:2]
    assert found["summary"]["candidates"] > 20 and first["evidence"] == "analytic"
    assert distaff("sweep", "explain", str(folder), first["id"]) == 0
    assert "twice the memory bandwidth" in capsys.readouterr().out
    assert distaff("sweep", "diff", str(folder), first["id"], second["id"]) == 0
    assert f"{first['id']}" in capsys.readouterr().out
    path = tmp_path / "layout.yaml"
    assert distaff("sweep", "emit", str(folder), first["id"][:5], "-o", str(path)) == 0
    read = parse_layout(str(path), num_devices=4)
    wanted = preset(first["preset"], first["mesh"])
    assert (read.mesh, read.rules, read.prefill) == (wanted.mesh, wanted.rules, wanted.prefill)


def test_both_layouts_of_a_pair_are_written_out(
    planned: tuple[Path, dict[str, Any]], distaff: Run, capsys: Capture, tmp_path: Path
) -> None:
    folder, found = planned
    for phase in ("prefill", "decode"):
        path = tmp_path / f"{phase}.yaml"
        assert distaff("sweep", "emit", str(folder), "pair", "--phase", phase, "-o", str(path)) == 0
        wanted = parse_layout(found["pairs"][0][f"{phase}_layout"], num_devices=4)
        assert parse_layout(str(path), num_devices=4).rules == wanted.rules
    assert distaff("sweep", "emit", str(folder), "pair") == 2
    assert "--phase says whose layout" in capsys.readouterr().err


def test_the_table_has_a_front_and_targets(distaff: Run, capsys: Capture) -> None:
    assert distaff(*PLAN, "--slo-tpot", "1ms", "--objective", "throughput") == 0
    out = capsys.readouterr().out
    assert (
        "tokens/s for each chip; * nothing is better in both" in out and "estimates that no chip has confirmed" in out
    )
    assert "rows meet it" in out
    assert distaff(*PLAN, "--slo-ttft", "1ms", "--slo-tpot", "0.0001ms") == 0
    out = capsys.readouterr().out
    assert "no candidate meets it; nearest:" in out and "tpot" in out.split("nearest:")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--hw", "v99:2x2"), "chip 'v99' is not in the hardware table"),
        (("--hw", "v5e:3x3"), "no v5e slice is 3 chips long"),
        (("--hw", "wse3:1"), "its dense peak is not known; give it with --set wse3.flops=N"),
        (("--hw", "v5e:2x2", "--objective", "energy"), "the power of v5e is not known; give it with --set"),
        (("--hw", "v5e:2x2", "--batch", "8:1"), "8 is above 1"),
        (("--hw", "v5e:2x2", "--weights", "int3"), "precisions are fp32, bf16"),
        (("--hw", "v5e:2x2", "--axes", "tensors"), "mesh axes are data"),
        (("--hw", "v5e:2x2", "--slo-ttft", "fast"), "a time such as 500ms"),
        (("--hw", "v5e:2x2", "--verify", "2"), "name one with --out"),
        (("--hw", "v5e:2x2", "--trace", "nowhere"), "--trace nowhere: line 1 is not a JSON object"),
        (("--hw", "v5e:1x1", "--isl", "900000", "--batch", "64"), "does not fit: v5e:1x1: a device needs at least"),
    ],
)
def test_bad_input_is_said_with_exit_code_2(
    arguments: tuple[str, ...], says: str, distaff: Run, capsys: Capture
) -> None:
    assert distaff("sweep", "plan", "-m", TINY, *arguments) == 2
    assert says in capsys.readouterr().err


def test_calibration_takes_points_or_a_model(distaff: Run, capsys: Capture) -> None:
    for arguments in ((), ("--points", "a.yaml", "--model", TINY)):
        assert distaff("sweep", "calibrate", *arguments) == 2
        assert "fits to --points FILE, or to what --model takes" in capsys.readouterr().err
    assert distaff("sweep", "calibrate", "--points", "a.yaml", "--devices", "4") == 2
    assert "--devices says where --model runs" in capsys.readouterr().err
    assert distaff("sweep", "calibrate", "--model", TINY, "--set", "v5e.watts=1") == 2
    assert "drop --chips and --set" in capsys.readouterr().err


def test_a_model_is_a_family_with_numbers_or_a_file(tmp_path: Path) -> None:
    config = model_config(TINY, offline=True)
    assert (config.num_layers, config.layers[0].attention.head_dim, config.tied) == (2, 64, False)
    assert model_config("llama-3.1-8b", offline=True).num_layers == 32
    assert parse_time("--slo-ttft", "1.5s") == 1.5 and parse_time("--slo-ttft", "20ms") == pytest.approx(0.02)


def test_a_trace_gives_the_workload(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"input_tokens": 100, "output_tokens": 10}\n{"input_tokens": 300, "output_tokens": 30}\n')
    assert distaff(*PLAN[:-4], "--trace", str(trace), "--json") == 0
    asked = json.loads(capsys.readouterr().out)["asked"]
    assert (asked["isl"], asked["osl"], asked["longest"]) == (200, 20, 330)


def test_the_front_is_drawn_with_the_fastest_to_the_left() -> None:
    rows = [
        {"fits": True, "tpot_ms_best": wait, "tokens_per_second_per_chip": tokens, "pareto": best}
        for wait, tokens, best in ((1, 10, True), (10, 100, True), (10, 10, False))
    ]
    lines = draw_front(rows)
    assert lines[1].endswith("*") and lines[1].startswith("100 |")
    assert lines[14].startswith(" 10 |*") and lines[14].endswith(".")


@pytest.mark.slow
def test_calibration_reports_what_it_leaves_out(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    """Steps that take what chips with known efficiencies would: they are found again."""
    assert distaff(*PLAN, "--json", "--phase", "decode", "--isl", "4000") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    steps = [
        {"model": TINY, "hw": row["hw"], "layout": row["layout"], "phase": "decode", "rows": row["batch"],
         "context": 4016, "ms": row["decode_ms"]["total"]}
        for row in rows if ":" not in row["layout"]
    ]  # fmt: skip
    points, made = tmp_path / "points.yaml", tmp_path / "calibration.yaml"
    points.write_text(yaml.safe_dump(steps))
    assert distaff("sweep", "calibrate", "--points", str(points), "-o", str(made), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_error"] < 0.05 and len(found["points"]) == len(steps)
    assert distaff(*PLAN, "--calibration", str(made), "--json") == 0
    assert json.loads(capsys.readouterr().out)["asked"]["efficiencies"]["origin"] == "points.yaml"


def test_the_report_is_one_file(planned: tuple[Path, dict[str, Any]], distaff: Run, capsys: Capture) -> None:
    folder, found = planned
    assert distaff("sweep", "report", str(folder)) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert all(row["id"] in (folder / "report.html").read_text() for row in found["rows"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'distaff[tpu]'")
@pytest.mark.parametrize(
    ("model", "hw", "precision"),
    [
        ("llama:layers=32,embed=4096,mlp=14336,heads=32,kv_heads=8,vocab=4096", "v5e:2x2", "bf16"),
        ("llama:layers=32,embed=4096,mlp=14336,heads=32,kv_heads=8,vocab=4096", "v5e:2x2", "int8"),
        (
            "qwen3_moe:layers=8,embed=2048,mlp=6144,heads=32,kv_heads=4,vocab=4096,experts=32,top_k=4,expert_mlp=768",
            "v6e:2x2",
            "bf16",
        ),
    ],
    ids=["dense", "rounded", "experts"],
)
def test_the_compiler_agrees_and_is_asked_once(
    model: str, hw: str, precision: str, tmp_path: Path, distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments within 0.1 %, the peak within 5 %, what is sent as predicted, and a second run from the cache; so is a
    plan that is verified at once."""
    monkeypatch.setenv("DISTAFF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    plan = ("sweep", "plan", "-m", model, "--hw", hw, "--batch", "8", "--isl", "1024", "--osl", "128")
    plan += ("--phase", "decode", "--axes", "tensor")
    plan += ("--weights", precision, "--activations", precision, "--kv", precision)
    assert distaff(*plan, "--out", str(folder)) == 0
    capsys.readouterr()
    verify = ("sweep", "verify", str(folder), "--top", "1", "--json")
    assert distaff(*verify) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    step = row["compiled"]["decode"]
    assert row["evidence"] == "compiled" and row["compiler"].startswith("libtpu")
    assert step["sends_as_predicted"] and step["cycles"] > 0 and step["estimate_ms"] > 0
    assert step["flops_by_predicted"] == pytest.approx(1, abs=0.02)
    assert step["arguments_bytes"] == pytest.approx(step["predicted_arguments_bytes"], rel=0.001)
    assert step["peak_bytes"] == pytest.approx(row["memory_bytes"], rel=0.05)
    assert distaff(*verify) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["compiled"], again["cached"]) == (0, 2) and again["seconds"] < 10
    assert distaff(*plan, "--out", str(tmp_path / "at once"), "--verify", "1", "--json") == 0
    at_once = json.loads(capsys.readouterr().out)
    (same,) = (each for each in at_once["rows"] if each["id"] == row["id"])
    assert same["evidence"] == "compiled" and same["compiled"]["decode"] == step | {"cached": True}
    assert all(each["evidence"] == "analytic" for each in at_once["rows"] if each is not same)


def test_what_the_compiler_refuses_is_behind_what_it_accepts(
    planned: tuple[Path, dict[str, Any]], tmp_path: Path, distaff: Run, capsys: Capture
) -> None:
    """By answers that are known: the first row does not fit, the second one takes a second. The same command looks at
    the same rows again."""
    folder, _ = planned
    sweep = load(folder)
    request, cache = request_of(sweep, offline=True), CompileCache(tmp_path / "cache")
    keys: set[str] = set()
    for row, kind in zip(sweep.rows[:2], ("hbm", None), strict=True):
        layout = preset(row["preset"], row["mesh"])
        checks = checks_of(request, row, layout, request.slices[0], builders=BUILDERS, phases=("decode",))
        assert not isinstance(checks, str)
        clock = round(request.slices[0].chip.clock_hertz)
        report = CompileReport("v5e:2x2", "libtpu 0", 1.0, 4, MemoryReport(1 << 20, 0, 0), 1, 1, clock, clock)
        nothing = CompileReport("v5e:2x2", "libtpu 0", 1.0, 1, MemoryReport(0, 0, 0), 0, 0, 0, 0)
        cache.put(checks[0].step.job, report if kind is None else {"kind": kind, "message": "too much"})
        cache.put(checks[0].drawing.job, nothing)
        keys |= {task.key for task in checks[0].tasks}
    for _ in range(2):
        arguments = ("--top", "2", "--phase", "decode", "--cache", str(tmp_path / "cache"), "--json")
        assert distaff("sweep", "verify", str(folder), *arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["compiled"], found["cached"]) == (0, len(keys))
        refused, accepted = found["rows"]
        assert (
            refused["reason"].startswith("decode: hbm: too much; largest arguments: ")
            and accepted["checked"]["tpot_ms"] > 1000
        )
        assert [row["id"] for row in load(folder).rows] == [
            accepted["id"], *(row["id"] for row in sweep.rows[2:]), refused["id"]
        ]  # fmt: skip


SMALL = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


def distaff_process(*arguments: str) -> str:
    """In a process of its own, with its own devices; its output."""
    program = "from distaff.scripts.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_layout_that_is_written_out_gives_the_tokens_of_one_device(
    tiny_model: Path, distaff: Run, capsys: Capture, tmp_path: Path
) -> None:
    plan = ("sweep", "plan", "-m", str(tiny_model), "--hw", "v5e:2x4", "--batch", "8", "--out", str(tmp_path / "run"))
    assert distaff(*plan, "--objective", "latency", "--isl", "64", "--osl", "16") == 0
    path = tmp_path / "layout.yaml"
    assert distaff("sweep", "emit", str(tmp_path / "run"), "best", "-o", str(path)) == 0
    capsys.readouterr()
    assert parse_layout(str(path), num_devices=8).num_devices == 8
    generate = ("generate", "-m", str(tiny_model), "--prompt", "Hello there", "--max-tokens", "16", "--json",
                "--temperature", "0", "--ignore-eos")  # fmt: skip
    laid = ("--layout", str(path), "--devices", "8")
    one, many = (json.loads(distaff_process(*generate, *more).splitlines()[-1]) for more in ((), laid))
    assert many["token_ids"] == one["token_ids"] and len(one["token_ids"]) == 16


@pytest.mark.soak
def test_layouts_on_cpu_devices_are_in_the_predicted_order(tmp_path: Path) -> None:
    """By microbenchmarks alone; at least 12 layouts, tau at least 0.6 over pairs that differ by more than 15 %, and the
    pick within 15 % of the best."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL))
    found = json.loads(distaff_process("sweep", "run", "-m", f"random:{config}", "--devices", "8", "--json"))
    for row in found["rows"]:
        print(row["layout"], row["measured_ms"], row["decode_ms"]["total"])
    assert sum(row["evidence"] == "measured" for row in found["rows"]) >= 12
    assert found["summary"]["kendall_tau"] >= 0.6
    assert found["summary"]["regret"] <= 0.15
