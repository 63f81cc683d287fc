"""What the devices of an HLO module send each other: operations, groups, bytes, counts."""

import re
from itertools import batched
from math import prod

import numpy as np

from .hlo import ARRAY, NAME, Instruction, Module, shape_bytes, tuple_elements
from .hlo_runs import Execution, Executions
from .report import Collective

_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all|collective-broadcast"
    r"|send|recv)(-start)?$"
)
_BESIDE = re.compile(r", (?:metadata|backend_config)=")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_TRANSFER_TYPE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def collectives(module: Module, runs: Executions) -> tuple[Collective, ...]:
    """Every collective that runs, in the order of the text; an asynchronous one counts where it starts."""
    found: list[Collective] = []
    seen: set[tuple[str, ...]] = set()
    all_runs = {**_offloaded(module, runs), **runs.of}
    for name, instructions in module.computations.items():
        run = all_runs.get(name)
        if run is None:
            continue
        for instruction in instructions:
            match = _COLLECTIVE.match(instruction.opcode)
            if match is None:
                continue
            if run.owner != name:
                # Fused with computation, the same collective stands in the fusions that start, continue and end it.
                # Their attributes tell several of them apart (channel_id or chain_id), their layouts differ.
                said = _BESIDE.split(instruction.attributes, maxsplit=1)[0]
                key = (run.owner, match[1], str(ARRAY.findall(instruction.shape)), said)
                if key in seen:
                    continue
                seen.add(key)
            found.append(_collective(match[1], instruction, {i.name: i.shape for i in instructions}, run.count))
    return tuple(found)


def _offloaded(module: Module, runs: Executions) -> dict[str, Execution]:
    """The runs of computations that are given to sparse cores, as tpu7x does with collectives."""
    found: dict[str, Execution] = {}
    for name, run in runs.of.items():
        for instruction in module.computations[name]:
            if instruction.opcode == "custom-call-start":
                for callee in NAME.findall(instruction.attribute("called_computations") or ""):
                    found.setdefault(callee, Execution(0, callee)).count += run.count
    return found


def _collective(op: str, instruction: Instruction, shapes: dict[str, str], count: int) -> Collective:
    # send and recv return a state and a token beside what they move.
    moved = tuple_elements(instruction.shape)[0] if op in ("send", "recv") else instruction.result
    results = shape_bytes(moved)
    operands = sum(shape_bytes(shapes.get(operand, "")) for operand in instruction.operands)
    groups = instruction.attribute("source_target_pairs") or instruction.attribute("replica_groups") or ""
    transfer = _TRANSFER_TYPE.search(instruction.attributes)
    return Collective(
        op=op,
        replica_groups=parse_groups(groups),
        num_bytes=results if op in ("send", "recv") else max(results, operands),
        count=count,
        between_slices=transfer is not None,
        transfer=transfer[1].lower().replace("_", "-") if transfer else "",
        name=instruction.name,
    )


def parse_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Reads a replica group list in any of its spellings, or the pairs of a collective-permute.

    `{{0,1},{2,3}}`; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`: numbers in order, reshaped, transposed, cut into groups;
    `mesh['x'=2,'y'=2] {'y'}`: groups along the named axes of a mesh.
    """
    mesh, iota = _MESH.match(text), _IOTA.match(text)
    if mesh:
        return _mesh_groups(mesh[1], mesh[2])
    if iota:
        num_groups, size = _ints(iota[1])
        devices = np.arange(num_groups * size).reshape(_ints(iota[2]))
        devices = devices.transpose(_ints(iota[3])) if iota[3] else devices
        return tuple(batched(devices.ravel().tolist(), size))
    return tuple(tuple(_ints(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _mesh_groups(mesh: str, along: str) -> tuple[tuple[int, ...], ...]:
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    devices = np.arange(prod(axes.values()), dtype=np.int64).reshape(tuple(axes.values()))
    names = re.findall(r"'([^']+)'", along)
    inside = [list(axes).index(name) for name in names]
    outside = [place for place in range(len(axes)) if place not in inside]
    size = prod(devices.shape[place] for place in inside)
    flat: list[int] = devices.transpose(outside + inside).ravel().tolist()
    return tuple(batched(flat, size))


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
