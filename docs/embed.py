"""Keeps documents in step with the tree: fills the blocks behind `<!-- help: COMMAND -->` and `<!-- file: PATH -->`,
and the tables behind `<!-- table: sampling parameters -->`, `<!-- table: layouts -->`, `<!-- table: prompts -->`,
`<!-- table: metrics -->`, `<!-- table: openai -->` and `<!-- table: statuses -->`, and what stands between
`<!-- protocol: FOLDER -->` and `<!-- end of protocol -->`.

.venv/bin/python docs/embed.py        rewrites the documents; a test fails until that is done
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- (?P<kind>help|file): (?P<what>.*?) -->\n```\w*\n)(?P<body>.*?)(```\n)", re.DOTALL)

_TABLE = re.compile(
    r"(<!-- table: (?P<what>sampling parameters|layouts|prompts|statuses|metrics|openai) -->\n)(?:\|.*\n)*"
)


_PROTOCOL = re.compile(r"(<!-- protocol: (?P<folder>\S+) -->\n).*?(?=<!-- end of protocol -->)", re.DOTALL)


def documents() -> list[Path]:
    """Every document that users read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def embedded(text: str) -> str:
    """A document's text with its blocks filled."""
    text = _BLOCK.sub(lambda block: block[1] + _content(block["kind"], block["what"]) + block[5], text)
    text = _PROTOCOL.sub(lambda block: f"{block[1]}\n{_protocol(block['folder'])}\n", text)
    tables = {
        "layouts": _layouts,
        "metrics": _metrics,
        "openai": _openai,
        "prompts": _prompts,
        "sampling parameters": _sampling_parameters,
        "statuses": _statuses,
    }
    return _TABLE.sub(lambda table: table[1] + tables[table["what"]](), text)


def _content(kind: str, what: str) -> str:
    if kind == "file":
        return (ROOT / what).read_text(encoding="utf-8")
    program = "from distaff.scripts.main import main; main()"
    arguments = [*what.split(), "--help"] if what != "distaff" else ["--help"]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _protocol(folder: str) -> str:
    return runpy.run_path(str(ROOT / "docs" / "protocol.py"))["reference"](folder)


def _statuses() -> str:
    """What clients are told of each error."""
    from distaff.backends.errors import DistaffError
    from distaff.serving.front.status import HTTP_CODES, STATUSES

    lines = ["| gRPC | HTTP | counted as | when |", "|---|---|---|---|"]
    for error, grpc, kind, _ in STATUSES:
        if issubclass(error, DistaffError) and (when := (error.__doc__ or "").strip().splitlines()):
            lines.append(f"| {grpc} | {HTTP_CODES[grpc]} | `{kind}` | {when[0]} |")
    return "\n".join(lines) + "\n"


def _metrics() -> str:
    """Every metric that is exported."""
    from distaff.serving.telemetry.exports import EXPORTS

    lines = ["| Metric | Kind | Labels | What it says |", "|---|---|---|---|"]
    for each in EXPORTS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.exposed_name}` | {each.kind} | {labels} | {each.doc} |")
    return "\n".join(lines) + "\n"


def _openai() -> str:
    """Every field of OpenAI's two completion requests, and what becomes of it."""
    from distaff.serving.http.bodies import ChatBody, CompletionBody
    from distaff.serving.http.fields import Only

    def cell(kind: type[CompletionBody | ChatBody], name: str) -> str:
        if name not in kind.model_fields:
            return ""
        for only in (getattr(each, "func", None) for each in kind.model_fields[name].metadata):
            if isinstance(only, Only):
                accepted = " or ".join(f"`{json.dumps(value)}`" for value in only.accepted)
                return f"refused: {only.why}" + (f" ({accepted} is taken)" if accepted else "")
        return "yes"

    lines = ["| Field | /v1/completions | /v1/chat/completions |", "|---|---|---|"]
    for name in sorted({*CompletionBody.model_fields, *ChatBody.model_fields}):
        lines.append(f"| `{name}` | {cell(CompletionBody, name)} | {cell(ChatBody, name)} |")
    return "\n".join(lines) + "\n"


def _sampling_parameters() -> str:
    """The capability table, a line for each parameter."""
    from distaff.serving.capabilities import PARAMETERS  # imports JAX, which few documents need

    lines = ["| Parameter | Default | Accepted | Where | What it does |", "|---|---|---|---|---|"]
    for parameter in PARAMETERS:
        cells = (f"`{parameter.name}`", f"`{parameter.default!r}`", parameter.domain.expected, parameter.where.value)
        lines.append(f"| {' | '.join(cells)} | {parameter.doc} |")
    return "\n".join(lines) + "\n"


def _layouts() -> str:
    """Published models under layouts, by the formulas."""
    from distaff.models.checkpoints import shipped_configs
    from distaff.models.families import config_from_hf
    from distaff.sharding.parsing import parse_layout
    from distaff.sharding.report import layout_report

    cases = {
        "llama-3.1-8b": ("tensor=8", "tensor-2d:tensor=4,tensor2=2", "attention-ff:tensor=4,tensor2=2",
                         "sequence=4,tensor=2", "stage=2,tensor=4"),
        "llama-3.1-70b": ("tensor=8", "tensor=16", "tensor-2d:tensor=4,tensor2=4", "stage=2,tensor=8"),
        "qwen3-30b-a3b": ("tensor=4", "expert=8", "expert:expert=4,tensor=2"),
    }  # fmt: skip
    lines = ["| model | layout | weights on a device | cache of a token | all-reduces | others | sent by a device |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for model, layouts in cases.items():
        config = config_from_hf(json.loads(shipped_configs()[model].read_text()))
        for layout in layouts:
            report = layout_report(config, parse_layout(layout, num_devices=16), "bfloat16", batch=32, tokens=512)
            sends = [each for each in report["decode_sends"] if each["when"] in ("", "greedy")]
            sums = sum(each["count"] for each in sends if each["op"] == "all-reduce")
            others = sum(each["count"] for each in sends) - sums
            sent = sum(each["link_bytes"] for each in sends)
            held = f"{report['weights'] / 2**30:.2f} GiB", f"{report['cache_token'] / 1024:g} KiB"
            cells = (model, f"`{layout}`", *held, str(sums), str(others), f"{sent / 2**20:.2f} MiB")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _prompts() -> str:
    """What a published model's steps with prompts send, by the formulas."""
    from distaff.models.checkpoints import shipped_configs
    from distaff.models.families import config_from_hf
    from distaff.sharding.parsing import parse_layout
    from distaff.sharding.report import layout_report

    layouts = ("tensor=8", "tensor-scatter:tensor=8", "weight-gathered:tensor=8", "sequence=8", "sequence=4,tensor=2",
               "sequence-alltoall:sequence=8", "sequence-alltoall:sequence=4,tensor=2")  # fmt: skip
    config = config_from_hf(json.loads(shipped_configs()["llama-3.1-8b"].read_text()))
    lines = [
        "| model | layout | weights on a device | 2,048 tokens | 32,768 tokens | more, if a part is cached |",
        "|---|---|---|---|---|---|",
    ]
    for layout in layouts:
        cells: list[str] = []
        for tokens in (2048, 32768):
            report = layout_report(config, parse_layout(layout, num_devices=16), "bfloat16", batch=1, tokens=tokens)
            sums = {
                when: sum(each["link_bytes"] for each in report["prefill_sends"] if each["when"] in when) / 2**20
                for when in (("", "greedy"), ("cached",))
            }
            held = f"{report['weights'] / 2**30:.2f} GiB"
            cells.append(f"{sums['', 'greedy']:.0f} MiB")
            later = f"{sums[('cached',)] / tokens * 1024:.0f} KiB a token" if sums[("cached",)] else "nothing"
        lines.append(f"| {' | '.join(('llama-3.1-8b', f'`{layout}`', held, *cells, later))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for document in documents():
        before = document.read_text(encoding="utf-8")
        after = embedded(before)
        if after != before:
            document.write_text(after, encoding="utf-8")
            sys.stdout.write(f"updated {document.relative_to(ROOT)}\n")
