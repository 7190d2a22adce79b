"""GELU methods: against 60-digit arithmetic, both forms, every scale of x."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body, model_of, run

from lowerkit.passes.activation.base import BUMP_CURVATURE, GeluMethod, bump
from lowerkit.passes.activation.poly_gelu import PolyGeluMethod
from lowerkit.passes.activation.table_gelu import TableGeluMethod

mpmath.mp.dps = 60
METHODS: list[GeluMethod] = [
    TableGeluMethod(),
    TableGeluMethod(segments=16, limit=2.0),
    PolyGeluMethod(),
    PolyGeluMethod(degree=4, limit=3),
]
FORMS = {"none": False, "tanh": True}
both_forms = pytest.mark.parametrize("form", FORMS)
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
reals = st.one_of(st.floats(-8, 8, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False))


def exact(x: float, form: str) -> mpmath.mpf:
    """GELU in 60 digits."""
    v = mpmath.mpf(x)
    if form == "none":
        return v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2
    return v / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3)))


def rounding(method: GeluMethod, x: np.ndarray) -> np.ndarray:
    """What float32 may add: some U of |x|, and for the polynomial 2 degree U of its coefficients' sum."""
    result: np.ndarray = 4 * U * (np.abs(x.astype(np.float64)) + 1)
    if isinstance(method, PolyGeluMethod):
        size = max(np.abs(method.polynomial(tanh).coefficients).sum() for tanh in FORMS.values())
        result = result + 2 * (method.degree + 2) * U * size
    return result


@both_forms
@each_method
@given(reals)
def test_model_is_within_the_bound(method: GeluMethod, form: str, x: float) -> None:
    found = float(method.evaluate(np.array(x), tanh=FORMS[form]))
    # 1e-15 |x|: max(x, 0) - g in float64.
    assert abs(found - exact(x, form)) <= method.bound().value + 1e-15 * abs(x)


@both_forms
@each_method
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=reals))
def test_body_is_the_model_up_to_rounding(method: GeluMethod, form: str, x: np.ndarray) -> None:
    y = body(method, "Gelu", x, {"approximate": form})
    assert np.all(np.abs(y - method.evaluate(x, tanh=FORMS[form])) <= rounding(method, x))


@both_forms
@each_method
def test_dense_grid(method: GeluMethod, form: str) -> None:
    """The body against onnxruntime's own Gelu, whose error is a few roundings."""
    x = np.linspace(-9, 9, 200_001).astype(np.float32)
    expected = run(model_of("Gelu", x, {"approximate": form}), x)
    y = body(method, "Gelu", x, {"approximate": form})
    assert np.all(np.abs(y - expected) <= method.bound().value + rounding(method, x) + 1e-6)


@both_forms
@each_method
def test_ugly_values(method: GeluMethod, form: str) -> None:
    x = np.array([np.nan, np.inf, 3.4e38, 1e-45, 0, -0.0, -1e-45, -3.4e38], np.float32)
    expected = run(model_of("Gelu", x, {"approximate": form}), x)
    for y in (body(method, "Gelu", x, {"approximate": form}), method.evaluate(x, tanh=FORMS[form])):
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=method.bound().value)
    lowest = np.array([-np.inf], np.float32)
    below = np.array([-3e38], np.float32)
    # Gelu's own formula gives -inf * 0 there; the methods give their value for every large negative number.
    assert body(method, "Gelu", lowest, {"approximate": form}) == body(
        method, "Gelu", below, {"approximate": form}
    )


@both_forms
@each_method
def test_bound_is_not_idle(method: GeluMethod, form: str) -> None:
    x = np.linspace(-2 * method.limit, 2 * method.limit, 100_001)  # type: ignore[attr-defined]
    truth = np.maximum(x, 0) - bump(np.abs(x), FORMS[form])
    worst = float(np.abs(method.evaluate(x, tanh=FORMS[form]) - truth).max())
    assert 0.3 * method.bound().value <= worst <= method.bound().value + 1e-14


@both_forms
def test_bump_is_relu_less_gelu(form: str) -> None:
    for x in np.linspace(-12, 12, 97):
        assert max(x, 0) - float(bump(np.array(abs(x)), FORMS[form])) == pytest.approx(
            float(exact(x, form)), rel=1e-13, abs=2e-15
        )


@both_forms
def test_curvature_of_the_bump(form: str) -> None:
    """g'', by differentiation in 60 digits: -sqrt(2 / pi) at 0, rising until 2, small from 1 on."""

    def g(a: mpmath.mpf) -> mpmath.mpf:
        return -exact(-a, form)

    grid = np.arange(0, 401) / 50
    second = np.array([float(mpmath.diff(g, mpmath.mpf(a), 2)) for a in grid])
    assert second[0] == pytest.approx(-math.sqrt(2 / math.pi), rel=1e-12)
    assert np.all(np.diff(second[grid <= 1.9]) > 0)
    assert np.abs(second[grid >= 1]).max() < 0.3
    assert np.abs(second).max() == -second[0] <= BUMP_CURVATURE


def test_zero_stays_zero_in_the_table() -> None:
    assert body(TableGeluMethod(), "Gelu", np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_scalars_are_refused() -> None:
    node = model_of("Gelu", np.float32(1)).graph.node("n")
    for method in METHODS:
        assert method.refuses(node) == "needs an input with at least one axis"


@pytest.mark.slow
@both_forms
@pytest.mark.parametrize("method", [TableGeluMethod(), PolyGeluMethod()], ids=str)
def test_every_float32_of_the_range(method: GeluMethod, form: str) -> None:
    """Every float32 from 2^-10 to 8, whose error is that of its negative too; g's own slope does below."""
    for exponent in range(-10, 3):
        x = (np.arange(1 << 23) / (1 << 23) + 1) * 2.0**exponent
        for part in np.split(x, 8):
            truth = part - bump(part, FORMS[form])
            error = np.abs(method.evaluate(part, tanh=FORMS[form]) - truth)
            assert error.max() <= method.bound().value + 1e-14
