"""`distaff layout`, and `--layout` where a model is run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distaff.scripts.layout_tables import draw_mesh
from distaff.sharding.parsing import parse_layout
from distaff.sharding.presets import PRESETS

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]

LLAMA = ("-m", "random:llama-3.1-8b")


def test_a_mesh_is_drawn_with_its_last_axis_to_the_right() -> None:
    layout = parse_layout("attention-ff:data=2,tensor=2,tensor2=3", num_devices=12)
    assert [" ".join(line.split()) for line in draw_mesh(layout)] == [
        "tensor2 0..2",
        "data=0 tensor=0 0 1 2",
        "data=0 tensor=1 3 4 5",
        "data=1 tensor=0 6 7 8",
        "data=1 tensor=1 9 10 11",
    ]


def test_show_has_every_tensor_and_what_is_sent(distaff: Run, capsys: Capture) -> None:
    assert distaff("layout", "show", "tensor=8", *LLAMA, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["weights"] == sum(tensor["bytes"] for tensor in report["tensors"])
    (query,) = (tensor for tensor in report["tensors"] if tensor["path"].endswith("q.weight"))
    assert query["spec"] == "[32, 32/tensor, 128, 4096]" and query["part"] == [32, 4, 128, 4096]
    sums = [each for each in report["decode_sends"] if each["op"] == "all-reduce"]
    assert sum(each["count"] for each in sums) == 65  # two in each of 32 layers, and the embeddings'

    assert distaff("layout", "show", "stage=4,tensor=2", *LLAMA, "--batch", "16") == 0
    # Four parts through four stages: seven ticks, three of which are somebody else's.
    assert "a decode step sends; each stage waits for 43% of it" in capsys.readouterr().out

    assert distaff("layout", "show", "replica", "--devices", "2", *LLAMA) == 0
    out = capsys.readouterr().out
    assert "a decode step sends\n  nothing\n" in out and "131.1 kB of KV cache for each token" in out


def test_check_says_what_is_left_and_what_is_unused(distaff: Run, capsys: Capture) -> None:
    assert distaff("layout", "check", "tensor=4", *LLAMA, "--devices", "9", "--memory", "16GiB") == 0
    out, err = capsys.readouterr()
    assert out.startswith("layout tensor=4 fits: 4.0 GB of weights on each device\nof 17.2 GB, the rest holds at most")
    assert err == (
        "warning: layout tensor=4 uses the first 4 of 9 devices; 2 of it, each on devices of its own, would use 8\n"
    )


def test_copies_of_kv_heads_are_warned_of_and_counted(distaff: Run, capsys: Capture) -> None:
    assert distaff("layout", "check", "tensor=16", *LLAMA, "--devices", "16") == 0
    out, err = capsys.readouterr()
    assert out == "layout tensor=16 fits: 1.0 GB of weights (33.6 MB of copies of KV heads) on each device\n"
    assert err.startswith("warning: layout tensor=16: 8 KV heads over tensor=16: each is held 2 times, 0.03 GiB of")
    assert err.endswith("sequence:sequence=2,tensor=8 holds each once\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "tensor=4", *LLAMA, "--devices", "4", "--memory", "3GiB"), "no layout of these devices fits"),
        (("check", "tensor=3", *LLAMA), "32 heads (layer 0) over tensor=3 do not divide into 3 parts; nearest"),
        (("check", "tensor=4", *LLAMA, "--devices", "4", "--topology", "v5e:2x2"), "exclude each other"),
        (("check", "tensor=4", *LLAMA, "--topology", "h100:4"), "layouts are compiled for TPUs"),
        (("check", "tensor=4", *LLAMA, "--topology", "v5e:2x2", "--tokens", "4096"), "--context is 2048, expected at"),
        (("show", "tensors=4", *LLAMA), "no mesh axis is named 'tensors'"),
    ],
)
def test_what_does_not_fit_is_said_with_exit_code_2(
    arguments: tuple[str, ...], says: str, distaff: Run, capsys: Capture
) -> None:
    assert distaff("layout", *arguments) == 2
    assert says in capsys.readouterr().err


def test_presets_are_listed(distaff: Run, capsys: Capture) -> None:
    assert distaff("layout", "presets", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["presets"]
    assert [row["name"] for row in rows] == list(PRESETS)
    assert distaff("layout", "presets") == 0
    out = capsys.readouterr().out
    assert all(f"{name} (data" in out for name in PRESETS)


@pytest.mark.slow
def test_check_compiles_for_a_topology(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    """Of a file the table, not the one that its sizes would have alone: here the vocabulary stays whole."""
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    model = str(Path(__file__).parent.parent / "golden" / "llama_yarn")
    shape = ("--batch", "2", "--tokens", "16", "--context", "64")
    file = tmp_path / "layout.yaml"
    file.write_text("mesh: {tensor: 2}\nrules: {heads: [tensor], kv_heads: [tensor], mlp: [tensor]}\n")
    assert distaff("layout", "check", str(file), "-m", model, "--topology", "v5e:1x2", *shape, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["compiled"]) == {"decode", "prefill"} and report["unused"] == 0
    for step in report["compiled"].values():
        assert step["agrees"] and step["temporaries"] > 0
        assert {each["op"] for each in step["predicted"]} == {"all-reduce"}


def test_devices_without_a_layout_are_refused(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "a", "--devices", "4") == 2
    assert "--devices 4 needs --layout" in capsys.readouterr().err


@pytest.mark.slow
def test_generate_runs_under_a_layout(distaff: Run, capsys: Capture, tiny_model: Path) -> None:
    answers = []
    for layout in ((), ("--layout", "tensor=2")):
        arguments = (
            "generate",
            "-m",
            str(tiny_model),
            "-p",
            "abc",
            "--max-tokens",
            "4",
            "--temperature",
            "0",
            "--json",
        )
        assert distaff(*arguments, "--backend", "reference", "--context", "32", *layout) == 0
        out, err = capsys.readouterr()
        answers.append(json.loads(out)["token_ids"])
    assert answers[0] == answers[1]
    assert "warning: layout tensor=2 uses the first 2 of 8 devices" in err
