"""Norms with an inverse square root by polynomial, Newton, Goldschmidt or table: bounds, bodies, ranges."""

from __future__ import annotations

import itertools
from pathlib import Path

import mpmath
import numpy as np
import onnx_ir as ir
import pytest
from helpers import parse
from hypothesis import given
from hypothesis import strategies as st
from single import U, body, model_of, run

from lowerkit.calibrate import Calibration
from lowerkit.errors import PlanError
from lowerkit.numerics.newton import STEPS, inverse_root
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.lower import default_plan
from lowerkit.passes.norm.base import CalibratedNorm, RowNorm
from lowerkit.passes.norm.goldschmidt_rsqrt import GoldschmidtRsqrt
from lowerkit.passes.norm.newton_rsqrt import NewtonRsqrt
from lowerkit.passes.norm.poly_rsqrt import PolyRsqrt
from lowerkit.passes.norm.table_rsqrt import TableRsqrt
from lowerkit.reference import Reference
from lowerkit.targets.base import get_target

mpmath.mp.dps = 40
CALIBRATED: list[CalibratedNorm] = [
    PolyRsqrt(),
    PolyRsqrt(low=0.5, high=8.0, degree=12),
    PolyRsqrt(low=1e-3, high=2e-3, degree=3),
    NewtonRsqrt(),
    NewtonRsqrt(steps=3),
    NewtonRsqrt(low=1e-6, high=1.0, steps=9),
    GoldschmidtRsqrt(),
    GoldschmidtRsqrt(low=0.1, high=1e3, steps=4),
]
TABLES = [TableRsqrt(), TableRsqrt(segments=2), TableRsqrt(segments=1000)]
METHODS: list[RowNorm] = [*CALIBRATED, *TABLES]
OPS = ["LayerNormalization", "RMSNormalization"]
each_op = pytest.mark.parametrize("op", OPS)
each_method = pytest.mark.parametrize("method", METHODS, ids=str)
each_calibrated = pytest.mark.parametrize("method", CALIBRATED, ids=str)
inf, nan = np.inf, np.nan


def ends(method: RowNorm) -> tuple[float, float]:
    """The range of the method's bound."""
    return (method.low, method.high) if isinstance(method, CalibratedNorm) else (2.0**-126, 2.0**127)


def ulps(method: RowNorm) -> float:
    """What float32 may add to the root, in units of 2^-24: v itself has some that count threefold."""
    size = np.abs(method.polynomial().coefficients).sum() if isinstance(method, PolyRsqrt) else 0.0
    low, high = ends(method)
    # Near `low` a polynomial's t is known to U, which is high / low / 2 of v; y is at least high^(-1/2).
    poly = (high / low) + 2 * 16 * size * high**0.5 if size else 0.0
    return 60 + poly + (8 * (high / low) ** 0.5 if isinstance(method, NewtonRsqrt) else 0.0)


@each_method
def test_every_part_of_the_range_is_within_the_bound(method: RowNorm) -> None:
    low, high = ends(method)
    v = np.clip(
        np.concatenate([np.geomspace(low, high, 100_001), np.linspace(low, high, 100_001)]), low, high
    )
    error = np.abs(method.inverse_root(v) * np.sqrt(v) - 1).max()
    assert 0.2 * method.bound().value <= error + 1e-9
    assert error <= method.bound().value + 1e-12


@each_method
@given(st.floats(0, 1))
def test_roots_against_forty_digits(method: RowNorm, part: float) -> None:
    low, high = ends(method)
    v = min(max(low * (high / low) ** part, low), high)
    found = mpmath.mpf(float(method.inverse_root(np.array(v)))) * mpmath.sqrt(mpmath.mpf(v))
    assert abs(found - 1) <= method.bound().value + 1e-12


@each_op
@each_method
@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=8), st.floats(0, 1), st.booleans())
def test_body_is_the_model_up_to_rounding(
    method: RowNorm, op: str, row: list[float], part: float, odd: bool
) -> None:
    rms = op == "RMSNormalization"
    low, high = ends(method) if isinstance(method, CalibratedNorm) else (1e-12, 1e12)
    x = np.array(row)
    centred = x if rms else x - x.mean()
    size = float((centred * centred).mean())
    if size < 1e-3:
        x, size = np.array([1.0, -1.0]), 1.0
    # Rows whose variance is anywhere on the range.
    x = np.tile((x * np.sqrt(low * (high / low) ** part / size)).astype(np.float32), (2, 1))
    scale, bias = np.random.default_rng(len(row)).normal(size=(2, x.shape[1])).astype(np.float32)
    weights = [scale] if rms or odd else [scale, bias]
    y = body(method, op, x, {"epsilon": 1e-12}, weights)
    expected = method.evaluate(x, rms=rms, epsilon=1e-12) * scale + (0 if len(weights) == 1 else bias)
    # The mean's own rounding moves every element by a few units of the largest.
    reach = np.abs(x).max() / np.sqrt(low * (high / low) ** part)
    allowed = 4 * ulps(method) * U * (np.abs(expected) + np.abs(scale) * (1 + reach)) + 4 * U * np.abs(bias)
    assert np.all(np.abs(y - expected) <= allowed)


@each_op
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_axes(op: str, axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    weights = [np.random.default_rng(1).normal(size=x.shape[axis % 3 :]).astype(np.float32)]
    expected = run(model_of(op, x, {"axis": axis}, weights), x)
    for method in (
        NewtonRsqrt(),
        GoldschmidtRsqrt(),
        TableRsqrt(segments=4096),
        PolyRsqrt(0.125, 8.0, degree=15),
    ):
        error = method.bound().value + 1e-5
        np.testing.assert_allclose(
            body(method, op, x, {"axis": axis}, weights), expected, rtol=error, atol=1e-5
        )


UGLY = np.array(
    [
        [1, 1, 1, 1],
        [0, 0, 0, 0],
        [nan, 1, 2, 3],
        [1, -1, 1, -1],
        [1e-45, -1e-45, 0, 1e-45],
        [1e-20, -1e-20, 0, 0],
    ],
    np.float32,
)


@each_op
@each_method
def test_ugly_rows(method: RowNorm, op: str) -> None:
    """NaN stays in its row, constant rows give the bias, and small rows stay small."""
    bias = [np.array([1, 2, 3, 4], np.float32)] if op == "LayerNormalization" else []
    weights = [np.ones(4, np.float32), *bias]
    y = body(method, op, UGLY, {"epsilon": 1e-5}, weights)
    assert np.isnan(y[2]).all()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()
    np.testing.assert_array_equal(y[1], bias[0] if bias else 0)
    if bias:
        np.testing.assert_array_equal(y[0], bias[0])
    np.testing.assert_allclose(y[4], bias[0] if bias else 0, atol=1e-30)


@each_op
def test_the_table_meets_every_exponent_and_what_overflows(op: str) -> None:
    pattern = np.array([1, -1, 3, 0.5, -2, 0.25, 0, 1], np.float32)
    x = np.ldexp(pattern, np.arange(-62, 61)[:, None]).astype(np.float32)
    weights = [np.ones(8, np.float32)]
    attributes = {"epsilon": 2.0**-126}
    expected = TableRsqrt().evaluate(x, rms=op == "RMSNormalization", epsilon=2.0**-126)
    np.testing.assert_allclose(
        body(TableRsqrt(), op, x, attributes, weights), expected, rtol=40 * U, atol=1e-6
    )
    large = np.array([[2e19, -2e19, 2e19, -2e19], [inf, 1, 2, 3], [1, 1, 1, 1]], np.float32)
    wide = run(model_of(op, large, {}, weights_of(4)), large)
    np.testing.assert_allclose(body(TableRsqrt(), op, large, {}, weights_of(4)), wide, rtol=1e-4)


def test_powers_of_four_have_the_entry_of_one() -> None:
    """Where the rounded logarithm may miss the exponent the body corrects it."""
    near = [np.nextafter(np.float32(4.0**e), np.float32(d)) for e in range(-20, 20) for d in (0, inf)]
    v = np.array([*near, *(4.0**e for e in range(-20, 20))], np.float32)
    x = np.sqrt(v)[:, None]
    y = body(TableRsqrt(segments=2), "RMSNormalization", x, {"epsilon": 1e-30}, weights_of(1))
    np.testing.assert_allclose(y, 1, atol=8 * U)


def weights_of(size: int) -> list[np.ndarray]:
    return [np.ones(size, np.float32)]


@each_op
def test_long_rows_and_rows_of_one(op: str) -> None:
    x = np.random.default_rng(3).normal(size=(1, 65_536)).astype(np.float32)
    one = np.array([[2.0], [1.0]], np.float32)
    for method in METHODS:
        if isinstance(method, CalibratedNorm) and not method.low < 1 < method.high / 4:
            continue
        for rows in (x, one):
            y = body(method, op, rows, {}, weights_of(rows.shape[1]))
            expected = method.evaluate(rows, rms=op == "RMSNormalization")
            np.testing.assert_allclose(y, expected, rtol=ulps(method) * U, atol=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 64, 1e4, 1e7])
def test_newton_steps_only_help(ratio: float) -> None:
    errors = [inverse_root(0.01, 0.01 * ratio, steps).error for steps in range(1, STEPS + 1)]
    assert all(b <= a or b < 2e-7 for a, b in itertools.pairwise(errors))
    assert errors[-1] < 1e-3


def test_ranges_wider_than_float32_tells_have_no_bound() -> None:
    assert inverse_root(1e-20, 1e20, 10).error == inf
    assert NewtonRsqrt(1e-12, 1e12).bound().value > 0.99
    reason = GoldschmidtRsqrt(1e-20, 1e20).refuses(rows_of("RMSNormalization", 1.0)[1])
    assert reason is not None
    assert reason.startswith("may err by 100%")


def test_goldschmidt_is_newton() -> None:
    v = np.geomspace(0.01, 100, 1001)
    for steps in (2, 5, 7):
        one, other = NewtonRsqrt(steps=steps), GoldschmidtRsqrt(steps=steps)
        np.testing.assert_allclose(one.inverse_root(v), other.inverse_root(v), rtol=1e-12)


@given(st.floats(1e-12, 1e12), st.floats(1.1, 1e6), st.integers(1, STEPS), st.floats(0, 1))
def test_bound_of_newton_on_any_range(low: float, ratio: float, steps: int, part: float) -> None:
    iteration = inverse_root(low, low * ratio, steps)
    v = np.array(min(max(low * ratio**part, low), low * ratio))
    y = iteration.start(v)
    for a, b in iteration.steps:
        y = y * (a - b * v * y * y)
    assert abs(y * np.sqrt(v) - 1) <= iteration.error + 1e-12
    assert y > 0


def rows_of(op: str, size: float, shift: float = 0.0) -> tuple[np.ndarray, ir.Node]:
    x = (np.random.default_rng(4).normal(size=(6, 8)) * size + shift).astype(np.float32)
    return x, model_of(op, x, {}, weights_of(8)).graph.node("n")


@each_op
@pytest.mark.parametrize("cls", [PolyRsqrt, NewtonRsqrt, GoldschmidtRsqrt])
def test_ranges_and_sizes_are_fitted_to_rows(cls: type[CalibratedNorm], op: str) -> None:
    x, node = rows_of(op, 20.0, 50.0)
    stats = TensorStats()
    stats.update(x)
    method = cls.fit_node(node, stats, {})
    assert isinstance(method, CalibratedNorm)
    wide = x.astype(np.float64)
    v = ((wide - (wide.mean(-1, keepdims=True) if op == "LayerNormalization" else 0)) ** 2).mean(-1) + 1e-5
    assert (method.low, method.high) == pytest.approx((v.min() / 2, v.max() * 2), rel=1e-6)
    assert method.bound().value <= cls.enough
    assert method.refuses(node) is None
    assert method.outside_node(node, stats) is None
    stats.update(x * 10)
    reason = method.outside_node(node, stats)
    assert reason is not None
    assert "variances reach from" in reason
    given_size = cls.fit_node(node, stats, {cls.size: 2, "low": 1.0, "margin": 3})
    assert (getattr(given_size, cls.size), given_size.low) == (2, 1.0)  # type: ignore[attr-defined]


@each_op
def test_constant_rows_do_not_widen_the_range(op: str) -> None:
    x, node = rows_of(op, 1.0)
    stats = TensorStats()
    stats.update(np.concatenate([x, np.zeros_like(x), np.full_like(x, nan)]))
    method = NewtonRsqrt.fit_node(node, stats, {})
    assert method.low > 0.05  # type: ignore[attr-defined]
    assert NewtonRsqrt.fit_node(node, None, {}) == NewtonRsqrt()
    assert NewtonRsqrt.fit_node(node, TensorStats(), {}) == NewtonRsqrt()


@each_op
def test_too_wide_a_range_is_refused(op: str) -> None:
    x, node = rows_of(op, 1.0)
    x[0] *= 1e-6
    calibration = Calibration({"x": TensorStats()})
    calibration.stats["x"].update(x)
    reason = PolyRsqrt(1e-6, 1e6).refuses(node)
    assert reason is not None
    assert reason.startswith("may err by 100%")
    model = model_of(op, x, {}, weights_of(8))
    with pytest.raises(PlanError, match=r"may err by \d+% over variances from"):
        default_plan(model, get_target("cpu"), calibration, {"norm": "poly-rsqrt"})
    assert isinstance(NewtonRsqrt.fit_node(node, calibration.stats["x"], {}).bound().value, float)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("poly-rsqrt", {"degree": 16}, "degree must be an integer from 1 to 15, not 16"),
        ("poly-rsqrt", {"low": 0.0}, "low must be a number from 1e-20 to"),
        ("newton-rsqrt", {"steps": 0}, "steps must be an integer from 1 to 10, not 0"),
        ("newton-rsqrt", {"low": 2.0, "high": 1.0}, "low must be less than high, not 2.0 and 1.0"),
        ("goldschmidt-rsqrt", {"high": nan}, "high must be a number"),
        ("goldschmidt-rsqrt", {"margin": 0.5}, "margin must be a number from 1 to 1000000, not 0.5"),
        ("table-rsqrt", {"segments": 1}, "segments must be an integer from 2 to 65536, not 1"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        registry.make("norm", name, options)


@pytest.mark.parametrize("name", sorted({"inverse-sqrt"} | {method.name for method in METHODS}))
def test_the_cpu_target_runs_the_bodies(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(5).normal(size=(4, 16)).astype(np.float32)
    scale = np.random.default_rng(6).normal(size=16).astype(np.float32)
    model = parse(
        "(float[4,16] x) => (float[4,16] y, float[4,16] z) "
        "{ y = LayerNormalization(x, scale) z = RMSNormalization(x, scale) }",
        scale=scale,
    )
    for node in list(model.graph):
        registry.make("norm", name, {}).rewrite(model, node)
    expected = Reference(model)({"x": x})
    target = get_target("cpu")
    target.emit(model.clone(), dict(target.options), tmp_path)
    got = target.open(tmp_path, dict(target.options))({"x": x})
    for output in ("y", "z"):
        np.testing.assert_allclose(got[output], expected[output], rtol=1e-4, atol=1e-5)
