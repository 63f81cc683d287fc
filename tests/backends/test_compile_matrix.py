"""Every family's engine step compiles for every accelerator, prefill and decode, with its own kernels.

How deep a model is makes no difference to its program, so the golden models stand for the published ones. Their heads
are made as wide as real ones.

Most of a compile is the sampler's, which takes logits and knows no family. So CI compiles each family for each chip
with the most likely tokens taken, and whole for one of the chips; `scripts/test --soak` compiles all of them whole.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
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
KERNELS = {1: {"decode_attention"}, 32: {"decode_attention", "prefill_attention"}}
"""What attends in a step of so many queries a row."""
KERNEL_CALL = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton)"')


WITHOUT_GOLDENS = {"palm", "gemma3_multimodal"}
"""PaLM's weights were never published; the text half of the multimodal Gemma 3 is `gemma3`."""


def read(case: str) -> dict[str, Any]:
    if case == "palm":
        published = json.loads(shipped_configs()["palm-62b"].read_text())
        narrow = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 256, "num_attention_heads": 4}
        return published | narrow | {"num_hidden_layers": 2}  # layers stand one behind the other on a GPU
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


def programs() -> Iterator[Any]:
    """Each family with each chip, and whether its tokens are drawn: CI draws for one chip of each family."""
    for number, case in enumerate(one_of_each_family()):
        for which, target in enumerate(TARGETS):
            whole_in_ci = number % len(TARGETS) == which
            marks = pytest.mark.slow if whole_in_ci else pytest.mark.soak
            yield pytest.param(case, target, True, id=f"{case}-{target}-drawn", marks=marks)
            if not whole_in_ci:
                yield pytest.param(case, target, False, id=f"{case}-{target}-greedy", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def compilers() -> Iterator[Executor]:
    """Another process, whose TPU compiler prints no schedules: nobody reads them, and printing takes longest."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_silently) as pool:
        yield pool


def start_silently() -> None:
    os.environ |= print_only("none") | {"JAX_ENABLE_COMPILATION_CACHE": "false"}


@dataclass(frozen=True)
class Compiled:
    """What is asked of a program: bytes that it gives back in place, those of the cache, and which kernels it has."""

    aliased: int
    cache: int
    kernels: frozenset[str]


def compiled(case: str, target: str, queries: int, drawn: bool) -> Compiled:
    """Compiles a step of a golden model."""
    backend = backend_of(target)
    step, args = abstract_step(widened(case), backend, rows=4, queries=queries, context=64, page=16)
    program = compile_ahead(
        replace(step, greedy=not drawn), args, TARGETS[target], donate=(1, 2), compiler_options=backend.compiler_options
    )
    cache = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[1]))
    calls = [line for line in (program.as_text() or "").splitlines() if KERNEL_CALL.search(line)]
    kernels = frozenset(kernel for kernel in KERNELS[32] if any(kernel in call for call in calls))
    return Compiled(program.memory_analysis().alias_size_in_bytes, cache, kernels)


def test_all_families_are_there() -> None:
    assert {widened(case).family for case in one_of_each_family()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("queries", [pytest.param(1, id="decode"), pytest.param(32, id="prefill")])
@pytest.mark.parametrize(("case", "target", "drawn"), list(programs()))
def test_the_step_compiles_in_place(case: str, target: str, drawn: bool, queries: int, compilers: Executor) -> None:
    try:
        program = compilers.submit(compiled, case, target, queries, drawn).result()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    assert program.aliased >= program.cache
    assert program.kernels >= KERNELS[queries]  # not what XLA makes of the reference
