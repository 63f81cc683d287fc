"""Every family's engine step compiles for every accelerator, prefill and decode, with its own kernels.

How deep a model is makes no difference to its program, so the golden models stand for the published ones. Their heads
are made as wide as real ones.

Most of a compile is the sampler's, which takes logits and knows no family. So CI compiles each family for each chip
with the most likely tokens taken, and whole for one of the chips, where the program is not one that compiled before
(compiled_before.py). `scripts/test --soak` compiles all of them, whole and whatever compiled before.
"""

import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import jax
import pytest

from distaff.backends.base import Backend
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.lowering import compile_lowered, lower, make_mesh
from distaff.models.checkpoints import shipped_configs
from distaff.models.config import ModelConfig
from distaff.models.families import FAMILIES, config_from_hf
from distaff.scripts.step_case import abstract_step
from tests.backends.compiled_before import compiled_before, digest, start_silently
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


def programs() -> Iterator[tuple[str, str, bool, bool]]:
    """Each family with each chip, whether its tokens are drawn, and whether CI compiles that: drawn for one chip."""
    for number, case in enumerate(one_of_each_family()):
        for which, target in enumerate(TARGETS):
            whole_in_ci = number % len(TARGETS) == which
            yield case, target, True, whole_in_ci
            if not whole_in_ci:
                yield case, target, False, True


def name_of(case: str, target: str, drawn: bool, queries: int) -> str:
    return f"{case} {target} {'drawn' if drawn else 'greedy'} {queries}"


def parameters() -> Iterator[Any]:
    for case, target, drawn, in_ci in programs():
        mark = pytest.mark.slow if in_ci else pytest.mark.soak
        yield pytest.param(case, target, drawn, id=f"{case}-{target}-{'drawn' if drawn else 'greedy'}", marks=mark)


@pytest.fixture(scope="module")
def compilers() -> Iterator[Executor]:
    """Another process, whose TPU compiler prints no schedules: nobody reads them, and printing takes longest."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_silently) as pool:
        yield pool


@dataclass(frozen=True)
class Compiled:
    """What is asked of a program: bytes that it gives back in place, those of the cache, and which kernels it has."""

    queries: int
    aliased: int
    cache: int
    kernels: frozenset[str]


def compiled(case: str, target: str, drawn: bool, queries: int, before: str | None) -> tuple[str, Compiled | None]:
    """Compiles a step of a golden model, unless its digest is that from before. The digest, and what was compiled."""
    backend, topology = backend_of(target), TARGETS[target]
    step, args = abstract_step(widened(case), backend, rows=4, queries=queries, context=64, page=16)
    lowered = lower(replace(step, greedy=not drawn), args, make_mesh(topology), donate=(1, 2))
    found = digest(lowered, topology, backend.compiler_options)
    if found == before:
        return found, None
    program = compile_lowered(lowered, topology, backend.compiler_options)
    memory = program.memory_analysis()
    assert memory is not None
    cache = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[1]))
    calls = [line for line in (program.as_text() or "").splitlines() if KERNEL_CALL.search(line)]
    kernels = frozenset(kernel for kernel in KERNELS[32] if any(kernel in call for call in calls))
    return found, Compiled(queries, memory.alias_size_in_bytes, cache, kernels)


def check(program: Compiled) -> None:
    assert program.aliased >= program.cache
    assert program.kernels >= KERNELS[program.queries]  # not what XLA makes of the reference


def test_all_families_are_there() -> None:
    assert {widened(case).family for case in one_of_each_family()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("queries", [pytest.param(1, id="decode"), pytest.param(32, id="prefill")])
@pytest.mark.parametrize(("case", "target", "drawn"), list(parameters()))
def test_the_step_compiles_in_place(case: str, target: str, drawn: bool, queries: int, compilers: Executor) -> None:
    before = compiled_before().get(name_of(case, target, drawn, queries))
    try:
        _, program = compilers.submit(compiled, case, target, drawn, queries, before).result()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    if program is not None:
        check(program)
