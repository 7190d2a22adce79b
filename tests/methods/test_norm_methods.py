"""The inverse-sqrt norms: against 60-digit arithmetic, and against float64 on every shape, axis and scale."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import U, body, lower, model_of, run

from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.norm.inverse_sqrt import InverseSqrt

mpmath.mp.dps = 60
METHODS = [InverseSqrt(), InverseSqrt(degree=1), InverseSqrt(degree=3)]
OPS = ["LayerNormalization", "RMSNormalization"]
each_op = pytest.mark.parametrize("op", OPS)
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
epsilons = st.sampled_from([1e-5, 1e-3, 1e-12, 2.0**-126, 1.0])
inf, nan = np.inf, np.nan


def normalise(x: np.ndarray, op: str, axis: int, epsilon: float) -> np.ndarray:
    """Without scale and bias, over axes `axis` to the last, in float64."""
    x = x.astype(np.float64)
    axes = tuple(range(axis % x.ndim, x.ndim))
    if op == "LayerNormalization":
        x = x - x.mean(axis=axes, keepdims=True)
    result: np.ndarray = x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + epsilon)
    return result


@each_op
@each_method
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=8), st.integers(-50, 50), epsilons)
def test_model_is_within_the_bound(
    method: InverseSqrt, op: str, row: list[float], scale: int, epsilon: float
) -> None:
    x = np.array(row) * 2.0**scale
    exact = [mpmath.mpf(v) for v in x]
    if op == "LayerNormalization":
        mean = sum(exact) / len(exact)
        exact = [v - mean for v in exact]
    root = mpmath.sqrt(sum(v * v for v in exact) / len(exact) + mpmath.mpf(epsilon))
    found = method.evaluate(x, rms=op == "RMSNormalization", epsilon=epsilon)
    # Float64 loses some 1e-15 of the largest element to the mean.
    slack = 1e-14 * float(np.abs(x).max() / root)
    for y, v in zip(found, exact, strict=True):
        assert abs(y - v / root) <= method.bound().value * abs(v / root) + slack + 1e-14


@each_op
@each_method
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.floats(-8, 8, width=32)
    ),
    st.integers(-50, 50),
    epsilons,
    st.booleans(),
    st.data(),
)
def test_body_is_within_bound_and_rounding(
    method: InverseSqrt,
    op: str,
    x: np.ndarray,
    exponent: int,
    epsilon: float,
    with_bias: bool,
    data: st.DataObject,
) -> None:
    x = np.ldexp(x, exponent).astype(np.float32)
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    shape = x.shape[axis % x.ndim :]
    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=(2, *shape)).astype(np.float32)
    bias = bias if with_bias and op == "LayerNormalization" else np.zeros_like(bias)
    weights = [scale, bias] if bias.any() else [scale]

    axes = tuple(range(axis % x.ndim, x.ndim))
    wide, n = x.astype(np.float64), scale.size
    largest = np.abs(wide).max(axis=axes, keepdims=True)
    centred = wide - wide.mean(axis=axes, keepdims=True) if op == "LayerNormalization" else wide
    root = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
    # The mean's rounding, in units of the root; where it is large, the variance is rounding too.
    mean_error = (n + 3) * U * largest / root if op == "LayerNormalization" else 0 * root
    assume(mean_error.max() < 1e-3)

    attributes = {"axis": axis, "epsilon": epsilon}
    y = body(method, op, x, attributes, weights)
    truth = normalise(x, op, axis, epsilon)
    allowed = (method.bound().value + (2 * n + 32) * U) * np.abs(truth) + mean_error * (2 + np.abs(truth))
    total = truth * scale + bias
    assert np.all(np.abs(y - total) <= allowed * np.abs(scale) + 2 * U * np.abs(total) + 1e-37)


@each_op
def test_every_scale_of_the_variance(op: str) -> None:
    """Rows from 2^-70 to 2^62: the same pattern, for which the range reduction meets every exponent."""
    pattern = np.array([1, -1, 3, 0.5, -2, 0.25, 0, 1], np.float32)
    x = np.ldexp(pattern, np.arange(-70, 61)[:, None]).astype(np.float32)
    epsilon = 2.0**-126
    weights = [np.ones(8, np.float32)]
    y = body(InverseSqrt(), op, x, {"epsilon": epsilon}, weights)
    np.testing.assert_allclose(y, normalise(x, op, -1, epsilon), rtol=InverseSqrt().bound().value + 32 * U)


@each_op
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_ugly_rows_are_what_the_standard_operator_makes_of_them(op: str, epsilon: float) -> None:
    x = np.array(
        [
            [1, 1, 1, 1],
            [0, 0, 0, 0],
            [inf, 1, 2, 3],
            [-inf, 1, 2, 3],
            [nan, 1, 2, 3],
            [1e30, 1, 2, 3],
            [2e19, -2e19, 2e19, -2e19],
            [1e19, -1e19, 1e19, -1e19],
            [1e-20, -1e-20, 0, 0],
            [1e-45, -1e-45, 0, 1e-45],
        ],
        np.float32,
    )
    weights = [np.array([1, 2, 3, 4], np.float32)]
    attributes = {"epsilon": epsilon}
    expected = run(model_of(op, x, attributes, weights), x)
    y = body(InverseSqrt(), op, x, attributes, weights)
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=1e-37)


@each_op
def test_length_one_axis(op: str) -> None:
    x = np.array([[3.0], [-0.5], [0.0]], np.float32)
    y = body(InverseSqrt(), op, x, {}, [np.ones(1, np.float32)])
    np.testing.assert_allclose(y, normalise(x, op, -1, 1e-5), rtol=2e-6)


def test_a_constant_row_gives_the_bias() -> None:
    x = np.full((2, 3), 0.75, np.float32)
    bias = np.array([1, 2, 3], np.float32)
    y = body(InverseSqrt(), "LayerNormalization", x, {}, [np.ones(3, np.float32), bias])
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (2, 3)))


@each_method
def test_bound_is_not_idle(method: InverseSqrt) -> None:
    x = np.sqrt(np.linspace(1, 4, 20_001))[:, None]
    worst = float(np.abs(method.evaluate(x, rms=True, epsilon=0.0) - 1).max())
    assert 0.5 * method.bound().value <= worst <= method.bound().value + 1e-15


@pytest.mark.parametrize("epsilon", [0.0, 1e-38])
@each_op
def test_small_epsilon_is_refused(op: str, epsilon: float) -> None:
    x = np.zeros((2, 3), np.float32)
    node = model_of(op, x, {"epsilon": epsilon}, [np.ones(3, np.float32)]).graph.node("n")
    assert InverseSqrt().refuses(node) == "needs an epsilon of at least 2^-126"


def test_unknown_rank_is_refused() -> None:
    model = model_of("RMSNormalization", np.zeros((2, 3), np.float32), {}, [np.ones(3, np.float32)])
    model.graph.inputs[0].shape = None
    assert InverseSqrt().refuses(model.graph.node("n")) == "needs an input of known rank"


def test_zero_bias_is_added_once() -> None:
    x = np.zeros((2, 3), np.float32)
    model = lower(InverseSqrt(), model_of("LayerNormalization", x, {}, [np.ones(3, np.float32)]))
    assert [value.name for value in model.graph.node("n").inputs if value is not None][:3] == [
        "x",
        "w0",
        "w0.no_bias",
    ]


def test_large_values_are_outside() -> None:
    inside, outside = TensorStats(), TensorStats()
    inside.update(np.array([[1e18, -1e18, 0.0]]))
    outside.update(np.array([[1.2e19, -1e18, 0.0]]))
    assert InverseSqrt().outside(inside) is None
    reason = InverseSqrt().outside(outside)
    assert reason is not None
    assert "1.2e+19" in reason
    assert InverseSqrt().outside(TensorStats()) is None


@pytest.mark.slow
@each_method
def test_every_float32_mantissa(method: InverseSqrt) -> None:
    """Every float32 variance in [1, 4): by the range reduction all others are powers of four away."""
    for exponent in range(2):
        for v in np.split((np.arange(1 << 23) / (1 << 23) + 1) * 2.0**exponent, 8):
            # A row of one element whose mean square is v, and whose norm is then 1.
            found = method.evaluate(np.sqrt(v)[:, None], rms=True, epsilon=0.0)
            assert np.abs(found - 1).max() <= method.bound().value + 1e-15
