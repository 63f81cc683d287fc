"""Vector maths in LLVM IR: fp32 vectors of any length, and float32 or bfloat16 in memory.

Coefficients are minimax in relative error over the stated ranges (fitted for this file by reweighted least squares).
"""

from collections.abc import Sequence

from llvmlite import ir

from .jit import F32, I16, I32, Code, Value, features, vector

LOG2_E = 1.4426950408889634

# 2^x = 1 + x P(x) on [-1/2, 1/2]: 9.2e-8.
_EXP2 = (0.693146977598868, 0.2402224208517439, 0.05550733743677636, 0.009671512648856469, 0.001326472706919601)
# tanh(x) = x + x^3 P(x^2) on [0, 0.625]: 2e-8.
_TANH = (
    -0.33333328441805415,
    0.13332753094834016,
    -0.0538494037276286,
    0.02099210376930084,
    -0.006090993368059147,
)
_TANH_LIMIT = 0.625


def constant(value: float, lanes: int) -> ir.Constant:
    return ir.Constant(vector(F32, lanes), [value] * lanes)


def load(code: Code, dtype: str, lanes: int, pointer: Value) -> Value:
    """`lanes` consecutive elements as fp32."""
    if dtype == "float32":
        return code.read(vector(F32, lanes), pointer, align=4)
    return widened(code, code.read(vector(I16, lanes), pointer, align=2))


def widened(code: Code, value: Value) -> Value:
    """A vector as it is stored, fp32 or the bits of bfloat16, as fp32."""
    lanes = value.type.count
    if value.type.element == F32:
        return value
    words = vector(I32, lanes)
    wide: Value = code.zext(value, words)
    return code.bitcast(code.shl(wide, ir.Constant(words, [16] * lanes)), vector(F32, lanes))


def rounded(code: Code, value: Value, dtype: str) -> Value:
    """An fp32 vector as it is stored: itself, or the bits of bfloat16, to nearest even."""
    if dtype == "float32":
        return value
    kind = vector(I32, value.type.count)

    def bits(number: int) -> ir.Constant:
        return ir.Constant(kind, [number] * kind.count)

    raw = code.bitcast(value, kind)
    odd = code.and_(code.lshr(raw, bits(16)), bits(1))
    near = code.lshr(code.add(raw, code.add(odd, bits(0x7FFF))), bits(16))
    near = code.select(code.fcmp_unordered("uno", value, value), bits(0x7FC0), near)
    return code.trunc(near, vector(I16, kind.count))


def fma(code: Code, a: Value, b: Value, c: Value) -> Value:
    """a * b + c, rounded once where the processor can: then everywhere."""
    return code.intrinsic(f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)


def largest(code: Code, a: Value, b: Value) -> Value:
    """The larger one, lane by lane; b where a is NaN."""
    return code.select(code.fcmp_ordered(">", a, b), a, b)


def exp2(code: Code, x: Value) -> Value:
    """2^x for x <= 127, within 3 ulp; exactly 0 below -126, and exactly 1 at 0."""
    kind, lanes = x.type, x.type.count
    lowest = constant(-126.0, lanes)
    inside = largest(code, lowest, x)
    if lanes == 16 and "avx512f" in features():
        whole = code.intrinsic("llvm.rint.v16f32", kind, inside)
        power = _power(code, code.fsub(inside, whole))
        everywhere, current = ir.Constant(I16, -1), ir.Constant(I32, 4)
        scaled = "llvm.x86.avx512.mask.scalef.ps.512"
        power = code.intrinsic(scaled, kind, power, whole, power, everywhere, current)
        return code.select(code.fcmp_ordered("<", x, lowest), constant(0.0, lanes), power)
    # Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
    shift = constant(1.5 * 2**23, lanes)
    shifted = code.fadd(inside, shift)
    power = _power(code, code.fsub(inside, code.fsub(shifted, shift)))
    bits = vector(I32, lanes)
    exponent = code.shl(code.bitcast(shifted, bits), ir.Constant(bits, [23] * lanes))
    power = code.bitcast(code.add(code.bitcast(power, bits), exponent), kind)
    return code.select(code.fcmp_ordered("<", x, lowest), constant(0.0, lanes), power)


def _power(code: Code, x: Value) -> Value:
    """2^x on [-1/2, 1/2]."""
    return fma(code, _polynomial(code, _EXP2, x), x, constant(1.0, x.type.count))


def tanh(code: Code, x: Value) -> Value:
    """tanh(x) within 3 ulp."""
    lanes = x.type.count
    size = code.intrinsic(f"llvm.fabs.v{lanes}f32", x.type, x)
    square = code.fmul(x, x)
    near = fma(code, code.fmul(square, x), _polynomial(code, _TANH, square), x)
    # Beyond 0.625, 1 - 2 / (exp(2 |x|) + 1) cancels nothing; beyond 10 it is 1.
    size = code.select(code.fcmp_ordered(">", size, constant(10.0, lanes)), constant(10.0, lanes), size)
    one = constant(1.0, lanes)
    power = exp2(code, code.fmul(size, constant(2 * LOG2_E, lanes)))
    far = code.fsub(one, code.fdiv(constant(2.0, lanes), code.fadd(power, one)))
    far = code.intrinsic(f"llvm.copysign.v{lanes}f32", x.type, far, x)
    return code.select(code.fcmp_ordered("<", size, constant(_TANH_LIMIT, lanes)), near, far)


def reduced(code: Code, values: Value, largest_of: bool = False) -> Value:
    """The sum of the lanes, or the largest one, by halves."""
    while (lanes := values.type.count) > 1:
        low, high = (
            code.shuffle_vector(values, values, ir.Constant(vector(I32, lanes // 2), list(range(*bounds))))
            for bounds in ((lanes // 2,), (lanes // 2, lanes))
        )
        values = largest(code, low, high) if largest_of else code.fadd(low, high)
    return code.extract_element(values, ir.Constant(I32, 0))


def _polynomial(code: Code, coefficients: Sequence[float], x: Value) -> Value:
    """Horner's rule, the constant first."""
    *others, value = (constant(c, x.type.count) for c in coefficients)
    for coefficient in reversed(others):
        value = fma(code, value, x, coefficient)
    return value
