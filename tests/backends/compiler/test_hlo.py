"""Reading optimised HLO. The dump is that of a scan of 5 steps under shard_map for v6e:2x2, each step a matmul, a
psum_scatter along x, a psum along y, an all_gather, a ppermute and an all_to_all along x (libtpu 0.0.52)."""

from pathlib import Path

import pytest

from distaff.backends.compiler.hlo import Module, parse_module, shape_bytes
from distaff.backends.compiler.hlo_collectives import collectives, parse_groups
from distaff.backends.compiler.hlo_costs import kernel_calls, operation_costs, path_cycles
from distaff.backends.compiler.hlo_fusions import fusion_table, fusions
from distaff.backends.compiler.hlo_runs import executions

BODY = "wide.region_0.3_spmd.sunk"


@pytest.fixture
def module() -> Module:
    return parse_module((Path(__file__).parent / "dumps" / "scan-of-collectives.hlo").read_text())


def test_instructions(module: Module) -> None:
    assert module.entry == "main.6_spmd"
    fusion = next(i for i in module.computations[BODY] if i.name == "convolution_bitcast_fusion.2")
    assert fusion.opcode == "fusion"
    assert fusion.operands == ("get-tuple-element.55", "get-tuple-element.62", "get-tuple-element.54")
    assert fusion.attribute("kind") == "kOutput"
    assert fusion.attribute("calls") == "%fused_computation.clone.1"
    assert fusion.attribute("absent") is None
    assert shape_bytes(fusion.shape) == 256 * 512 * 2


def test_a_scan_runs_its_body_as_often_as_it_has_steps(module: Module) -> None:
    runs = executions(module)
    assert runs.of[BODY].count == 5
    assert runs.unknown_loops == 0
    fused = runs.of["fused_computation.3.clone.1"]
    assert (fused.count, fused.owner) == (5, BODY)
    assert "region_1.1" not in runs.of  # what a reduction applies is no program


def test_collectives(module: Module) -> None:
    x, y = ((0, 2), (1, 3)), ((0, 1), (2, 3))
    whole, half = 256 * 512 * 2, 128 * 512 * 2
    found = [(c.op, c.replica_groups, c.num_bytes, c.count) for c in collectives(module, executions(module))]
    assert found == [
        ("all-reduce", x, whole, 5),  # XLA's way to scatter a small sum
        ("all-reduce", y, half, 5),
        ("all-gather", x, whole, 5),
        ("collective-permute", ((0, 2), (2, 0), (1, 3), (3, 1)), whole, 5),
        ("all-to-all", x, whole, 5),
    ]


def test_costs_of_operations(module: Module) -> None:
    costs = operation_costs(module, executions(module))
    assert (costs[0].name, costs[0].cycles, costs[0].count) == ("convolution_bitcast_fusion.2", 3040, 5)
    assert sum(cost.cycles * cost.count for cost in costs) == 5 * (2121 + 3040 + 2452 + 2837 + 100)
    assert kernel_calls(module, executions(module)) == ()


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{{0,2},{2,0}}", ((0, 2), (2, 0))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['x'=2,'y'=4] {'y'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("mesh['x'=2,'y'=4] {'x'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['x'=2,'y'=2] {'x','y'}", ((0, 1, 2, 3),)),
        ("{}", ()),
        ("", ()),
    ],
)
def test_spellings_of_replica_groups(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert parse_groups(text) == groups


@pytest.mark.parametrize(
    ("shape", "num_bytes"),
    [
        ("f32[]", 4),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("s4[16]{0}", 8),
        ("f8e4m3fn[7]", 7),
        ("pred[3]", 3),
        ("(f32[2]{0}, /*index=1*/u8[3]{0}, token[])", 11),
    ],
)
def test_bytes_of_shapes(shape: str, num_bytes: int) -> None:
    assert shape_bytes(shape) == num_bytes


def _loop(direction: str, first: int, last: int, step: int, test: str = "%i, %n") -> str:
    return f"""
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i.1, %step)
  ROOT %t = (s32[], f32[8]) tuple(%next, %x)
}}

%cond (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant({last})
  ROOT %test = pred[] compare({test}), direction={direction}
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8] parameter(0)
  %first = s32[] constant({first})
  %start = s32[] copy(%first)
  %init = (s32[], f32[8]) tuple(%start, %a)
  %w = (s32[], f32[8]) while(%init), condition=%cond, body=%body
  ROOT %r = f32[8] get-tuple-element(%w), index=1
}}
"""


@pytest.mark.parametrize(
    ("text", "trips"),
    [
        (_loop("LT", 0, 7, 1), 7),
        (_loop("LT", 2, 7, 2), 3),
        (_loop("LE", 0, 7, 1), 8),
        (_loop("NE", 3, 7, 1), 4),
        (_loop("GT", 7, 0, -1), 7),
        (_loop("GE", 7, 0, -1), 8),
        (_loop("GT", 0, 7, 1, test="%n, %i"), 7),
        (_loop("LT", 7, 7, 1), 0),
    ],
)
def test_trip_counts(text: str, trips: int) -> None:
    runs = executions(parse_module(text))
    assert runs.of["body"].count == trips and runs.unknown_loops == 0


def test_a_loop_that_depends_on_data_is_counted_once_and_reported() -> None:
    text = _loop("LT", 0, 7, 1).replace("constant(7)", "parameter(1)")
    runs = executions(parse_module(text))
    assert runs.of["body"].count == 1 and runs.unknown_loops == 1


def test_text_that_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_module("")


BRANCHES = """
%cheap.1 (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %copy.1 = f32[8] copy(%p), backend_config={"estimated_cycles":"10"}
}

%offloaded (r: f32[8]) -> f32[8] {
  %r = f32[8] parameter(0)
  ROOT %sort.1 = f32[8] sort(%r), backend_config={"estimated_cycles":"1000"}
}, execution_thread="sparsecore"

%dear.1 (q: f32[8]) -> f32[8] {
  %q = f32[8] parameter(0)
  %start = ((f32[8]), f32[8], u32[]) call-start(%q), to_apply=%offloaded
  ROOT %done = f32[8] call-done(%start)
}

ENTRY %main (a: f32[8], b: s32[]) -> f32[8] {
  %a = f32[8] parameter(0)
  %b = s32[] parameter(1)
  %tanh.1 = f32[8] tanh(%a), metadata={op_name="jit(f)/while/body/mlp/tanh"}, backend_config={"estimated_cycles":"5"}
  %loop = f32[8] negate(%tanh.1), backend_config={"estimated_cycles":"27670116110564401935"}
  ROOT %c = f32[8] conditional(%b, %loop, %loop), branch_computations={%cheap.1, %dear.1}
}
"""


def test_of_a_conditional_one_branch_runs() -> None:
    module = parse_module(BRANCHES)
    assert path_cycles(module, min) == 5 + 10
    assert path_cycles(module, max) == 5 + 1000  # on another core, whose computations end otherwise
    runs = executions(module)
    assert {cost.name for cost in operation_costs(module, runs)} == {"sort.1", "copy.1", "tanh.1"}  # all of them


def test_fusions_say_where_their_operations_come_from(module: Module) -> None:
    found = {fusion.name: fusion for fusion in fusions(module, executions(module))}
    matmul = found["convolution_bitcast_fusion.2"]
    assert (matmul.opcode, matmul.count, matmul.cycles) == ("fusion", 5, 3040)
    assert matmul.operations == ("dynamic-slice", "convolution")

    (tanh, *_) = (
        fusion for fusion in fusions(parse_module(BRANCHES), executions(parse_module(BRANCHES))) if fusion.cycles == 5
    )
    assert tanh.operations == ("tanh  mlp/tanh",)
    assert fusion_table([tanh]) == "tanh.1  tanh x1, 5 cycles\n    tanh  mlp/tanh\n"


def test_a_collective_that_is_fused_into_several_operations_is_one() -> None:
    """The TPU compiler overlaps a collective with matmuls by putting it into each of them, with other layouts."""

    def fused(number: int, layout: str, chain_id: int) -> str:
        chain = f'frontend_attributes={{chain_id="{chain_id}"}}, metadata={{op_name="{number}"}}'
        return f"""
%async_collective_fusion.{number} (p: bf16[8,4]) -> bf16[8,16] {{
  %p = bf16[8,4] parameter(0)
  ROOT %ag.{number} = bf16[8,16]{layout} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], {chain}
}}
"""

    parts = [(1, "{1,0}", 0), (2, "{1,0:T(8,128)S(1)}", 0), (3, "{1,0}", 0), (4, "{1,0}", 1)]
    calls = "\n".join(
        f"  %f.{number} = bf16[8,16] fusion(%a), kind=kCustom, calls=%async_collective_fusion.{number}"
        for number, _, _ in parts
    )
    module = parse_module(
        "".join(fused(*part) for part in parts)
        + f"\nENTRY %main (a: bf16[8,4]) -> bf16[8,16] {{\n  %a = bf16[8,4] parameter(0)\n{calls}\n"
        "  ROOT %r = bf16[8,16] add(%f.1, %f.4)\n}\n"
    )
    found = collectives(module, executions(module))
    assert [(c.op, c.num_bytes, c.replica_groups) for c in found] == [("all-gather", 256, ((0, 1, 2, 3),))] * 2


def test_collectives_that_a_sparse_core_is_given_run_as_often_as_they_start() -> None:
    text = """HloModule m
%called (p: bf16[8,16]) -> bf16[32,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[32,16]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[8,16]) -> bf16[32,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %g.start = ((), (), s32[4]{0}) custom-call-start(), async_execution_thread="sparsecore", called_computations={%called}
  %g.update = ((bf16[8,16]{1,0}), bf16[32,16]{1,0}, s32[4]{0}) custom-call-update(%g.start, %x)
  ROOT %g.done = bf16[32,16]{1,0} custom-call-done(%g.update)
}
"""
    module = parse_module(text)
    (gather,) = collectives(module, executions(module))
    assert (gather.op, gather.count, gather.num_bytes) == ("all-gather", 1, 32 * 16 * 2)
