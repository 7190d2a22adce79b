"""exp, erf, tanh, sigmoid and log of float32 as arithmetic, so that loops with them run on vectors.

TVM calls the C library element by element. Each function here is range reduction and a polynomial, without a branch;
infinities, zeros and NaN give what IEEE 754 wants, and exp reaches into the subnormals. Errors in units in the last
place, over all float32 in steps of 97 (tests/test_cpu_functions.py): exp 2, log 2, tanh 3, sigmoid 3, erf 4.

Polynomials for erf, tanh and log are those of the Cephes library (Moshier, Methods and Programs for Mathematical
Functions, 1989: erff, tanhf, logf), the tail of erf is formula 7.1.26 of Abramowitz and Stegun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr

from lowerkit.passes.softmax.poly_exp import PolyExp
from lowerkit.targets.cpu.kernels.exponential import horner, reduced
from lowerkit.targets.cpu.kernels.vectors import f32

_LOG2E = 1.4426950408889634
#: 1.5 2^23: what is added to it is rounded to a whole number, which is left in the last bits.
_ROUNDING = 12582912.0
_ERF = (
    *(7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2),
    *(1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710),
)
_ERF_TAIL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


@tvm.transform.module_pass(opt_level=0, name="VectorFunctions")
class VectorFunctions:
    """Replace calls of these functions, on float32, in every TIR function."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        for variable, function in list(module.functions_items()):
            if isinstance(function, tirx.PrimFunc):
                module[variable] = tvm_ffi.structural_map(function, (tvm.ir.Call, _replaced))
        return module


def _replaced(call: tvm.ir.Call) -> Expr:
    function = _FUNCTIONS.get(getattr(call.op, "name", ""))
    if function is None or str(call.ty.dtype) != "float32":
        return call
    return _named("x", call.args[0], function)


def _named(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a name for `value`, which is then computed once."""
    if isinstance(value, tirx.Var):
        return body(value)
    variable = tirx.Var(name, "float32")
    return tirx.Let(variable, value, body(variable))


def _polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    return horner([f32(c) for c in coefficients], x)


def exp(x: Expr) -> Expr:
    """e^x = 2^n e^r; the power of two in two factors, so that the last product alone rounds to a subnormal."""
    # With constants on the left a NaN stays one.
    return _named("bounded", tirx.min(f32(89), tirx.max(f32(-104), x)), _exp)


def _exp(x: Expr) -> Expr:
    def scaled(shifted: Expr) -> Expr:
        bits = tirx.reinterpret("int32", shifted)
        # As bits and back: TVM would take the sum and the difference for nothing.
        n = tirx.reinterpret("float32", bits) - f32(_ROUNDING)
        whole = bits - tirx.reinterpret("int32", f32(_ROUNDING))
        half = whole >> 1
        return (
            _named(
                "r",
                reduced(x, n),
                lambda r: _polynomial([float(c) for c in PolyExp(degree=7).polynomial().array()], r),
            )
            * tirx.reinterpret("float32", (half + 127) << 23)
            * tirx.reinterpret("float32", (whole - half + 127) << 23)
        )

    return _named("shifted", x * f32(_LOG2E) + f32(_ROUNDING), scaled)


def _exp_below(x: Expr) -> Expr:
    """e^x for x <= 0."""
    return _named("below", tirx.max(f32(-104), x), _exp)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x) from e^-|x|, which loses nothing on either side."""
    return _named(
        "e",
        _exp_below(f32(0) - tirx.abs(x)),
        lambda e: tirx.Select(x < f32(0), e, f32(1) + e * f32(0)) / (f32(1) + e),
    )


def tanh(x: Expr) -> Expr:
    """(1 - e) / (1 + e) with e = e^-2|x|; near 0, where that cancels, an odd polynomial."""

    def far(size: Expr) -> Expr:
        return _named("e", _exp_below(size * f32(-2)), lambda e: (f32(1) - e) / (f32(1) + e))

    def near(square: Expr) -> Expr:
        return x * (f32(1) + square * _polynomial(_TANH, square))

    return tirx.Select(
        tirx.abs(x) < f32(0.625),
        _named("square", x * x, near),
        _with_sign(far(tirx.abs(x)), x),
    )


def erf(x: Expr) -> Expr:
    """An odd polynomial up to 1, and 1 - t p(t) e^-x² with t = 1 / (1 + 0.3275911 |x|) beyond."""

    def tail(size: Expr) -> Expr:
        t = f32(1) / (f32(1) + size * f32(0.3275911))
        e = _exp_below(f32(0) - size * size)
        return _named("t", t, lambda t: f32(1) - t * _polynomial(_ERF_TAIL, t) * e)

    near = _named("square", x * x, lambda square: x * _polynomial(_ERF, square))
    return tirx.Select(tirx.abs(x) < f32(1), near, _with_sign(_named("size", tirx.abs(x), tail), x))


def log(x: Expr) -> Expr:
    """n ln 2 + log m with m = x 2^-n within [2^-1/2, 2^1/2)."""
    # Subnormals have no exponent of their own.
    small = x < f32(2.0**-126)
    return _named("normal", tirx.Select(small, x * f32(2.0**23), x), lambda y: _log(x, y, small))


def _log(x: Expr, normal: Expr, small: Expr) -> Expr:
    bits = tirx.reinterpret("int32", normal)
    # Of the mantissa's bits, those of 2^-1/2: what is above has the next exponent.
    offset = bits - 0x3F3504F3
    n = (offset >> 23).astype("float32") - tirx.Select(small, f32(23), f32(0))
    m = tirx.reinterpret("float32", (offset & 0x7FFFFF) + 0x3F3504F3) - f32(1)

    def value(m: Expr) -> Expr:
        square = m * m
        rest = m * square * _polynomial(_LOG, m) + n * f32(-2.12194440e-4) - square * f32(0.5)
        return m + rest + n * f32(0.693359375)

    infinite = tirx.Select(x == f32(0), f32(-math.inf), f32(math.nan))
    proper = tirx.Select(x < f32(math.inf), _named("m", m, value), x)
    return tirx.Select(x > f32(0), proper, tirx.Select(tirx.isnan(x), x, infinite))


def _with_sign(size: Expr, x: Expr) -> Expr:
    return tirx.Select(x < f32(0), f32(0) - size, size)


_FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    f"tirx.{function.__name__}": function for function in (exp, erf, log, sigmoid, tanh)
}
