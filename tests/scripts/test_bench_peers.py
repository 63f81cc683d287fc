"""The comparison with other programs, on programs made up here: what is sent, what is counted, what the table says."""

import json
import signal
import sys
from pathlib import Path
from typing import cast

import pytest

from distaff.scripts import bench_peers, peer_process
from distaff.scripts.bench_peers import DECODE1, DECODE32, MEASURES, MIXED, PREFILL, Figures, markdown, measure
from distaff.scripts.peer_process import Peer, Runner
from distaff.serving.workload import Item

# Says what it was asked for as its seconds: the number of tokens to generate.
FAKE = """
import json, sys
settings = json.loads(sys.argv[2])
if settings.get("broken"):
    sys.exit("cannot load the model")
turns = settings.get("turns", 1000)
print(json.dumps({"ready": "1.0"}), flush=True)
for line in sys.stdin:
    turns -= 1
    if turns < 0:
        sys.exit("out of memory")
    work = json.loads(line)
    print(json.dumps({"seconds": sum(count for _, count in work) / settings["speed"]}), flush=True)
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program in the place of all peers; returns a folder for its logs."""
    file = tmp_path / "fake_runner.py"
    file.write_text(FAKE)
    monkeypatch.setattr(peer_process, "_RUNNER", file)
    return tmp_path


class Recorder:
    """A Runner that answers at once, and remembers the sizes of what it was given."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.sizes: list[list[tuple[int, int]]] = []
        self.prompts: list[tuple[int, ...]] = []

    def run(self, work: tuple[Item, ...]) -> tuple[float, float]:
        self.sizes.append([(len(item.prompt), item.max_tokens) for item in work])
        self.prompts += [item.prompt for item in work]
        return self.seconds.pop(0), 0.25


def measured(name: str, *seconds: float) -> tuple[float, Recorder]:
    recorder = Recorder(*seconds)
    rate, others = measure(cast(Runner, recorder), name, seed=5)
    assert others == 0.25
    return rate, recorder


def test_the_mixed_workload_has_the_lengths_of_seed_0_and_tokens_of_its_own() -> None:
    rate, first = measured(MIXED, 10.0)
    assert rate == 664.2
    assert sum(prompt for prompt, _ in first.sizes[0]) == 14_631
    other = Recorder(1.0)
    measure(cast(Runner, other), MIXED, seed=6)
    assert other.sizes == first.sizes and not set(other.prompts) & set(first.prompts)


def test_prefill_and_decode_apart() -> None:
    rate, recorder = measured(PREFILL, 2.0)
    assert rate == 8 * 512 / 2 and recorder.sizes == [[(512, 1)] * 8]
    for name, batch in ((DECODE32, 32), (DECODE1, 1)):
        rate, recorder = measured(name, 1.0, 3.0)
        assert rate == batch * 127 / 2
        assert recorder.sizes == [[(128, 1)] * batch, [(128, 128)] * batch]
        assert not set(recorder.prompts[:batch]) & set(recorder.prompts[batch:])


def test_a_program_is_asked_and_ended(fake: Path) -> None:
    runner = Runner(Peer("fake", "vllm", sys.executable, {"speed": 10}), fake / "log")
    assert runner.version == "1.0"
    for _ in range(2):  # stopped in between
        assert runner.run([Item((1, 2), 30), Item((3,), 20)])[0] == 5.0
    process = runner._process
    runner.close()
    assert process.returncode == -signal.SIGKILL


def test_a_program_that_does_not_start_is_told_with_its_last_words(fake: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot load the model"):
        Runner(Peer("fake", "vllm", sys.executable, {"broken": True}), fake / "log")


def test_figures_below_the_reference_do_not_count() -> None:
    figures = {"distaff bf16": Figures("0.1"), "vllm bf16": Figures("1"), "something else": Figures("2")}
    for rate in (200.0, 400.0, 300.0):
        figures["distaff bf16"].add(MIXED, rate, 0.0)
    figures["vllm bf16"].add(MIXED, 0.86 * 303, 0.1)
    figures["vllm bf16"].add(PREFILL, 0.84 * 1468, 0.5)
    figures["something else"].add(MIXED, 10.0, 0.0)
    text = markdown(figures, [{"bytes_per_s": 4e10, "flops_per_s": 2e11}], "distaff bf16")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 300.0 | - |" in rows["distaff bf16 (0.1)"]
    assert "| 260.6 | 1233.1 (not counted) |" in rows["vllm bf16 (1)"]
    assert "| 10.0 | - |" in rows["something else (2)"]
    assert "| 1.15 | - |" in rows["vllm bf16"] and "| 30.00 | - |" in rows["something else"]
    assert "Medians of 3 rounds" in text and "40.0 GB/s" in text and "200 GFLOP/s" in text
    assert "took 0.50 cores at most" in text


def test_what_is_not_given_is_skipped_with_a_word(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_peers, "_machine_limits", lambda: {"bytes_per_s": 1e9, "flops_per_s": 1e9})
    monkeypatch.setattr(
        bench_peers,
        "peers",
        lambda given: [
            Peer("quick", "vllm", sys.executable, {"speed": 1000}, (), tuple(MEASURES)),
            Peer("absent", "vllm", "None", {}, ("--vllm-python",), tuple(MEASURES)),
            Peer("broken", "vllm", sys.executable, {"broken": True}, (), tuple(MEASURES)),
            Peer("failing", "vllm", sys.executable, {"speed": 10, "turns": 5}, (), tuple(MEASURES)),
        ],
    )
    out = fake / "out"
    bench_peers.main(["--rounds", "2", "--measures", "prefill,decode1", "--out", str(out)])
    shown, said = capsys.readouterr()
    assert "skipped absent: give --vllm-python" in said
    assert "skipped broken: broken ended with" in said
    assert "failing is out: failing ended with" in said and "out of memory" in said
    assert (out / "results.md").read_text() == shown
    results = json.loads((out / "results.json").read_text())
    assert results["programs"]["quick"]["medians"] == {PREFILL: 512_000, DECODE1: pytest.approx(1000)}
    assert len(results["programs"]["quick"]["rates"][PREFILL]) == len(results["limits"]) == 2


def test_a_measure_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_peers.main(["--measures", "mixed,speed"])
    assert "mixed,prefill,decode32,decode1" in capsys.readouterr().err


def test_every_option_that_a_peer_needs_is_an_option() -> None:
    parser = bench_peers.options()
    missing = {option for peer in bench_peers.peers(parser.parse_args([])) for option in peer.missing}
    given = [part for option in sorted(missing) for part in (option, "x")]
    chosen = bench_peers.peers(parser.parse_args(given))
    assert not any(peer.missing for peer in chosen)
    assert set(bench_peers.REFERENCE) <= {peer.name for peer in chosen}
