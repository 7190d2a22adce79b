"""Activation methods of every function: against 60-digit arithmetic, at every scale of x."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body, model_of, run

from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.activation import (
    composite,
    interval_poly,
    piecewise_affine,
    piecewise_linear,
    poly,
    rational,
    table,
)
from lowerkit.passes.activation.base import ActivationMethod, CoreMethod
from lowerkit.passes.activation.composite import CompositeActivation
from lowerkit.passes.activation.forms import ReluLessBump
from lowerkit.passes.activation.interval_poly import IntervalPolyActivation
from lowerkit.passes.activation.piecewise_affine import PiecewiseAffineActivation
from lowerkit.passes.activation.piecewise_linear import PiecewiseLinearActivation
from lowerkit.passes.activation.poly import PolyActivation
from lowerkit.passes.activation.rational import RationalActivation

mpmath.mp.dps = 60
M = mpmath.mpf
TRUTH: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "gelu": lambda v: v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2,
    "tanh-gelu": lambda v: v / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (v + M("0.044715") * v**3))),
    "silu": lambda v: v / (1 + mpmath.exp(-v)),
    "mish": lambda v: v * mpmath.tanh(mpmath.log1p(mpmath.exp(v))),
    "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
    "tanh": mpmath.tanh,
    "softplus": lambda v: mpmath.log1p(mpmath.exp(v)),
    "erf": mpmath.erf,
    "exp": mpmath.exp,
    "reciprocal": lambda v: 1 / v,
    "rsqrt": lambda v: 1 / mpmath.sqrt(v),
    "relu": lambda v: max(v, M(0)),
}
CORES: list[CoreMethod] = [
    *(cls() for kind in (table, piecewise_linear, poly, rational) for cls in kind.METHODS.values()),
    *(cls(segments=64, interpolate=False) for cls in table.METHODS.values()),
    table.METHODS["gelu"](segments=16, limit=2.0),
    poly.METHODS["tanh"](degree=4, limit=3),
    piecewise_linear.METHODS["silu"](segments=3),
    rational.METHODS["softplus"](numerator=3, denominator=2),
]
INTERVALS: list[ActivationMethod] = [
    *(cls() for kind in (interval_poly, composite) for cls in kind.METHODS.values()),
    interval_poly.METHODS["gelu"](degree=31, low=-5.0, high=5.0),
    interval_poly.METHODS["silu"](degree=6, low=-3.0, high=5.0),
    composite.METHODS["sigmoid"](inner=3, outer=15, limit=20.0),
]
AFFINE: list[ActivationMethod] = [cls() for cls in piecewise_affine.METHODS.values()]
METHODS: list[ActivationMethod] = [*CORES, *AFFINE, *INTERVALS]
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
everywhere = pytest.mark.parametrize("method", [*CORES, *AFFINE], ids=str)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def domain(method: ActivationMethod) -> tuple[float, float]:
    """Where the method's bound holds, or where the function has a normal float32."""
    if isinstance(method, IntervalPolyActivation):
        return method.low, method.high
    if isinstance(method, CompositeActivation):
        return -method.limit, method.limit
    named = {"exp": (-87.0, 88.5), "reciprocal": (2.0**-125, 2.0**125), "rsqrt": (2.0**-125, 2.0**125)}
    return named.get(method.family, (-1e4, 1e4))


def reals(method: ActivationMethod) -> st.SearchStrategy[float]:
    """Numbers of the domain: near 0, where functions turn, and at all scales."""
    low, high = domain(method)
    near = st.floats(max(low, -9), min(high, 9))
    return st.one_of(near, st.floats(low, high))


def variants(method: ActivationMethod) -> list[str]:
    return ["gelu", "tanh-gelu"] if method.family == "gelu" else [method.family]


def truth(name: str, x: np.ndarray) -> np.ndarray:
    return np.array([float(TRUTH[name](M(float(v)))) for v in x.ravel()]).reshape(x.shape)


def model_attributes(name: str) -> dict[str, str]:
    return {"approximate": "tanh"} if name == "tanh-gelu" else {}


def op(method: ActivationMethod) -> str:
    return method.of.op


def sensitivity(method: ActivationMethod, x: np.ndarray, tanh: bool) -> np.ndarray:
    """How much float32's rounding of the steps can move the result: a multiple of U, by kind."""
    y = np.abs(method.evaluate(x, tanh=tanh))
    scale = y + np.abs(x) if isinstance(method.of.form, ReluLessBump) else y
    if isinstance(method, IntervalPolyActivation):
        # |T_k'| <= k^2: t is off by some U, and so are the steps.
        c = np.abs(method.series(int(tanh)).coefficients)
        return 8 * U * np.full(x.shape, (c * (1 + np.arange(len(c)) ** 2)).sum())
    if isinstance(method, CompositeActivation):
        both = method.composite()
        inner, outer = (np.abs(c) for c in (both.inner, both.outer))
        reach = np.polynomial.polynomial.polyval(inner.sum(), outer * np.arange(len(outer)))
        return 64 * U * np.full(x.shape, 1 + inner.sum() * reach)
    if isinstance(method, PiecewiseAffineActivation):  # in float64, rounded once
        return 2 * U * y + 1e-45
    size = 8.0
    if isinstance(method, PolyActivation):
        size = 4 * method.degree * sum(np.abs(method.fitted(int(tanh)).polynomial.coefficients))
    if isinstance(method, RationalActivation):
        quotient = method.fitted(int(tanh)).rational
        size = 16 * (sum(np.abs(quotient.numerator)) + sum(np.abs(quotient.denominator)))
    if isinstance(method, PiecewiseLinearActivation):
        size = 16 * method.reach
    if method.of.form.relative:
        # x - n ln 2 is off by a few U of |x| at most, which the exponential makes relative.
        return U * y * (size + 8 + (np.abs(x) if method.family == "exp" else 0))
    return U * (size + 8 * scale + 8)


@each_method
@settings(max_examples=40)
@given(st.data())
def test_model_is_within_the_bound(method: ActivationMethod, data: st.DataObject) -> None:
    x = data.draw(reals(method))
    bound = method.bound()
    assert bound is not None
    for tanh, name in enumerate(variants(method)):
        found, exact = M(float(method.evaluate(np.array(x), tanh=bool(tanh)))), TRUTH[name](M(x))
        allowed = bound.value * (abs(exact) if bound.kind == "relative" else 1)
        # 1e-14: the model itself is in float64.
        assert abs(found - exact) <= allowed + 1e-14 * (abs(exact) + abs(x) + 1)


@each_method
def test_bound_is_not_idle(method: ActivationMethod) -> None:
    """The bound is met somewhere, up to a factor: where it was certified, beyond it, or by a form of two."""
    low, high = domain(method)
    reach = min(3 * getattr(method, "reach", 5.0), high)
    x = np.linspace(max(low, -reach), reach, 4001) if low < 0 else np.linspace(1.0, min(8.0, high), 4001)
    if method.family == "exp" and not isinstance(method, IntervalPolyActivation):
        x = np.linspace(-1.0, 1.0, 4001)
    worst = 0.0
    bound = method.bound()
    assert bound is not None
    for tanh, name in enumerate(variants(method)):
        exact = truth(name, x)
        error = np.abs(method.evaluate(x, tanh=bool(tanh)) - exact)
        worst = max(worst, float((error / np.abs(exact) if bound.kind == "relative" else error).max()))
    assert worst <= bound.value + 1e-12
    # A table's bound has the largest curvature everywhere; the smallest bounds are float32's rounding.
    assert worst >= 0.15 * bound.value - 1e-7


@each_method
@settings(max_examples=15)
@given(st.data())
def test_body_is_the_model_up_to_rounding(method: ActivationMethod, data: st.DataObject) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
    low, high = domain(method)
    elements = st.floats(float(np.float32(max(low, -64))), float(np.float32(min(high, 64))), width=32)
    x = data.draw(hnp.arrays(np.float32, shapes, elements=elements))
    for tanh, name in enumerate(variants(method)):
        y = body(method, op(method), x, model_attributes(name))
        model = method.evaluate(x, tanh=bool(tanh))
        near = sensitivity(method, x.astype(np.float64), bool(tanh))
        if getattr(method, "interpolate", True):
            assert np.all(np.abs(y - model) <= near)
        else:  # half-way between entries rounding chooses either
            bound = method.bound()
            assert bound is not None
            size = np.abs(model) if bound.kind == "relative" else 1.0
            assert np.all(np.abs(y - model) <= 2.1 * bound.value * size + near)


@each_method
def test_body_on_a_dense_grid(method: ActivationMethod) -> None:
    """The body against onnxruntime's own operator, whose error is a few roundings."""
    low, high = domain(method)
    x = np.linspace(max(low, -20.0), min(high, 20.0), 50_001).astype(np.float32)
    bound = method.bound()
    assert bound is not None
    for tanh, name in enumerate(variants(method)):
        expected = run(model_of(op(method), x, model_attributes(name)), x).astype(np.float64)
        y = body(method, op(method), x, model_attributes(name))
        allowed = bound.value * (np.abs(expected) if bound.kind == "relative" else 1)
        near = sensitivity(method, x.astype(np.float64), bool(tanh))
        own = 2e-6 * (np.abs(expected) + (bound.kind == "absolute"))
        assert np.all(np.abs(y - expected) <= allowed + near + own)


@everywhere
def test_ugly_values(method: ActivationMethod) -> None:
    x = np.array([np.nan, np.inf, 3.4e38, 1e-45, 0, -0.0, -1e-45, -3.4e38], np.float32)
    bound = method.bound()
    assert bound is not None
    relative = bound.kind == "relative"
    for name in variants(method):
        expected = run(model_of(op(method), x, model_attributes(name)), x)
        y = body(method, op(method), x, model_attributes(name))
        np.testing.assert_allclose(
            y,
            expected,
            rtol=1e-6 + (bound.value if relative else 0),
            atol=0 if relative else bound.value + 1e-6,
        )
        lowest = body(method, op(method), np.array([-np.inf], np.float32), model_attributes(name))
        if method.family in ("gelu", "silu", "mish"):
            # Their own formula gives -inf * 0 there; the methods their value for every large negative number.
            below = body(method, op(method), np.array([-3e38], np.float32), model_attributes(name))
            assert lowest == below
        else:
            limit = run(model_of(op(method), lowest), np.array([-np.inf], np.float32))
            np.testing.assert_allclose(lowest, limit, atol=bound.value + 1e-6)


@pytest.mark.parametrize("method", INTERVALS, ids=str)
def test_intervals_keep_nan(method: ActivationMethod) -> None:
    assert np.isnan(body(method, op(method), np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("family", ["sigmoid", "tanh", "erf", "exp"])
@pytest.mark.parametrize("kind", [table, piecewise_affine])
def test_rising_functions_rise(kind: Any, family: str) -> None:
    x = np.linspace(-8, 8, 20_001)
    assert np.all(np.diff(kind.METHODS[family]().evaluate(x)) >= -1e-15)


@pytest.mark.parametrize("kind", [table, piecewise_linear, poly, rational])
@pytest.mark.parametrize("family", ["gelu", "silu", "tanh", "sigmoid", "softplus"])
def test_max_error_chooses_the_least_size(kind: object, family: str) -> None:
    cls = kind.METHODS[family]  # type: ignore[attr-defined]
    method = cls(max_error=2e-3)
    assert method.bound().value <= 2e-3
    size = {"table": "segments", "piecewise-linear": "segments", "poly": "degree", "rational": "numerator"}[
        cls.name
    ]
    chosen = getattr(method, size)
    smaller = chosen // 2 if cls.name == "table" else chosen - 1
    if smaller > 0:
        assert cls(**{size: smaller}).bound().value > 2e-3
    with pytest.raises(ValueError, match="out of reach: the least bound"):
        cls(max_error=1e-12)


def test_chosen_breakpoints_beat_equal_steps() -> None:
    for family in ("gelu", "silu", "tanh", "erf"):
        few = piecewise_linear.METHODS[family](segments=16).bound().value
        equal = table.METHODS[family](segments=32).bound().value
        assert few < equal


def test_table_of_a_thirty_second() -> None:
    """Steps of 2^-5, Edge-MoE's: within 1e-4 of GELU everywhere."""
    assert table.METHODS["gelu"](segments=192, limit=6.0).bound().value < 1e-4


def test_zero_stays_zero_in_tables() -> None:
    for family in ("gelu", "silu", "tanh", "erf"):
        assert (
            body(table.METHODS[family](), op(table.METHODS[family]()), np.zeros(3, np.float32)).tolist()
            == [0] * 3
        )


def stats_of(*arrays: np.ndarray) -> TensorStats:
    stats = TensorStats()
    for array in arrays:
        stats.update(array)
    return stats


def test_intervals_come_from_calibration() -> None:
    x = np.linspace(-3, 2, 1000, dtype=np.float32)
    odd = interval_poly.METHODS["tanh"].fit(stats_of(x), {})
    assert (odd.low, odd.high) == (-4.5, 4.5)
    general = interval_poly.METHODS["exp"].fit(stats_of(x), {"margin": 2.0})
    assert (general.low, general.high) == (-5.5, 4.5)
    positive = interval_poly.METHODS["reciprocal"].fit(stats_of(np.float32([1, 4])), {"margin": 2.0})
    assert (positive.low, positive.high) == (0.5, 8.0)
    both = composite.METHODS["erf"].fit(stats_of(x), {})
    assert both.limit == 4.5
    for method in (odd, general, both):
        assert method.outside(stats_of(x)) is None
        assert "and the" in str(method.outside(stats_of(4 * x)))
    given = interval_poly.METHODS["tanh"].fit(stats_of(x), {"low": -2.0, "high": 2.0})
    assert (given.low, given.high) == (-2.0, 2.0)


@pytest.mark.parametrize("family", ["gelu", "silu", "exp", "sigmoid"])
def test_least_squares_is_better_where_the_data_is(family: str) -> None:
    rng = np.random.default_rng(0)
    stats = stats_of(rng.normal(0, 0.7, (50, 40)).astype(np.float32), np.full((1, 40), 5, np.float32))
    cls = interval_poly.METHODS[family]
    minimax = cls.fit(stats, {"degree": 8})
    weighted = cls.fit(stats, {"degree": 8, "fitting": "least-squares"})
    assert len(weighted.coefficients) == 9
    assert (minimax.low, minimax.high) == (weighted.low, weighted.high)
    x = rng.normal(0, 0.7, 4000)
    exact = truth(family, x)
    unit = exact if weighted.relative else 1.0
    errors = [np.mean(((m.evaluate(x) - exact) / unit) ** 2) for m in (minimax, weighted)]
    assert errors[1] < 0.3 * errors[0]
    bounds = [m.bound().value for m in (minimax, weighted)]
    assert bounds[0] < bounds[1]
    again = cls(**vars(weighted))
    assert again.bound() == weighted.bound()


@pytest.mark.parametrize(("wanted", "degree"), [(0.2, 15), (0.05, 31), (1e-4, 63)])
def test_the_least_degree_of_whole_levels_within_an_error(wanted: float, degree: int) -> None:
    """1/x over a factor of 100, whose best relative error is 1 / T_(d+1)((high + low) / (high - low))."""
    cls = interval_poly.METHODS["reciprocal"]
    stats = stats_of(np.float32([2.0, 50.0]))
    method = cls.fit(stats, {"margin": 2.0, "max_error": wanted})
    assert (method.low, method.high, method.degree) == (1.0, 100.0, degree)
    best = 1 / math.cosh((degree + 1) * math.acosh(101 / 99))
    found = method.bound().value
    assert best * 0.99 <= found <= wanted
    assert cls(low=1.0, high=100.0, degree=(degree - 1) // 2).bound().value > wanted
    x = np.geomspace(1, 100, 5001)
    assert np.abs(method.evaluate(x) * x - 1).max() <= found
    assert cls(**vars(method)) == method


def test_symmetry_leaves_half_of_the_coefficients_out() -> None:
    odd = interval_poly.METHODS["tanh"](degree=9).series()
    assert not any(odd.coefficients[0::2])
    gelu = interval_poly.METHODS["gelu"](degree=8).series()
    assert not any(gelu.coefficients[3::2])
    assert gelu.coefficients[1] == np.float32(4.0)  # x / 2 on [-8, 8]


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (interval_poly.METHODS["rsqrt"], {"low": -1.0, "high": 2.0}, "low must be a number from"),
        (interval_poly.METHODS["tanh"], {"low": 2.0, "high": 1.0}, "low must be less than high"),
        (interval_poly.METHODS["tanh"], {"fitting": "nearest"}, "minimax or least-squares"),
        (interval_poly.METHODS["tanh"], {"max_error": 1.0}, "max_error must be a number from 0 to 1"),
        (
            interval_poly.METHODS["tanh"],
            {"max_error": 1e-9},
            "out of reach .*: degree 63 gives .*; choose a smaller",
        ),
        (interval_poly.METHODS["exp"], {"low": -100.0, "high": 0.0}, "low must be a number from -80 to 80"),
        (interval_poly.METHODS["tanh"], {"degree": 3, "coefficients": (1.0,)}, "4 finite numbers"),
        (composite.METHODS["tanh"], {"inner": 4}, "odd integer from 3 to 15"),
        (composite.METHODS["tanh"], {"limit": -1.0}, "limit must be"),
        (table.METHODS["mish"], {"segments": 48.5}, "segments must be an integer"),
        (table.METHODS["mish"], {"interpolate": 1}, "true or false"),
        (table.METHODS["mish"], {"max_error": -1.0}, "max_error must be a number"),
        (rational.METHODS["mish"], {"denominator": 9}, "denominator must be an integer from 1 to 8"),
    ],
)
def test_bad_options_are_refused(cls: type[ActivationMethod], options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cls(**options)


def test_composite_refuses_what_it_cannot_follow() -> None:
    method = composite.METHODS["tanh"](inner=3, outer=3, limit=1000.0)
    node = model_of("Tanh", np.zeros((2, 2), np.float32)).graph.node("n")
    assert "raise the degrees" in str(method.refuses(node))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu", "tanh-gelu"])
@pytest.mark.parametrize("kind", [table, poly, piecewise_linear, rational], ids=lambda kind: kind.__name__)
def test_every_float32_of_gelus_range(kind: object, name: str) -> None:
    """Every float32 from 2^-10 to 8, whose error is that of its negative too; the bump's slope does below."""
    method: CoreMethod = kind.METHODS["gelu"]()  # type: ignore[attr-defined]
    tanh = name == "tanh-gelu"
    whole = method.of.wholes[int(tanh)]
    for exponent in range(-10, 3):
        x = (np.arange(1 << 23) / (1 << 23) + 1) * 2.0**exponent
        for part in np.split(x, 8):
            error = np.abs(method.evaluate(part, tanh=tanh) - whole(part))
            assert error.max() <= method.bound().value + 1e-14
