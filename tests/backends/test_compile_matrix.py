"""Every family's engine step compiles for every accelerator, prefill and decode, with its own kernels.

How deep a model is makes no difference to its program, so the golden models stand for the published ones. Their heads
are made as wide as real ones.
"""

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import jax
import pytest

from distaff.backends.aot import compile_ahead
from distaff.backends.base import Backend
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.libtpu import print_only
from distaff.models.checkpoints import shipped_configs
from distaff.models.config import ModelConfig
from distaff.models.families import FAMILIES, config_from_hf
from distaff.scripts.step_case import abstract_step
from tests.golden.harness import CASES, GOLDEN

TARGETS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1", "h100": "h100:1"}
HEAD_DIM = 64


WITHOUT_GOLDENS = {"palm", "gemma3_multimodal"}
"""PaLM's weights were never published; the text half of the multimodal Gemma 3 is `gemma3`."""


def read(case: str) -> dict[str, Any]:
    if case == "palm":
        published = json.loads(shipped_configs()["palm-62b"].read_text())
        return published | {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256, "num_attention_heads": 4}
    if case == "gemma3_multimodal":
        text = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
        return {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    return json.loads((GOLDEN / case / "config.json").read_text())


def widened(case: str) -> ModelConfig:
    """A golden model with heads of 64."""
    whole = read(case)
    config = whole.get("text_config", whole)
    if "long_factor" in (config.get("rope_scaling") or {}):
        del config["rope_scaling"]  # a factor for each pair of a narrower head
    if "head_dim" in config:
        config["head_dim"] = HEAD_DIM
    else:
        config["hidden_size"] = HEAD_DIM * config["num_attention_heads"]
    return config_from_hf(whole)


def one_of_each_family() -> list[str]:
    """The first golden model of each family."""
    families: dict[str, str] = {}
    for case in (*CASES, *WITHOUT_GOLDENS):
        families.setdefault(config_from_hf(read(case)).family, case)
    return sorted(families.values())


def backend_of(target: str) -> Backend:
    if target == "h100":
        from distaff.backends.gpu.backend import GpuBackend

        return GpuBackend(chip=target)
    from distaff.backends.tpu.backend import TpuBackend

    return TpuBackend(generation=target)


@pytest.fixture(scope="module")
def compilers() -> Iterator[Executor]:
    """Another process, whose TPU compiler prints no schedules: nobody reads them, and printing takes longest."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_silently) as pool:
        yield pool


def start_silently() -> None:
    os.environ |= print_only("none")


@dataclass(frozen=True)
class Compiled:
    """What is asked of a program: bytes that it gives back in place, those of the cache, and whether it has kernels."""

    aliased: int
    cache: int
    has_kernels: bool


def compiled(case: str, target: str, queries: int) -> Compiled:
    """Compiles a step of a golden model."""
    backend = backend_of(target)
    function, args = abstract_step(widened(case), backend, rows=4, queries=queries, context=64, page=16)
    options = backend.compiler_options
    program = compile_ahead(function, args, TARGETS[target], donate=(1, 2), compiler_options=options)
    cache = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[1]))
    return Compiled(program.memory_analysis().alias_size_in_bytes, cache, "custom-call" in (program.as_text() or ""))


def pairs() -> list[Any]:
    """Each family with each chip: CI takes each family for one chip, `scripts/test --soak` all."""
    return [
        pytest.param(case, target, marks=pytest.mark.slow if number % len(TARGETS) == which else pytest.mark.soak)
        for number, case in enumerate(one_of_each_family())
        for which, target in enumerate(TARGETS)
    ]


@pytest.mark.parametrize("queries", [pytest.param(1, id="decode"), pytest.param(32, id="prefill")])
@pytest.mark.parametrize(("case", "target"), pairs())
def test_the_step_compiles_in_place(case: str, target: str, queries: int, compilers: Executor) -> None:
    try:
        program = compilers.submit(compiled, case, target, queries).result()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    assert program.aliased >= program.cache
    assert program.has_kernels  # attention is a kernel of ours, not what XLA makes of the reference


def test_all_families_are_there() -> None:
    assert {widened(case).family for case in one_of_each_family()} == {family.name for family in FAMILIES}
