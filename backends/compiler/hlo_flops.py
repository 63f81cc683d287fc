"""FLOPs of the matrix multiplications and convolutions of an HLO module, loops included.

XLA's own count takes every loop body once, and has none on GPUs.
"""

import re
from math import prod

import numpy as np

from .hlo import ARRAY, Instruction, Module
from .hlo_runs import Executions

_LABELS = re.compile(r"(\w+)_(\w+)->(\w+)")
_GEMM = re.compile(r'custom_call_target="__cublas')
_GEMM_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


def matmul_flops(module: Module, runs: Executions) -> int:
    """2 x multiplications, in one run of the module on one device."""
    total = 0
    for name, run in runs.of.items():
        instructions = module.computations[name]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            if instruction.opcode == "dot":
                total += run.count * _dot(instruction, shapes)
            elif instruction.opcode == "convolution":
                total += run.count * _convolution(instruction, shapes)
            elif instruction.opcode == "custom-call" and _GEMM.search(instruction.attributes):
                total += run.count * _gemm(instruction, shapes)
    return total


def _dims(shape: str) -> list[int]:
    """The axes of an array, or of a tuple's first one."""
    found = ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _dot(dot: Instruction, shapes: dict[str, str]) -> int:
    contracted = re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")
    left = _dims(shapes[dot.operands[0]])
    return 2 * prod(_dims(dot.shape)) * prod(left[int(axis)] for axis in contracted)


def _gemm(call: Instruction, shapes: dict[str, str]) -> int:
    found = _GEMM_CONTRACTED.search(call.attributes)
    contracted = re.findall(r"\d+", found[1]) if found else []
    left = _dims(shapes[call.operands[0]])
    return 2 * prod(_dims(call.shape)) * prod(left[int(axis)] for axis in contracted)


def _convolution(convolution: Instruction, shapes: dict[str, str]) -> int:
    """XLA writes matmuls as convolutions, their batch axes as windows in which most positions fall on padding; only
    the positions that exist are multiplied."""
    labels = _LABELS.match(convolution.attribute("dim_labels") or "")
    if labels is None:
        return 0
    left, kernel, out = (
        _dims(shape) for shape in (*(shapes[name] for name in convolution.operands), convolution.shape)
    )
    window = _Window(convolution.attribute("window") or "")
    flops = 2 * left[labels[1].index("f")] * out[labels[3].index("b")] * out[labels[3].index("f")]
    flops //= int(convolution.attribute("feature_group_count") or 1)
    flops //= int(convolution.attribute("batch_group_count") or 1)
    for axis in range(len(labels[1]) - 2):
        place = str(axis)
        flops *= window.positions(
            axis, left[labels[1].index(place)], kernel[labels[2].index(place)], out[labels[3].index(place)]
        )
    return flops


class _Window:
    """The `window={size=3x3 stride=2x2 pad=1_1x1_1 lhs_dilate=.. rhs_dilate=..}` of a convolution."""

    def __init__(self, text: str) -> None:
        self._fields = dict(re.findall(r"(\w+)=([\w\-]+)", text))

    def _field(self, name: str, axis: int, default: str) -> str:
        values = self._fields.get(name)
        return values.split("x")[axis] if values else default

    def positions(self, axis: int, left: int, kernel: int, out: int) -> int:
        """How many pairs of an output position and a position of the kernel meet an element of the left operand."""
        stride = int(self._field("stride", axis, "1"))
        before = int(self._field("pad", axis, "0_0").split("_")[0])
        left_step = int(self._field("lhs_dilate", axis, "1"))
        kernel_step = int(self._field("rhs_dilate", axis, "1"))
        places = np.arange(out) * stride - before
        met = 0
        for inside in range(kernel):
            offsets = places + inside * kernel_step
            elements = offsets // left_step
            met += int(np.count_nonzero((offsets % left_step == 0) & (elements >= 0) & (elements < left)))
        return met
