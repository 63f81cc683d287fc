"""What a layout is predicted to send is what the step asks for, and what the TPU compiler makes of it."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from multiprocessing import get_context
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.hlo import ARRAY, parse_module
from distaff.backends.compiler.hlo_collectives import collectives
from distaff.backends.compiler.hlo_runs import executions
from distaff.backends.compiler.libtpu import clear_schedules, print_only
from distaff.backends.compiler.lowering import compile_lowered, lower, make_mesh
from distaff.backends.compiler.topologies import parse_topology
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu.backend import TpuBackend
from distaff.models.compress import Quantizer, parse_scheme, quantizer
from distaff.models.config import ModelConfig
from distaff.sharding.check import Devices, problem
from distaff.sharding.collectives import StepShape, predict
from distaff.sharding.footprint import footprint
from distaff.sharding.layout import Layout
from distaff.sharding.parsing import parse_layout
from distaff.sharding.report import Totals, compiled_totals, predicted_totals
from distaff.sharding.step import ShardedModel
from distaff.sharding.step_case import step_case

from .shipped import shipped
from .tiny import tiny

BF16 = jnp.dtype(jnp.bfloat16)
CONTEXT, PAGE = 1024, 128
LONG = 16384
TRACED = {
    "psum": "all-reduce",
    "pmax": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "ppermute": "collective-permute",
    "all_to_all": "all-to-all",
}


def traced(
    config: ModelConfig, layout: Layout, shape: StepShape, rounds: Quantizer | None = None
) -> Counter[tuple[str, tuple[str, ...]]]:
    """Bytes by operation and axes, that the step asks for when it is traced."""
    roundings = {} if rounds is None else rounds.roundings(config)
    case = step_case(ShardedModel(config, layout, ReferenceBackend(), BF16, roundings), rows=shape.rows,
                     queries=shape.queries, context=CONTEXT, page=PAGE)  # fmt: skip
    mesh = AbstractMesh(
        tuple(layout.sizes.values()), tuple(layout.sizes), axis_types=(AxisType.Auto,) * len(layout.mesh)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(case.function)(*case.abstract_args)
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def walk(jaxpr: Any, times: int) -> None:
        for equation in jaxpr.eqns:
            op = TRACED.get(equation.primitive.name)
            if op is not None:
                axes = equation.params.get("axes") or equation.params["axis_name"]
                axes = (axes,) if isinstance(axes, str) else axes
                moved = equation.invars if op == "reduce-scatter" else equation.outvars
                found[op, tuple(axes)] += times * sum(v.aval.size * v.aval.dtype.itemsize for v in moved)
            inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
            for each in jax.tree.leaves(
                equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
            ):
                if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                    walk(getattr(each, "jaxpr", each), inner)

    walk(jaxpr.jaxpr, 1)
    return found


@pytest.mark.parametrize(
    ("model", "text", "shape"),
    [
        ("llama-3.1-8b", "tensor-2d:tensor=4,tensor2=4", StepShape(4)),
        ("qwen3_moe", "expert:expert=4,tensor=2", StepShape(2, 16)),
        pytest.param("qwen3_moe", "tensor-2d:tensor=4,tensor2=2", StepShape(4), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "tensor-scatter:tensor=8", StepShape(2, 64), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "attention-ff:tensor=4,tensor2=2", StepShape(4), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "stage=4,tensor=2", StepShape(4), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "stage=2,tensor=2", StepShape(2, 16), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "sequence=4,tensor=2", StepShape(4), marks=pytest.mark.slow),
        pytest.param("llama-3.1-8b", "sequence=4,tensor=2", StepShape(2, 64), marks=pytest.mark.slow),
        pytest.param("gpt_oss", "sequence-alltoall:sequence=2,tensor=2", StepShape(2, 16), marks=pytest.mark.slow),
        pytest.param("gpt_oss", "sequence-alltoall:sequence=2,tensor=2", StepShape(2), marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "weight-gathered:tensor=4", StepShape(2, 16), marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "attention-data:data=2,tensor=2", StepShape(2, 16), marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "sequence=2,expert=2,tensor=2", StepShape(2, 16), marks=pytest.mark.slow),
        *(
            pytest.param(model, text, shape, marks=pytest.mark.soak)
            for model, text in [
                ("gpt_oss", "expert:expert=2,tensor=2"),
                ("gpt_oss", "tensor-scatter:tensor=4"),
                ("gemma3", "tensor=4"),
                ("olmo2", "tensor-2d:tensor=2,tensor2=2"),
                ("olmo2", "tensor-scatter:tensor=2"),
                ("llama-3.1-70b", "tensor=8"),
                ("llama-3.1-70b", "stage=4,tensor=2"),
                ("qwen3_moe", "sequence=2,expert=2,tensor=2"),
                ("qwen3_moe", "stage=2,expert=2"),
                ("llama31", "stage=2,sequence=2,tensor=2"),
                ("llama31", "pipeline+tensor-2d:stage=2,tensor=2,tensor2=2"),
                ("llama31", "pipeline+attention-ff:data=2,stage=2,tensor=2,tensor2=2"),
            ]
            for shape in (StepShape(4), StepShape(2, 16))
        ),
    ],
)  # fmt: skip
def test_a_step_asks_for_what_is_predicted(model: str, text: str, shape: StepShape) -> None:
    config = shipped(model) if "-" in model else tiny(model)[0]
    layout = parse_layout(text, num_devices=16)
    predicted: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for sent in predict(config, layout, shape, BF16):
        predicted[sent.op, sent.axes] += sent.total
    assert traced(config, layout, shape) == predicted and predicted


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "fp8"])
def test_of_rounded_weights_numbers_and_scales_are_gathered(scheme: str) -> None:
    config, layout, shape = (
        tiny("llama31")[0],
        parse_layout("weight-gathered:tensor=4", num_devices=4),
        StepShape(2, 16),
    )
    rounds = quantizer(parse_scheme(scheme), config)
    predicted: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for sent in predict(config, layout, shape, BF16, quantizer=rounds):
        predicted[sent.op, sent.axes] += sent.total
    assert traced(config, layout, shape, rounds) == predicted
    assert predicted != traced(config, layout, shape)


def test_tensor_parallel_bytes_are_those_of_the_formula() -> None:
    """Two all-reduces of B tokens in a layer (Pope et al. 2022, weight-stationary 1D, serial blocks); nothing else but
    the embeddings' and what sampling needs."""
    config, layout = shipped("llama-3.1-70b"), parse_layout("tensor=8", num_devices=8)
    sent = predict(config, layout, StepShape(32), BF16)
    sampling = [("all-gather", 1)] * 3  # greedy, top-k, or everything
    assert [(each.op, each.count) for each in sent] == [("all-reduce", 1), *[("all-reduce", 80)] * 2, *sampling]
    assert [each.num_bytes for each in sent[3:]] == [32 * 8 * n for n in (8, 8 * 64)] + [32 * 128256 * 4]
    in_layers = sum(each.link_bytes(layout) for each in sent[1:3])
    assert in_layers == 80 * 2 * (32 * 8192 * 2) * 2 * 7 / 8
    assert predict(config, parse_layout("replica:data=8", num_devices=8), StepShape(32), BF16) == ()


def test_a_whole_square_of_chips_sums_what_others_scatter() -> None:
    layout = parse_layout("tensor-scatter:tensor=16", num_devices=16)

    def scattered(chips: tuple[int, ...]) -> int:
        sent = predict(shipped("llama-3.1-8b"), layout, StepShape(2, 512), BF16, chips=chips)
        return sum(each.count for each in sent if each.op == "reduce-scatter")

    assert [scattered(chips) for chips in ((), (4, 4), (2, 8), (4, 8), (8, 8))] == [64, 0, 64, 64, 64]


def test_what_is_scattered_costs_what_a_sum_costs() -> None:
    config = shipped("llama-3.1-8b")
    shape = StepShape(2, 512)
    whole, parts = (
        {each.what: each.link_bytes(layout) for each in predict(config, layout, shape, BF16)}
        for layout in (parse_layout(text, num_devices=8) for text in ("tensor=8", "tensor-scatter:tensor=8"))
    )
    outputs = ("attention outputs", "feed-forward outputs")
    assert sum(whole[o] for o in outputs) == sum(parts[o] for o in outputs) + parts["residual stream"]


@dataclass(frozen=True)
class Compiled:
    """Of a program: what it sends, copies of a whole cache, and bytes on each device: arguments, those that are neither
    weights nor cache, and temporaries."""

    sent: Totals
    cache_copies: int
    arguments: int
    others: int
    temporaries: int


def compiled(
    config: ModelConfig, layout: Layout, topology: str, shape: StepShape, context: int, greedy: bool
) -> Compiled:
    backend = TpuBackend(generation=topology.split(":")[0])
    case = step_case(ShardedModel(config, layout, backend, BF16), rows=shape.rows, queries=shape.queries,
                     context=context, page=PAGE, greedy=greedy)  # fmt: skip
    mesh = make_mesh(topology, case.mesh_axes)
    lowered = lower(case.function, case.abstract_args, mesh, in_specs=case.in_specs, donate=case.donate)
    program = compile_lowered(lowered, topology, case.compiler_options)
    clear_schedules()
    module = parse_module(program.as_text() or "")
    runs = executions(module)
    others = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(case.abstract_args[2:]))
    memory = program.memory_analysis()
    assert memory is not None
    assert case.in_specs is not None
    part = NamedSharding(mesh, cast(PartitionSpec, case.in_specs[1]))
    caches = {part.shard_shape(leaf.shape) for leaf in jax.tree.leaves(case.abstract_args[1])}
    made = [
        (each.operation, tuple(map(int, dims.split(","))))
        for instructions in module.computations.values()
        for each in instructions
        for _, dims in ARRAY.findall(each.result)
        if dims
    ]
    assert caches <= {shape for _, shape in made}
    return Compiled(
        compiled_totals(collectives(module, runs)),
        sum(operation == "copy" and shape in caches for operation, shape in made),
        memory.argument_size_in_bytes,
        others // layout.replicas,
        memory.temp_size_in_bytes,
    )


@pytest.fixture(scope="module")
def compilers() -> Iterator[Executor]:
    """Another process, whose TPU compiler prints no schedules."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_silently) as pool:
        yield pool


def start_silently() -> None:
    os.environ |= print_only("none")


DECODE, PREFILL = StepShape(2), StepShape(2, 32)
PAIRS = [
    ("tensor=16", "v5e:4x4", DECODE),
    ("data=4,tensor=4", "v5e:4x4", DECODE),
    ("tensor-2d:tensor=4,tensor2=4", "v5e:4x4", DECODE),
    ("attention-ff:tensor=8,tensor2=2", "v5e:4x4", DECODE),
    ("tensor=8", "v6e:2x4", DECODE),
    ("tensor-2d:tensor=4,tensor2=2", "v6e:2x4", DECODE),
    ("tensor-scatter:tensor=8", "tpu7x:2x2x1", PREFILL),
    ("data=2,tensor=4", "tpu7x:2x2x1", DECODE),
    ("stage=2,tensor=4", "v6e:2x4", DECODE),
    ("sequence=4,tensor=2", "v6e:2x4", PREFILL),
    ("sequence-alltoall:sequence=2,tensor=4", "v5e:2x4", PREFILL),
]
"""Those that CI compiles; the others, and whole vocabularies, are in the soak."""
RARELY = [
    ("sequence=4,tensor=2", "v6e:2x4", DECODE),
    ("sequence-alltoall:sequence=2,tensor=4", "v5e:2x4", DECODE),
    ("weight-gathered:tensor=8", "v5e:2x4", PREFILL),
    ("attention-data:data=4,tensor=2", "v6e:2x4", DECODE),
    ("attention-data:data=4,tensor=2", "v6e:2x4", StepShape(8)),
    ("attention-data:data=4,tensor=2", "v6e:2x4", PREFILL),
]
MIXTURES = [
    ("expert=8", "v6e:2x4", DECODE, pytest.mark.slow),
    ("expert:expert=4,tensor=2", "v6e:2x4", StepShape(2, 128), pytest.mark.slow),
    ("tensor-2d:tensor=4,tensor2=4", "v5e:4x4", PREFILL, pytest.mark.slow),
    ("expert=8", "v6e:2x4", StepShape(2, 128), pytest.mark.soak),
    ("expert=16", "v5e:4x4", StepShape(2, 256), pytest.mark.soak),
    ("tensor-2d:tensor=4,tensor2=2", "v6e:2x4", DECODE, pytest.mark.soak),
]
"""Of Qwen3-30B-A3B; a dispatch counts as one round."""


TOPOLOGIES = {"v5e:4x4": 16, "v6e:2x4": 8, "tpu7x:2x2x1": 8}


def every_preset(devices: int) -> tuple[str, ...]:
    """For all devices of a topology; the mixture's preset aside."""
    half = devices // 2
    return (
        *(f"replica:data={devices}", f"tensor={devices}", f"data=2,tensor={half}"),
        *(f"tensor-scatter:tensor={devices}", f"weight-gathered:tensor={devices}"),
        *(f"tensor-2d:tensor={half},tensor2=2", f"attention-ff:tensor={half},tensor2=2"),
        *(f"sequence=2,tensor={half}", f"sequence-alltoall:sequence=2,tensor={half}"),
        *(f"attention-data:data=2,tensor={half}", f"stage=2,tensor={half}"),
    )


def cases() -> list[Any]:
    marked = [pytest.param("llama-3.1-8b", *pair, 4096, marks=pytest.mark.slow) for pair in PAIRS]
    marked += [pytest.param("llama-3.1-8b", *pair, 4096, marks=pytest.mark.soak) for pair in RARELY]
    marked += [pytest.param("qwen3-30b-a3b", *pair, 4096, marks=mark) for *pair, mark in MIXTURES]
    for model in ("llama-3.1-8b", "llama-3.1-70b"):
        config = shipped(model)
        for topology, count in TOPOLOGIES.items():
            devices = Devices(count, parse_topology(topology).chip.device_hbm_bytes)
            for text in every_preset(count):
                # What does not fit is refused before anything is compiled.
                if problem(parse_layout(text, num_devices=count), config, devices, dtype=BF16) is None:
                    for shape in (DECODE, StepShape(1, 512)):
                        marked.append(pytest.param(model, text, topology, shape, None, marks=pytest.mark.soak))
    return marked


@pytest.mark.parametrize(("model", "text", "topology", "shape", "vocab_size"), cases())
def test_the_tpu_compiler_sends_what_is_predicted(
    model: str, text: str, topology: str, shape: StepShape, vocab_size: int | None, compilers: Executor
) -> None:
    """And copies no cache. In CI with a vocabulary of 4,096 and the most likely tokens: most of a compile goes into
    drawing, which sends nothing. Programs with whole vocabularies draw, and have caches that are larger than a chip's
    fast memory: a smaller one XLA may move there and back, which is no copy that a server would meet."""
    config = shipped(model)
    config = replace(config, vocab_size=vocab_size or config.vocab_size)
    layout, greedy = parse_layout(text, num_devices=16), vocab_size is not None
    context = CONTEXT if greedy else LONG
    try:
        program = compilers.submit(compiled, config, layout, topology, shape, context, greedy).result()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    predicted = predicted_totals(predict(config, layout, shape, BF16, chips=parse_topology(topology).shape), layout)
    assert program.sent.keys() == predicted.keys()
    for key, (count, num_bytes) in predicted.items():
        assert program.sent[key][0] == count, key[0]
        assert program.sent[key][1] == pytest.approx(num_bytes, rel=0.01), key[0]
    assert program.cache_copies == 0

    held = footprint(config, layout, BF16)
    expected = held.weights + shape.rows * context * held.cache_token
    assert program.arguments - program.others == pytest.approx(expected, rel=0.001)
    cache = shape.rows * context * held.cache_token
    print(f"{model}, {text} on {topology}: {program.temporaries / 2**20:.1f} MiB of temporaries beside "
          f"{cache / 2**20:.0f} MiB of cache and {held.weights / 2**30:.2f} GiB of weights")  # fmt: skip
