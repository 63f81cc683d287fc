"""Products whose sums are rounded at once are made in the narrow type, which torch accumulates in fp32 anyway."""

from dataclasses import replace

from .flat_jaxpr import FlatJaxpr

_NARROW = ("bfloat16", "float16")


def narrow_products(program: FlatJaxpr) -> None:
    """Retypes `convert(reshape(dot_general(bf16, bf16) -> fp32)) -> bf16`: a product in fp32 would convert the whole
    matrix first. The conversion that is left changes nothing."""
    readers: dict[int, list[int]] = {}
    for number, op in enumerate(program.ops):
        for atom in op.ins:
            if isinstance(atom, int):
                readers.setdefault(atom, []).append(number)
    kept = {atom for atom in program.outputs if isinstance(atom, int)}
    for op in program.ops:
        if op.name != "dot_general":
            continue
        given = {str(program.aval(atom).dtype) for atom in op.ins}
        if len(given) != 1 or not given & {*_NARROW} or str(program.avals[op.outs[0]].dtype) != "float32":
            continue
        chain = [op.outs[0]]
        while True:
            last = chain[-1]
            if last in kept or len(readers.get(last, [])) != 1:
                break
            reader = program.ops[readers[last][0]]
            if reader.name == "reshape":
                chain.append(reader.outs[0])
                continue
            if reader.name == "convert_element_type" and {str(program.avals[reader.outs[0]].dtype)} == given:
                wanted = program.avals[reader.outs[0]].dtype
                for value in chain:
                    program.avals[value] = replace(program.avals[value], dtype=wanted)
            break
