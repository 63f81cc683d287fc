"""XLA custom calls made at run time: handlers in LLVM IR that read XLA's C structs themselves.

Struct layouts: jaxlib's include/xla/ffi/api/c_api.h; all are append-only, and pointers have 8 bytes.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from llvmlite import ir

from .jit import I32, I64, POINTER, VOID, Code, Value, compile_module, declare, fingerprint

# Offsets in bytes of XLA_FFI_CallFrame, _Buffer, _Metadata_Extension, _Metadata and _Api.
_FRAME_EXTENSION, _FRAME_API, FRAME_CONTEXT, _FRAME_ARGS, _FRAME_RESULTS = 8, 16, 24, 72, 112
_FRAME_NUM_ARGS = 56
_BUFFER_DATA, _BUFFER_DIMS = 24, 40
_EXTENSION_TYPE, _EXTENSION_METADATA = 8, 24
_METADATA_MAJOR, _METADATA_MINOR, _METADATA_TRAITS = 24, 28, 32
_API_MINOR, _API_ERROR_DESTROY, API_SCHEDULE, API_NUM_THREADS = 36, 64, 136, 144
_IS_METADATA = 1

_registered: set[str] = set()


@dataclass(frozen=True)
class Buffer:
    """An operand or a result: its address, and its sizes as i64 values."""

    code: Code
    struct: Value

    @property
    def data(self) -> Value:
        return self.code.read(POINTER, self.struct, _BUFFER_DATA)

    def size(self, axis: int) -> Value:
        """The length of an axis, counted from the first."""
        return self.code.read(I64, self.code.read(POINTER, self.struct, _BUFFER_DIMS), 8 * axis)


@dataclass(frozen=True)
class Frame:
    """What a handler is called with. `pointer` is what `threads.parallel_for` asks for."""

    code: Code
    pointer: Value

    @property
    def num_arguments(self) -> Value:
        return self.code.read(I64, self.pointer, _FRAME_NUM_ARGS)

    def argument(self, number: int | Value) -> Buffer:
        return self._buffer(_FRAME_ARGS, number)

    def result(self, number: int | Value) -> Buffer:
        return self._buffer(_FRAME_RESULTS, number)

    def _buffer(self, where: int, number: int | Value) -> Buffer:
        code = self.code
        array = code.read(POINTER, self.pointer, where)
        return Buffer(code, code.read(POINTER, array, code.times(code.i64(number), 8)))


def api_call(code: Code, frame: Value, which: int, *arguments: Value) -> Value:
    """Calls one of XLA's functions with a struct of these fields behind the usual two: whether it succeeded."""
    api = code.read(POINTER, frame, _FRAME_API)
    struct = code.stack(16 + 8 * len(arguments))
    for number, value in enumerate((code.i64(16 + 8 * len(arguments)), ir.Constant(POINTER, None), *arguments)):
        code.write(value, struct, 8 * number)
    kind = ir.FunctionType(POINTER, [POINTER])
    error = code.call_pointer(code.read(POINTER, api, which), kind, struct)
    failed = code.icmp_unsigned("!=", error, ir.Constant(POINTER, None))
    with code.if_then(failed, likely=False):
        destroyed = code.stack(24)
        for number, value in enumerate((code.i64(24), ir.Constant(POINTER, None), error)):
            code.write(value, destroyed, 8 * number)
        code.call_pointer(code.read(POINTER, api, _API_ERROR_DESTROY), ir.FunctionType(VOID, [POINTER]), destroyed)
    return code.not_(failed)


def handler(module: ir.Module, name: str, body: Callable[[Frame], None]) -> None:
    """Adds the handler of a custom call to the module; `body` emits what it does with its operands and results.

    When XLA registers a handler it first asks, by the same function, for the version of the interface.
    """
    made = declare(module, name, POINTER, [POINTER])
    made.attributes.add("nounwind")
    code = Code(made.append_basic_block("entry"))
    frame, null = made.args[0], ir.Constant(POINTER, None)
    extension = code.read(POINTER, frame, _FRAME_EXTENSION)
    registers = declare(module, f"{name}.describe", ir.IntType(1), [POINTER, POINTER])
    _describe(registers)
    described = code.call(registers, [frame, extension])
    with code.if_then(described, likely=False):
        code.ret(null)
    body(Frame(code, frame))
    code.ret(null)


def _describe(made: ir.Function) -> None:
    """Answers the question for the interface's version: whether that was what the call is for."""
    made.linkage = "internal"
    code = Code(made.append_basic_block("entry"))
    frame, extension = made.args
    with code.if_then(code.icmp_unsigned("==", extension, ir.Constant(POINTER, None))):
        code.ret(ir.Constant(ir.IntType(1), 0))
    kind = code.read(I32, extension, _EXTENSION_TYPE)
    with code.if_then(code.icmp_unsigned("!=", kind, ir.Constant(I32, _IS_METADATA))):
        code.ret(ir.Constant(ir.IntType(1), 0))
    api = code.read(POINTER, frame, _FRAME_API)
    metadata = code.read(POINTER, extension, _EXTENSION_METADATA)
    # Minor versions only append to the structs.
    code.write(ir.Constant(I32, 0), metadata, _METADATA_MAJOR)
    code.write(code.read(I32, api, _API_MINOR), metadata, _METADATA_MINOR)
    code.write(ir.Constant(I32, 0), metadata, _METADATA_TRAITS)
    code.ret(ir.Constant(ir.IntType(1), 1))


def register(module: ir.Module, names: Sequence[str], *, optimise: bool = True) -> dict[str, str]:
    """Compiles the module and registers its handlers with XLA: the target to call for each name.

    Targets carry a hash of the code, so that a program from a persistent cache never meets another version of it.

    Raises:
        UnsupportedError: no machine code can be made here.
    """
    suffix = fingerprint(module)
    targets = {name: f"distaff_cpu_{name}_{suffix}" for name in names}
    # XLA takes a target once in the life of a process; equal code needs no second one.
    if not _registered.issuperset(targets.values()):
        for name, address in compile_module(module, names, optimise=optimise).items():
            jax.ffi.register_ffi_target(targets[name], jax.ffi.pycapsule(ctypes.c_void_p(address)), platform="cpu")
        _registered.update(targets.values())
    return targets
