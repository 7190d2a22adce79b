"""Functions in softmax's place: each is what its docstring says, whatever the row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq
from single import body

from lowerkit.errors import PlanError
from lowerkit.passes import registry
from lowerkit.passes.base import Contract, Method
from lowerkit.passes.softmax.clipped import Clipped
from lowerkit.passes.softmax.entmax import EntmaxWeights
from lowerkit.passes.softmax.plus_one import PlusOne
from lowerkit.passes.softmax.relu import ReluWeights
from lowerkit.passes.softmax.scalable import Scalable
from lowerkit.passes.softmax.sigmoid import SigmoidWeights
from lowerkit.passes.softmax.softplus import SoftplusWeights
from lowerkit.passes.softmax.sparsemax import SparsemaxWeights

INF, NAN = np.inf, np.nan


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def projection(x: np.ndarray, power: float, factor: float) -> np.ndarray:
    """max(factor x - tau, 0)^power with a sum of 1, tau by root finding: another way than sorting."""

    def weights(tau: float) -> np.ndarray:
        return np.maximum(factor * x - tau, 0) ** power

    top = factor * x.max()
    return weights(brentq(lambda tau: weights(tau).sum() - 1, top - 1 - 1e-9, top, xtol=1e-14))


#: Method -> the function as one would write it, for one row.
TRUTH: dict[Method, Callable[[np.ndarray], np.ndarray]] = {
    PlusOne(): lambda x: np.exp(x) / (1 + np.exp(x).sum()),
    Clipped(): lambda x: np.clip(1.03 * softmax(x) - 0.03, 0, 1),
    Clipped(low=-0.1, high=1.2): lambda x: np.clip(1.3 * softmax(x) - 0.1, 0, 1),
    SigmoidWeights(): lambda x: 1 / (1 + np.exp(-x + np.log(len(x)))),
    SigmoidWeights(bias=2.5): lambda x: 1 / (1 + np.exp(-x - 2.5 + np.log(len(x)))),
    ReluWeights(): lambda x: np.maximum(x, 0) / len(x),
    SoftplusWeights(): lambda x: np.logaddexp(0, x) / (1e-9 + np.logaddexp(0, x).sum()),
    Scalable(): lambda x: softmax(0.43 * np.log(len(x)) * x),
    SparsemaxWeights(): lambda x: projection(x, 1, 1),
    EntmaxWeights(): lambda x: projection(x, 2, 0.5),
}
METHODS = list(TRUTH)
each = pytest.mark.parametrize("method", METHODS, ids=str)
rows = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-30, 30, width=32))


@each
@given(x=rows)
@settings(max_examples=40)
def test_it_is_the_function(method: Method, x: np.ndarray) -> None:
    np.testing.assert_allclose(method.evaluate(x), TRUTH[method](x), rtol=1e-9, atol=2e-7)


@each
@given(x=hnp.arrays(np.float32, (3, 7), elements=st.floats(-30, 30, width=32)))
@settings(max_examples=25)
def test_the_body_is_the_model_up_to_rounding(method: Method, x: np.ndarray) -> None:
    np.testing.assert_allclose(body(method, "Softmax", x), method.evaluate(x), rtol=2e-5, atol=2e-5)


@each
def test_any_axis(method: Method) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    for axis in (0, 1, -2):
        expected = np.moveaxis(method.evaluate(np.moveaxis(x, axis, -1)), -1, axis)
        np.testing.assert_allclose(body(method, "Softmax", x, {"axis": axis}), expected, rtol=1e-5, atol=1e-6)


@each
@given(x=rows)
@settings(max_examples=40)
def test_weights_are_non_negative_and_keep_the_order(method: Method, x: np.ndarray) -> None:
    y = method.evaluate(x)[np.argsort(x, kind="stable")]
    assert (y >= 0).all()
    assert (np.diff(y) >= -1e-12).all()


SUM_TO_ONE = [
    m for m in METHODS if isinstance(m, (SoftplusWeights, Scalable, SparsemaxWeights, EntmaxWeights))
]
SHIFTABLE = [m for m in METHODS if isinstance(m, (Clipped, Scalable, SparsemaxWeights, EntmaxWeights))]


@given(x=rows)
@settings(max_examples=40)
def test_row_sums(x: np.ndarray) -> None:
    for method in SUM_TO_ONE:
        tolerance = 1e-6 if isinstance(method, SoftplusWeights) and x.max() < -5 else 1e-7
        if not (isinstance(method, SoftplusWeights) and x.max() < -12):
            assert method.evaluate(x).sum() == pytest.approx(1, abs=max(tolerance, 1e-3 * (x.max() < -5)))
    assert PlusOne().evaluate(x).sum() < 1 or x.max() > 25
    assert SparsemaxWeights().evaluate(x).max() <= 1


@given(x=rows, shift=st.floats(-50, 50))
@settings(max_examples=40)
def test_shifts(x: np.ndarray, shift: float) -> None:
    for method in SHIFTABLE:
        np.testing.assert_allclose(method.evaluate(x + shift), method.evaluate(x), atol=1e-6)


def test_ugly_rows() -> None:
    masked = np.array([[1.0, -INF, 2.0, -INF]], np.float32)
    hidden = np.full((1, 4), -INF, np.float32)
    lowest = np.array([[0.0, -3.4028235e38, 1.0, -1e4]], np.float32)
    huge = np.array([[1e4, 0.0, 1.0, -1e4]], np.float32)
    tiny = np.array([[1e-45, 0.0, -1e-45, 1e-40]], np.float32)
    for method in METHODS:
        y = body(method, "Softmax", masked)[0]
        assert np.isfinite(y).all()
        assert (y[[1, 3]] == 0).all()
        assert y[2] >= y[0]
        for row in (lowest, huge, tiny):
            assert np.isfinite(body(method, "Softmax", row)).all()
        assert np.isnan(body(method, "Softmax", np.array([[NAN, 1.0, 2.0]], np.float32))).any()
        assert np.isfinite(body(method, "Softmax", np.zeros((2, 1), np.float32))).all()
        np.testing.assert_allclose(
            np.ptp(body(method, "Softmax", np.full((1, 9), 3.0, np.float32))), 0, atol=1e-7
        )
    zeros = (PlusOne(), SigmoidWeights(), ReluWeights(), SoftplusWeights())
    for method in zeros:
        assert (body(method, "Softmax", hidden) == 0).all()
    for method in set(METHODS) - set(zeros):
        if type(method) not in {type(z) for z in zeros}:
            assert np.isnan(body(method, "Softmax", hidden)).any()


@pytest.mark.parametrize("method", [SparsemaxWeights(), EntmaxWeights()], ids=str)
def test_long_rows(method: Method) -> None:
    x = np.random.default_rng(1).normal(size=(1, 65536)).astype(np.float32)
    y = body(method, "Softmax", x).astype(np.float64)
    assert y.sum() == pytest.approx(1, abs=1e-3)
    assert 0 < np.count_nonzero(y) < 2000
    np.testing.assert_allclose(y, method.evaluate(x), atol=1e-4)


def test_neutral_parameters_give_softmax() -> None:
    x = np.random.default_rng(2).normal(size=(5, 8))
    np.testing.assert_allclose(Clipped(low=0, high=1).evaluate(x), softmax(x))
    np.testing.assert_allclose(Scalable(slope=1 / np.log(8)).evaluate(x), softmax(x))
    np.testing.assert_allclose(PlusOne().evaluate(x + 40), softmax(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("clipped", {"low": 0.1}, "low must be a number from -1 to 0, not 0.1"),
        ("clipped", {"high": 0.5}, "high must be a number from 1 to 2, not 0.5"),
        ("sigmoid", {"bias": float("nan")}, "bias must be a number from -100 to 100, not nan"),
        ("softplus", {"epsilon": 0}, "epsilon must be a number from 1e-30 to 1, not 0"),
        ("scalable", {"slope": -1}, "slope must be a positive number up to 100, not -1"),
        ("relu", {"slope": 1}, "no option 'slope'"),
    ],
)
def test_bad_options(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("softmax", name, options)


@each
def test_they_say_that_they_are_other_functions(method: Method) -> None:
    assert method.contract is Contract.REPLACE
    assert method.bound() is None
    assert "another function" in (type(method).__doc__ or "")
