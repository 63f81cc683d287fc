"""Layouts over processes: every collective, and tokens and logits of models whose parts meet by torch.distributed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from distaff.backends.errors import UnsupportedError
from distaff.backends.torch.backend import TorchBackend
from distaff.backends.torch.names import torch
from distaff.backends.torch.ranks import Ranks

SIZES = (("data", 2), ("tensor", 3))


@pytest.mark.parametrize(
    ("count", "cases"),
    [
        (
            2,
            [
                "llama31",
                "tensor=2",
                "gpt_oss",
                "tensor-scatter:tensor=2",
                "llama31",
                "stage=2",
                "llama31",
                "sequence=2",
            ],
        ),
        pytest.param(
            2, ["llama31", "sequence-alltoall:sequence=2", "qwen3_moe", "expert:expert=2"], marks=pytest.mark.slow
        ),
        pytest.param(4, ["llama31", "tensor-2d:tensor=2,tensor2=2"], marks=pytest.mark.slow),
    ],
)
def test_processes_compute_what_one_device_does(count: int, cases: list[str], tmp_path: Path) -> None:
    program = [sys.executable, "-W", "ignore", "-m", "tests.backends.torch.ranks_program"]
    commands = [[*program, str(rank), str(tmp_path / "meeting"), *cases] for rank in range(count)]
    root = Path(__file__).parents[3]
    running = [subprocess.Popen(each, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for each in commands]
    for rank, process in enumerate(running):
        out, told = (stream.decode() for stream in process.communicate())
        assert process.returncode == 0, f"rank {rank}: {told[-4000:]}"
        found: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert [each["case"] for each in found] == ["collectives", *cases[::2]]
        assert all(each["error"] <= 1e-4 and each["spread"] > 0.3 for each in found), found
        assert all(each["same_tokens"] for each in found[1:]), found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The groups that were asked for."""
    groups: list[list[int]] = []

    def new_group(ranks: list[int]) -> list[int]:
        groups.append(ranks)
        return ranks

    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    return groups


def test_groups_are_of_those_that_differ_along_their_axes(made: list[list[int]]) -> None:
    ranks = [Ranks(SIZES, rank) for rank in range(6)]
    assert [each.group(("tensor",)) for each in ranks] == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert made == [[0, 1, 2], [3, 4, 5]] * 6  # each process makes all of them, in one order
    assert ranks[4].group(("tensor",)) == [3, 4, 5] and len(made) == 12  # and each once
    assert [each.group(("data",)) for each in ranks] == [[0, 3], [1, 4], [2, 5]] * 2
    assert ranks[5].group(("data", "tensor")) == [*range(6)]
    assert [each.place(("tensor",)) for each in ranks] == [0, 1, 2] * 2
    assert [each.place(("data", "tensor")) for each in ranks] == [*range(6)]


MESH = Mesh(np.array(jax.devices()[:6]).reshape(2, 3), ("data", "tensor"))


def refused(function: Any, backend: TorchBackend) -> str:
    mapped = jax.shard_map(function, mesh=MESH, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    with pytest.raises(UnsupportedError) as caught:
        backend.compile(mapped, (np.ones((6, 6), np.float32),))
    return str(caught.value)


def test_what_one_process_cannot_do_is_named(made: list[list[int]]) -> None:
    assert "  shard_map, at " in refused(lambda x: lax.psum(x, "tensor"), TorchBackend())
    among = TorchBackend(ranks=Ranks(SIZES, 0))
    pairs = [[0, 1], [2]]
    apart = refused(lambda x: lax.psum(x, "tensor", axis_index_groups=pairs), among)
    assert apart.startswith("primitive psum with ") and "no rule for this form" in apart
    turned = refused(lambda x: lax.all_gather(x, ("tensor", "data"), tiled=True), among)
    assert turned.startswith("primitive all_gather with ") and "torch backends have no rule for this form" in turned
    assert "primitive reduce_scatter" in refused(lambda x: lax.psum_scatter(x[:3], "tensor"), among)
    assert not made
