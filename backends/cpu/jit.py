"""Builds LLVM IR from Python and compiles it for this processor, at run time and without a compiler installed."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from llvmlite.ir.instructions import CastInstr

from ..errors import UnsupportedError

VOID = ir.VoidType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


BF16 = _Bfloat()

Value = Any
"""An SSA value; llvmlite carries no types."""


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(element, lanes)


class Code(ir.IRBuilder):
    """An IRBuilder with byte addresses, counted loops and 64-bit integer arithmetic on Python numbers."""

    def i64(self, value: int | Value) -> Value:
        """An i64; Python numbers become constants."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def at(self, pointer: Value, *offsets: int | Value) -> Value:
        """The pointer, moved by some bytes."""
        for offset in offsets:
            if not (isinstance(offset, int) and offset == 0):
                pointer = self.gep(pointer, [self.i64(offset)], source_etype=I8)
        return pointer

    def read(self, kind: ir.Type, pointer: Value, *offsets: int | Value, align: int | None = None) -> Value:
        """Loads what lies some bytes behind the pointer."""
        return self.load(self.at(pointer, *offsets), typ=kind, align=align)

    def write(self, value: Value, pointer: Value, *offsets: int | Value, align: int | None = None) -> None:
        self.store(value, self.at(pointer, *offsets), align=align)

    def stack(self, num_bytes: int) -> Value:
        """Memory of this call, aligned to a cache line: taken once, wherever in the function this stands."""
        with self.goto_entry_block():
            taken = self.alloca(ir.ArrayType(I8, num_bytes))
            taken.align = 64  # pyright: ignore[reportAttributeAccessIssue]
            return self._retyped(taken, POINTER)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector of one scalar."""
        kind = vector(scalar.type, lanes)
        first = self.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.shuffle_vector(first, first, ir.Constant(vector(I32, lanes), [0] * lanes))

    def plus(self, a: Value, b: int | Value) -> Value:
        return self.add(a, self.i64(b))

    def times(self, a: Value, b: int | Value) -> Value:
        return self.mul(a, self.i64(b))

    def ceil_div(self, a: Value, b: int | Value) -> Value:
        """ceil(a / b) of numbers that are not negative."""
        return self.udiv(self.sub(self.plus(a, b), self.i64(1)), self.i64(b))

    def least(self, a: Value, b: int | Value) -> Value:
        b = self.i64(b)
        return self.select(self.icmp_signed("<", a, b), a, b)

    def most(self, a: Value, b: int | Value) -> Value:
        b = self.i64(b)
        return self.select(self.icmp_signed(">", a, b), a, b)

    def loop(
        self,
        stop: int | Value,
        body: Callable[..., Sequence[Value] | None],
        carried: Sequence[Value] = (),
        *,
        start: int | Value = 0,
        step: int | Value = 1,
    ) -> list[Value]:
        """`for i in range(start, stop, step): carried = body(i, *carried)`; returns what is carried out."""
        start, stop, before = self.i64(start), self.i64(stop), self.block
        head, inside, after = (self.append_basic_block(name) for name in ("head", "inside", "after"))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(start, before)
        values = [self.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, stop), inside, after)
        self.position_at_end(inside)
        updated = body(index, *values) or ()
        index.add_incoming(self.plus(index, step), self.block)
        for phi, value in zip(values, updated, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(after)
        return values

    def prefetch(self, pointer: Value) -> None:
        """Asks for a cache line to be brought to the second level; any address will do."""
        read, second_level, data = (ir.Constant(I32, value) for value in (0, 2, 1))
        self.intrinsic("llvm.prefetch.p0", VOID, pointer, read, second_level, data)

    def pin(self, vectors: Sequence[Value]) -> list[Value]:
        """The same values; what computes them stays in front of all loads that follow. No instruction is added."""
        register = "v" if "avx512f" in features() else "x" if "sse2" in features() else None
        if register is None:
            return list(vectors)
        kinds = [value.type for value in vectors]
        inputs = [str(number) for number in range(len(kinds))]
        constraints = ",".join([f"={register}"] * len(kinds) + inputs + ["~{memory}"])
        result = kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
        pinned = self.asm(ir.FunctionType(result, kinds), "", constraints, list(vectors), True)
        return [pinned] if len(kinds) == 1 else [self.extract_value(pinned, number) for number in range(len(kinds))]

    def call_pointer(self, pointer: Value, kind: ir.FunctionType, *arguments: Value) -> Value:
        """Calls the function at an address."""
        return self.call(self._retyped(pointer, kind.as_pointer()), arguments)

    def address(self, function: ir.Function) -> Value:
        """A function as a pointer, to be passed on or stored."""
        return self._retyped(function, POINTER)

    def _retyped(self, pointer: Value, kind: ir.Type) -> Value:
        """A pointer that llvmlite, to which `ptr` and `T*` are one type unless it looks closer, sees as this one."""
        cast = CastInstr(self.block, "bitcast", pointer, kind, "")
        self._insert(cast)
        return cast

    def intrinsic(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """Calls an LLVM intrinsic or a C function by its full name."""
        return self.call(declare(self.module, name, result, [value.type for value in arguments]), arguments)


def declare(module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
    """The module's function of this name, declared if it is new."""
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def function(
    module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type], *, inline: bool = False
) -> tuple[ir.Function, Code]:
    """A new function private to the module, and a builder at its start."""
    made = declare(module, name, result, arguments)
    made.linkage = "internal"
    made.attributes.add("nounwind")
    if inline:
        made.attributes.add("alwaysinline")
    return made, Code(made.append_basic_block("entry"))


@cache
def features() -> frozenset[str]:
    """What LLVM calls this processor's extensions, e.g. "avx512bf16"."""
    try:
        return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)
    except RuntimeError:  # LLVM cannot tell on this architecture
        return frozenset()


@cache
def processor() -> str:
    """LLVM's name of this processor, e.g. "emeraldrapids"."""
    return llvm.get_host_cpu_name()


def fingerprint(module: ir.Module) -> str:
    """Identifies machine code: what it is made from, by which LLVM and for which processor."""
    text = f"{module}{processor()}{sorted(features())}{llvm.llvm_version_info}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compile_module(module: ir.Module, names: Sequence[str], *, optimise: bool = True) -> dict[str, int]:
    """Machine code for this processor: the address of each named function. It stays for the process's life.

    Without `optimise` LLVM only selects, schedules and allocates, which is enough for code that is tight as emitted.

    Raises:
        UnsupportedError: LLVM refuses the code, or the system forbids memory that is both written and executed.
    """
    try:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.check_jit_execution()
        target = llvm.Target.from_default_triple()
        flags = ",".join(sorted(f"+{name}" for name in features()))
        machine = target.create_target_machine(cpu=processor(), features=flags, opt=3, jit=True)
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        if optimise:
            builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
            builder.getModulePassManager().run(parsed, builder)
        engine = llvm.create_mcjit_compiler(parsed, machine)
        engine.finalize_object()
    except (RuntimeError, OSError) as error:
        raise UnsupportedError(f"no machine code at run time: {error}") from error
    addresses = {name: engine.get_function_address(name) for name in names}
    # Other threads may run the code while the interpreter ends, so nothing may free it.
    engine.detach()
    return addresses


@cache
def check_jit() -> None:
    """Makes and keeps one small function.

    Raises:
        UnsupportedError: as `compile_module`.
    """
    module = ir.Module("distaff_cpu_check")
    made = declare(module, "nothing", VOID, [])
    Code(made.append_basic_block("entry")).ret_void()
    compile_module(module, ["nothing"])


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
