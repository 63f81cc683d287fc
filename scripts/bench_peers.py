"""Distaff beside what else one would run on this machine: the same weights, the same requests, in turn.

    python -m distaff.scripts.bench_peers --hf-model FOLDER --vllm-python PYTHON ... --out FOLDER

docs/benchmarks.md tells how the peers are installed and what is measured. A peer whose interpreter or model is not
given is skipped, with a word about it. All programs are loaded and warmed up first; then, in each round, each of them
runs every measure while the others are stopped.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..serving.workload import Item, uniform_workload
from .peer_process import Peer, Runner

MIXED, PREFILL, DECODE32, DECODE1 = "mixed", "prefill", "decode32", "decode1"
MEASURES: Mapping[str, str] = {
    MIXED: "mixed 64, output tokens/s",
    PREFILL: "prefill 8x512, tokens/s",
    DECODE32: "decode, batch 32, tokens/s",
    DECODE1: "decode, batch 1, tokens/s",
}

REFERENCE: Mapping[str, Mapping[str, float]] = {
    "openvino int8": {MIXED: 362, PREFILL: 1852, DECODE32: 734, DECODE1: 98.6},
    "vllm bf16": {MIXED: 303, PREFILL: 1468, DECODE32: 613, DECODE1: 57.6},
    "openvino bf16": {MIXED: 284, PREFILL: 1677, DECODE32: 684, DECODE1: 60.9},
    "llama.cpp bf16": {MIXED: 134, PREFILL: 815, DECODE32: 427, DECODE1: 99.7},
    "transformers bf16": {MIXED: 67, PREFILL: 888, DECODE32: 152, DECODE1: 22.0},
}
"""What the peers reached with SmolLM2-135M on 2026-11-23, on two quiet cores that read 42 GB/s and multiply
190 GFLOP/s in fp32 and 400 in bf16. A figure below REFERENCE_SHARE of it does not count: the peer was run badly, or the
machine is another one. The fp32 rows, which have no reference, are for machines that are slower in bf16."""

REFERENCE_SHARE = 0.85

_VOCABULARY = 49_000  # below every peer's
_NEW_TOKENS = 128


def fixed(requests: int, prompt: int, output: int, seed: int) -> tuple[Item, ...]:
    """Requests that are all of one size."""
    prompts, outputs = (prompt, prompt), (output, output)
    return uniform_workload(
        requests=requests, prompt_len=prompts, output_len=outputs, seed=seed, vocab_size=_VOCABULARY
    )


def mixed(requests: int, seed: int) -> tuple[Item, ...]:
    """The lengths of seed 0, with tokens of `seed`: no program finds a prompt in a cache."""
    tokens = random.Random(seed)
    return tuple(
        Item(tuple(tokens.randrange(_VOCABULARY) for _ in item.prompt), item.max_tokens)
        for item in uniform_workload(requests=requests, vocab_size=_VOCABULARY)
    )


def measure(runner: Runner, name: str, seed: int, *, requests: int = 64) -> tuple[float, float]:
    """One measure of MEASURES once: tokens a second, and cores that other programs took."""
    if name == MIXED:
        work = mixed(requests, seed)
        seconds, others = runner.run(work)
        return sum(item.max_tokens for item in work) / seconds, others
    if name == PREFILL:
        seconds, others = runner.run(fixed(8, 512, 1, seed))
        return 8 * 512 / seconds, others
    batch = {DECODE32: 32, DECODE1: 1}[name]
    first, others = runner.run(fixed(batch, 128, 1, seed))
    whole, more = runner.run(fixed(batch, 128, _NEW_TOKENS, seed + 1))
    # The prompts' share is taken off. At most noise can make it the larger one.
    return batch * (_NEW_TOKENS - 1) / max(whole - first, 1e-9), max(others, more)


@dataclass
class Figures:
    """What one program reached, for each measure: a value for each round, and the cores that others took."""

    version: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, rate: float, others: float) -> None:
        self.rates.setdefault(name, []).append(rate)
        self.others.setdefault(name, []).append(others)

    def median(self, name: str) -> float | None:
        values = self.rates.get(name)
        return statistics.median(values) if values else None


def counts(peer: str, measure: str, rate: float) -> bool:
    """Whether a peer was run as well as it can be."""
    return rate >= REFERENCE_SHARE * REFERENCE.get(peer, {}).get(measure, 0.0)


def markdown(figures: Mapping[str, Figures], limits: Sequence[Mapping[str, float]], ours: str) -> str:
    """Medians in a table, and Distaff's ratios to them in a second one."""
    columns = [name for name in MEASURES if any(name in each.rates for each in figures.values())]
    rounds = max((len(values) for each in figures.values() for values in each.rates.values()), default=0)
    lines = [f"Medians of {rounds} rounds, the programs in turn.", ""]
    lines += _table(
        ["program", *(MEASURES[name] for name in columns)],
        [
            [f"{name} ({each.version})", *(_cell(name, column, each.median(column)) for column in columns)]
            for name, each in figures.items()
        ],
    )
    if ours in figures:
        lines += ["", f"How many times as fast {ours} is:", ""]
        lines += _table(
            ["against", *(MEASURES[name] for name in columns)],
            [
                [name, *(_ratio(figures[ours].median(column), each.median(column)) for column in columns)]
                for name, each in figures.items()
                if name != ours
            ],
        )
    if any("not counted" in line for line in lines):
        lines += ["", f"Not counted: below {REFERENCE_SHARE} of what the peer reached on a quiet machine."]
    if limits:
        read, flops = (statistics.median(each[name] for each in limits) for name in ("bytes_per_s", "flops_per_s"))
        lines += ["", f"The machine reads {read / 1e9:.1f} GB/s and multiplies {flops / 1e9:.0f} GFLOP/s."]
    worst = max((value for each in figures.values() for values in each.others.values() for value in values), default=0)
    return "\n".join([*lines, f"Other programs took {worst:.2f} cores at most.", ""])


def _cell(peer: str, measure: str, rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.1f}" if counts(peer, measure, rate) else f"{rate:.1f} (not counted)"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def peers(given: argparse.Namespace) -> list[Peer]:
    """All programs, those for which something is missing too."""

    def peer(name: str, runner: str, python: str, settings: Mapping[str, str], **fixed: Any) -> Peer:
        values = {key: getattr(given, option) for key, option in settings.items()}
        needed = [python, *settings.values()] if python else list(settings.values())
        missing = tuple(f"--{option.replace('_', '-')}" for option in needed if getattr(given, option) is None)
        interpreter = getattr(given, python) if python else sys.executable
        return Peer(name, runner, str(interpreter), {**values, **fixed}, missing, everything)

    everything = tuple(MEASURES)
    own = {"model": given.model, "dtype": "bfloat16", "options": json.loads(given.options)}
    llama_settings = {"server": "llama_server", "model": "llama_gguf"}
    return [
        Peer("distaff bf16", "distaff", sys.executable, {**own, "sampling": "greedy"}, (), everything),
        Peer("distaff bf16, heavy sampling", "distaff", sys.executable, {**own, "sampling": "heavy"}, (), (MIXED,)),
        peer("vllm bf16", "vllm", "vllm_python", {"model": "hf_model"}, dtype="bfloat16"),
        peer("vllm fp32", "vllm", "vllm_python", {"model": "hf_model"}, dtype="float32"),
        peer("openvino bf16", "openvino", "openvino_python", {"model": "openvino_model"}, precision="bf16"),
        peer("openvino fp32", "openvino", "openvino_python", {"model": "openvino_model"}, precision="f32"),
        peer("openvino int8", "openvino", "openvino_python", {"model": "openvino_int8_model"}, precision=None),
        peer("llama.cpp bf16", "llama", "", llama_settings, port=given.llama_port),
        peer("transformers bf16", "transformers", "hf_python", {"model": "hf_model"}, dtype="bfloat16"),
    ]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_peers", description="Compare Distaff with its peers on this machine.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="ours; the others' must hold the same weights")
    parser.add_argument("--options", default="{}", help="JSON: more arguments of distaff.serving.LLM")
    parser.add_argument("--hf-model", help="folder of safetensors, for vLLM and transformers")
    parser.add_argument("--hf-python", help="interpreter with transformers and torch")
    parser.add_argument("--vllm-python", help="interpreter with vLLM for CPUs")
    parser.add_argument("--openvino-python", help="interpreter with openvino-genai")
    parser.add_argument("--openvino-model", help="folder exported with --weight-format fp32")
    parser.add_argument("--openvino-int8-model", help="folder exported with --weight-format int8")
    parser.add_argument("--llama-server", help="llama.cpp's llama-server")
    parser.add_argument("--llama-gguf", help="GGUF file in bf16")
    parser.add_argument("--llama-port", type=int, default=18_099)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64, help="of the mixed workload; fewer are for trying out")
    parser.add_argument("--measures", default=",".join(MEASURES), help="comma-separated [%(default)s]")
    parser.add_argument("--only", help="comma-separated beginnings of the names of programs, such as distaff,vllm")
    parser.add_argument("--out", type=Path, default=Path("bench-peers"), help="folder of results and logs")
    return parser


@contextmanager
def loaded(chosen: Sequence[Peer], out: Path) -> Iterator[list[Runner]]:
    """All programs, each loaded, warmed up and then stopped; one that fails is left out, with a word about it."""
    with ExitStack() as stack:
        runners: list[Runner] = []
        for peer in chosen:
            _say(f"loading {peer.name}")
            try:
                runner = Runner(peer, out / f"{peer.name.replace(' ', '-').replace(',', '')}.log")
                stack.callback(runner.close)
                for work in (fixed(2, 40, 4, 1), fixed(8, 200, 4, 2), fixed(32, 100, 8, 3)):
                    runner.run(work)
            except (RuntimeError, OSError) as error:
                _say(f"skipped {peer.name}: {error}")
            else:
                runners.append(runner)
        yield runners


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options()
    given = parser.parse_args(arguments)
    wanted = given.measures.split(",")
    if not set(wanted) <= MEASURES.keys():
        parser.error(f"--measures {given.measures}: expected some of {','.join(MEASURES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    chosen: list[Peer] = []
    for peer in peers(given):
        if given.only and not peer.name.startswith(tuple(given.only.split(","))):
            continue
        if peer.missing:
            _say(f"skipped {peer.name}: give {' and '.join(peer.missing)}")
        else:
            chosen.append(peer)
    limits: list[dict[str, float]] = []
    with loaded(chosen, given.out) as runners:
        figures = {runner.peer.name: Figures(runner.version) for runner in runners}
        for number in range(given.rounds):
            limits.append(_machine_limits())
            # Each round begins with another program, so that none is always the first after a pause.
            turn = number % max(1, len(runners))
            for runner in runners[turn:] + runners[:turn]:
                _say(f"round {number + 1}, {runner.peer.name}")
                try:
                    for name in runner.peer.measures:
                        if name in wanted:
                            rate, others = measure(runner, name, 1000 * (number + 1), requests=given.requests)
                            figures[runner.peer.name].add(name, rate, others)
                            _say(f"  {MEASURES[name]}: {rate:.1f} (other programs took {others:.2f} cores)")
                except (RuntimeError, OSError) as error:
                    _say(f"{runner.peer.name} is out: {error}")
                    runners.remove(runner)
            _write(given.out, figures, limits)
    sys.stdout.write(markdown(figures, limits, "distaff bf16"))


def _machine_limits() -> dict[str, float]:
    from ..backends.select import select_backend
    from ..serving.limits import measure_limits

    return asdict(measure_limits(select_backend("auto"), "bfloat16"))


def _write(out: Path, figures: Mapping[str, Figures], limits: Sequence[Mapping[str, float]]) -> None:
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "limits": list(limits),
        "programs": {
            name: {**asdict(each), "medians": {column: each.median(column) for column in each.rates}}
            for name, each in figures.items()
        },
    }
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "results.md").write_text(markdown(figures, limits, "distaff bf16"))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
