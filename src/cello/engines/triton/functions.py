"""The pointwise operations and reductions of the instruction set, in Triton.

They are made of what Triton's interpreter has as well, so that a test without a GPU runs the same
arithmetic. This file is read by Triton's compiler: it takes names of this module that are functions of
Triton's, or numbers marked as constant.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

IS_EMULATED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether Triton interprets its kernels on the CPU, where functions of a GPU's library are missing."""


@triton.jit
def copy(a):
    return a


stop = copy


@triton.jit
def neg(a):
    return a * -1.0  # before Triton 3.9 -a is 0 - a, which is +0 for +0


@triton.jit
def abs(a):
    return tl.abs(a)


@triton.jit
def sqrt(a):
    return tl.sqrt_rn(a) if a.dtype == tl.float32 else tl.sqrt(a)


@triton.jit
def exp(a):
    return tl.exp(a)


@triton.jit
def log(a):
    return tl.log(a)


@triton.jit
def expm1(a):
    # Kahan's: what exp has rounded is divided out again.
    u = tl.exp(a)
    near = u - 1.0
    is_small = (tl.abs(a) < 0.5) & (near != 0.0)
    logged = tl.where(is_small, tl.log(u), 1.0)
    return tl.where(tl.abs(a) >= 0.5, near, tl.where(near == 0.0, a, near * a / logged))


@triton.jit
def log1p(a):
    u = 1.0 + a
    near = u - 1.0
    is_plain = (near == 0.0) | (u == float("inf"))
    scaled = tl.log(u) * (a / tl.where(is_plain, 1.0, near))
    return tl.where(near == 0.0, a, tl.where(u == float("inf"), u, scaled))


@triton.jit
def tanh(a):
    # Of -2 |a|, so that nothing overflows.
    e = expm1(-2.0 * tl.abs(a))
    y = -e / (2.0 + e)
    return tl.where(a < 0.0, -y, tl.where(a == 0.0, a, y))


@triton.jit
def sigmoid(a):
    e = tl.exp(-tl.abs(a))
    y = 1.0 / (1.0 + e)
    return tl.where(a < 0.0, e * y, y)


@triton.jit
def erf(a):
    return tl.erf(a)


@triton.jit
def sin(a):
    return tl.sin(a)


@triton.jit
def cos(a):
    return tl.cos(a)


@triton.jit
def sign(a):
    return tl.where(a > 0.0, 1.0, tl.where(a < 0.0, -1.0, 0.0)).to(a.dtype)  # of NaN 0, as torch


@triton.jit
def floor(a):
    return tl.floor(a)


@triton.jit
def ceil(a):
    return tl.ceil(a)


@triton.jit
def trunc(a):
    return tl.where(a < 0.0, tl.ceil(a), tl.floor(a))


@triton.jit
def round(a):
    # To even: from here on the numbers of the dtype are whole, and the sum is rounded so.
    whole = 8388608.0 if a.dtype == tl.float32 else 4503599627370496.0
    size = tl.abs(a)
    y = (size + whole) - whole
    return tl.where(size < whole, tl.where(a < 0.0, -y, y), a)


@triton.jit
def relu(a):
    return tl.where(a <= 0.0, 0.0, a)


@triton.jit
def not_(a):
    return (a == 0.0).to(a.dtype)


@triton.jit
def reciprocal(a):
    return 1.0 / a


@triton.jit
def rsqrt(a):
    return 1.0 / sqrt(a)


@triton.jit
def erfc(a):
    # In float64: near zero from erf, and where that would cancel by a continued fraction.
    x = tl.abs(a).to(tl.float64)
    near = 1.0 - tl.erf(x)
    far = tl.maximum(x, 2.0)
    fraction = far
    for k in tl.static_range(60, 0, -1):
        fraction = far + k / (2.0 * fraction)
    # The square of the first digits is exact.
    digits = far.to(tl.float32).to(tl.float64)
    shrunk = tl.exp(-digits * digits) * tl.exp((digits - far) * (digits + far))
    y = tl.where(x < 2.0, near, shrunk / fraction * 0.5641895835477562869)
    y = tl.where(x > 27.5, 0.0, y)
    return tl.where(a != a, a, tl.where(a < 0.0, 2.0 - y, y)).to(a.dtype)


@triton.jit
def atan(a):
    # Reduced to at most tan(pi / 8), then a series: in float64, of which float32 keeps what it can.
    x = tl.abs(a).to(tl.float64)
    is_large = (x > 1.0).to(tl.float64)
    x = tl.where(x > 1.0, 1.0 / x, x)
    is_middle = (x > 0.4142135623730950488).to(tl.float64)
    x = tl.where(is_middle != 0.0, (x - 1.0) / (x + 1.0), x)
    square = x * x
    y = square * 0.0
    for k in tl.static_range(24, 0, -1):
        term = 1 - 2 * (k % 2)
        y = square * (term + (2 * k + 1) * y) / (2 * k + 1)
    y = x + x * y + is_middle * 0.7853981633974483096
    y = tl.where(is_large != 0.0, is_large * 1.5707963267948966192 - y, y).to(a.dtype)
    return tl.where(a < 0.0, -y, tl.where(a == 0.0, a, y))


@triton.jit
def atan2(y, x):
    quotient = atan(tl.abs(y) / tl.abs(x))
    quotient = tl.where((y == 0.0) & (x == 0.0), 0.0, quotient)
    are_infinite = ((tl.abs(y) == float("inf")) & (tl.abs(x) == float("inf"))).to(y.dtype)
    quotient = tl.where(are_infinite != 0.0, are_infinite * 0.7853981633974483096, quotient)
    is_left = ((x < 0.0) | ((x == 0.0) & (1.0 / x < 0.0))).to(y.dtype)
    angle = tl.where(is_left != 0.0, is_left * 3.1415926535897932385 - quotient, quotient)
    is_below = (y < 0.0) | ((y == 0.0) & (1.0 / y < 0.0))
    return tl.where((x != x) | (y != y), x + y, tl.where(is_below, -angle, angle))


@triton.jit
def asinh(a):
    x = tl.abs(a)
    # For large numbers the square would overflow.
    near = log1p(x + x * x / (1.0 + tl.sqrt(x * x + 1.0)))
    y = tl.where(x > 1e8, tl.log(x) + 0.6931471805599453094, near)
    return tl.where(a < 0.0, -y, tl.where(a == 0.0, a, y))


@triton.jit
def acosh(a):
    above = a - 1.0
    near = log1p(above + tl.sqrt(2.0 * above + above * above))
    y = tl.where(a > 1e8, tl.log(a) + 0.6931471805599453094, near)
    return tl.where(a < 1.0, float("nan"), y)


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def sub(a, b):
    return a - b


@triton.jit
def mul(a, b):
    return a * b


@triton.jit
def div(a, b):
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b


@triton.jit
def pow(a, b):
    # In float64, where the logarithm of a float32 is exact enough.
    x, y = a.to(tl.float64), b.to(tl.float64)
    size = tl.exp(y * tl.log(tl.abs(x)))
    is_whole = tl.floor(y) == y
    half = y * 0.5
    is_odd = is_whole & (tl.floor(half) != half)
    z = tl.where(x < 0.0, tl.where(is_whole, tl.where(is_odd, -size, size), float("nan")), size)
    # Infinity to a power is what the logarithm says, but for its sign.
    z = tl.where((x < 0.0) & (tl.abs(y) == float("inf")), size, z)
    z = tl.where((x == float("-inf")) & (is_whole == 0), size, z)
    z = tl.where((x == 0.0) & (y < 0.0), float("inf"), tl.where((x == 0.0) & (y > 0.0), 0.0, z))
    is_negative_zero = (x == 0.0) & (1.0 / x < 0.0)
    z = tl.where(is_negative_zero & is_odd, -z, z)
    is_one = (y == 0.0) | (x == 1.0) | ((x == -1.0) & (tl.abs(y) == float("inf")))
    return tl.where(is_one, 1.0, z).to(a.dtype)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def lt(a, b):
    return (a < b).to(a.dtype)


@triton.jit
def le(a, b):
    return (a <= b).to(a.dtype)


@triton.jit
def gt(a, b):
    return (a > b).to(a.dtype)


@triton.jit
def ge(a, b):
    return (a >= b).to(a.dtype)


@triton.jit
def eq(a, b):
    return (a == b).to(a.dtype)


@triton.jit
def ne(a, b):
    return (a != b).to(a.dtype)


@triton.jit
def tanh_gradient(g, y):
    return g * (1.0 - y * y)


@triton.jit
def sigmoid_gradient(g, y):
    return g * (1.0 - y) * y


@triton.jit
def replace(a, b):
    return b


@triton.jit
def hypot(a, b):
    x, y = tl.abs(a), tl.abs(b)
    large, small = tl.maximum(x, y), tl.minimum(x, y)
    ratio = small / tl.where(large == 0.0, 1.0, large)
    length = large * tl.sqrt(1.0 + ratio * ratio)
    length = tl.where((a != a) | (b != b), a + b, length)
    return tl.where((x == float("inf")) | (y == float("inf")), float("inf"), length).to(a.dtype)


@triton.jit
def fmod(a, b):
    # On a GPU the operator rounds the quotient, which may be the next whole number then.
    return a % b if IS_EMULATED else libdevice.fmod(a, tl.zeros_like(a) + b)


@triton.jit
def remainder(a, b):
    rest = fmod(a, b)
    return tl.where((rest != 0.0) & ((rest < 0.0) != (b < 0.0)), rest + b, rest)


@triton.jit
def where(c, a, b):
    return tl.where(c != 0.0, a, b)


@triton.jit
def muladd(a, b, c):
    return a * b + c


@triton.jit
def clamp(a, low, high):
    return minimum(maximum(a, low), high)


hardtanh = clamp


@triton.jit
def inside(a, x, low, high):
    return tl.where((x > low) & (x < high), a, 0.0).to(a.dtype)


@triton.jit
def within(a, x, low, high):
    return tl.where((x >= low) & (x <= high), a, 0.0).to(a.dtype)


@triton.jit
def amax(x, axis: tl.constexpr):
    return tl.reduce(x, axis, maximum)


@triton.jit
def amin(x, axis: tl.constexpr):
    return tl.reduce(x, axis, minimum)


@triton.jit
def dot(a, b):
    """The product of two numbers, of which the sum is taken."""
    return a * b


@triton.jit
def rank(a, b, i, j):
    """1 where b, at j, comes before a, at i."""
    comes_first = (b < a) | ((b == a) & (j < i)) | ((a != a) & ((b == b) | (j < i)))
    return tl.where(comes_first, 1.0, 0.0).to(a.dtype)


@triton.jit
def select(a, b, c):
    """C where a is b, and -0 elsewhere."""
    return tl.where(a == b, c, -0.0).to(c.dtype)


@triton.jit
def sum(x, axis: tl.constexpr):
    return tl.sum(x, axis)


@triton.jit
def floor_divide(a, b):
    rest = fmod(a, b)
    quotient = (a - rest) / b
    quotient = tl.where((rest != 0.0) & ((rest < 0.0) != (b < 0.0)), quotient - 1.0, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1.0, whole)
    return tl.where(b == 0.0, a / b, tl.where(quotient == 0.0, a / b * 0.0, whole)).to(a.dtype)


@triton.jit
def multiply(row, matrix, total, PRECISION: tl.constexpr):
    """Add a product of rows and a matrix to a sum, the rows rounded to the matrix's dtype."""
    if IS_EMULATED:  # by the interpreter, which has no products in half precision
        rounded = row.to(matrix.dtype).to(total.dtype)
        return tl.dot(rounded, matrix.to(total.dtype), total, out_dtype=total.dtype)
    return tl.dot(
        row.to(matrix.dtype), matrix, total, input_precision=PRECISION, out_dtype=total.dtype
    )


@triton.jit
def arrive(counter):
    """Count this program, whose writes are then seen by whoever waits for it."""
    tl.debug_barrier()  # until all threads of the program have written
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, goal):
    """Wait until so many programs have been counted, and see what they have written."""
    arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    while arrived < goal:
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
