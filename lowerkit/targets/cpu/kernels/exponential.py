"""e^z in registers: by a polynomial, or by a shorter one and a table that a register holds.

Both take z as n ln 2 / s + r with a whole number n, s = 1 or the table's size. n is rounded by adding a number so
large that n is left in the last bits of the sum, where it is an index and, shifted, an exponent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from lowerkit.numerics.polynomial import minimax
from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.targets.cpu.kernels.vectors import f32, fuses_products, lanes_of, vector_lanes

#: e^z of a number or a vector, for z <= 88.
Exponential = Callable[[Expr], Expr]

_LOG2E = 1.4426950408889634
#: ln 2 in two parts, the first short enough that its product with an exponent is exact.
_LN2_HIGH, _LN2_REST = 0.693359375, 2.12194440054690583e-4
#: 1.5 2^23, to which whole numbers are added without rounding, and the bias of a float32's exponent.
_ROUNDING, _BIAS = 12582912.0, 127
#: Where z stays: the power of two there is 0.
_LOWEST = -88.0
#: Roots of two in a register of AVX2, and log2 of how many.
_ROOTS, _STEPS = 8, 3
_LOOKUP = "lowerkit_roots_of_two"


def reduced(z: Expr, n: Expr) -> Expr:
    """r of e^z = e^r 2^n, within half of ln 2."""
    return z - n * f32(_LN2_HIGH) + n * f32(_LN2_REST)


def horner(coefficients: Sequence[Expr], r: Expr) -> Expr:
    """The polynomial with `coefficients`, highest power first."""
    p = coefficients[0]
    for coefficient in coefficients[1:]:
        p = p * r + coefficient
    return p


@functools.cache
def exact_coefficients() -> tuple[Expr, ...]:
    """e^r's for |r| <= ln(2) / 2, highest power first: off by 2^-25.8 of it, less than a rounding."""
    return tuple(f32(float(c)) for c in PolyExp(degree=6).polynomial().array())


def polynomial_exponential(z: Expr, coefficients: Sequence[Expr]) -> Expr:
    """e^z for z <= 88, a number or a vector; 0 where that is below 2^-126.5; NaN stays.

    `coefficients`, highest power first, are of the polynomial for e^r.
    """
    # With the constant on the left a NaN stays one: max keeps its right argument then.
    bounded = tirx.max(f32(_LOWEST), z)
    shifted = bounded * f32(_LOG2E) + f32(_ROUNDING + _BIAS)
    dtype = str(shifted.ty.dtype)
    bits = tirx.reinterpret(dtype.replace("float", "int"), shifted)
    power = tirx.reinterpret(dtype, bits << tirx.const(23, "int32"))
    # As bits and back: TVM would take the sum and the difference for nothing.
    n = tirx.reinterpret(dtype, bits) - f32(_ROUNDING + _BIAS)
    # Where products are fused with sums, one part of ln 2 leaves 127 2^-29.
    r = bounded - n * f32(math.log(2)) if fuses_products() else reduced(bounded, n)
    if not (isinstance(coefficients[-1], tirx.FloatImm) and float(coefficients[-1].value) == 1):
        return horner(coefficients, r) * power
    # The last product and sum the other way round: a sum of such terms then needs no product of its own.
    return horner(coefficients[:-1], r) * (r * power) + power


def exact_exponential(z: Expr) -> Expr:
    """e^z for z <= 88, a number or a vector, to be called within `imported`; NaN stays.

    Off by a rounding and 2^-24.6 of it, and by 2^-22 where it is near 2^-126, below which it is less than that.
    """
    lanes = lanes_of(z)
    if not _in_register() or lanes > _ROOTS:
        return polynomial_exponential(z, exact_coefficients())
    if lanes == _ROOTS:
        return _by_roots(z)
    wide = tirx.Broadcast(z, _ROOTS) if lanes == 1 else _repeated(z, lanes)
    return tirx.Shuffle([T.bind(_by_roots(T.bind(wide)))], list(range(lanes)))


def _repeated(vector: Expr, lanes: int) -> Expr:
    return tirx.Shuffle([vector] * -(-_ROOTS // lanes), list(range(_ROOTS)))


def imported() -> AbstractContextManager[object]:
    """The scope in which `exact_exponential` may be called."""
    return T.attr({"pragma_import_llvm": _lookup()}) if _in_register() else nullcontext()


def _in_register() -> bool:
    """Whether the processor looks numbers up in a register of as many lanes as the table has entries."""
    return vector_lanes() == _ROOTS


def _by_roots(z: Expr) -> Expr:
    """With n = 8 i + j, e^z = 2^i 2^(j / 8) e^r and |r| <= ln(2) / 16, for which a cubic polynomial will do."""
    rounding = f32(_ROUNDING + _BIAS * _ROOTS)
    # With the constant on the left a NaN stays one: max keeps its right argument then.
    bounded = T.bind(tirx.max(f32(_LOWEST), z))
    bits = T.bind(tirx.reinterpret(f"int32x{_ROOTS}", bounded * f32(_LOG2E * _ROOTS) + rounding))
    root = tirx.call_pure_extern(f"int32x{_ROOTS}", _LOOKUP, bits)
    power = T.bind(tirx.reinterpret(f"float32x{_ROOTS}", root + (bits << tirx.const(23 - _STEPS, "int32"))))
    # As bits and back: TVM would take the sum and the difference for nothing.
    n = tirx.reinterpret(f"float32x{_ROOTS}", bits) - rounding
    r = T.bind(bounded - n * f32(math.log(2) / _ROOTS))
    # The last product and sum the other way round: a sum of such terms then needs no product of its own.
    return horner(_cubic()[:-1], r) * (r * power) + power


@functools.cache
def _cubic() -> tuple[Expr, ...]:
    reach = 0.5001 * math.log(2) / _ROOTS  # and what rounding may add
    fitted = minimax(np.exp, -reach, reach, 3, curvature=math.exp(reach), relative=True).array()
    assert fitted[-1] == 1
    return tuple(f32(float(c)) for c in fitted)


def _lookup() -> str:
    """2^(j / 8) by the last bits j of each lane, less 1's exponent and less j where the shift leaves it."""
    roots = (2 ** (np.arange(_ROOTS) / _ROOTS)).astype(np.float32).view(np.int32)
    entries = roots - (_BIAS << 23) - (np.arange(_ROOTS) << (23 - _STEPS))
    vector = f"<{_ROOTS} x i32>"
    return f"""
declare {vector} @llvm.x86.avx2.permd({vector}, {vector})
define linkonce_odr {vector} @{_LOOKUP}({vector} %n) alwaysinline {{
  %root = call {vector} @llvm.x86.avx2.permd({vector} <{", ".join(f"i32 {entry}" for entry in entries)}>, {vector} %n)
  ret {vector} %root
}}
"""
