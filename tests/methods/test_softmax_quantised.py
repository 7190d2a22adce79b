"""Softmax with a quantised result: uniform steps with a correction, powers of two, and single bits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import body, model_of
from test_softmax_methods import UGLY, logits, softmax

from lowerkit.numerics.rows import softmax_rows, softmax_values
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.base import Method
from lowerkit.passes.softmax.binary import Binary, best_threshold
from lowerkit.passes.softmax.log_quantised import LogQuantised
from lowerkit.passes.softmax.quantised import Quantised
from lowerkit.plan import Choice, Plan, options_of

UNIFORM = [Quantised(), Quantised(bits=4, correction=0.01), Quantised(bits=2), Quantised(bits=16)]
LOG = [
    LogQuantised(),
    LogQuantised(base="sqrt2"),
    LogQuantised(bits=2, base="sqrt2"),
    LogQuantised(bits=5),
]
METHODS: list[Method] = [*UNIFORM, *LOG, Binary(), Binary(threshold=0.0, scale=0.5)]
rows = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=logits)
inf = np.inf


def stats_of(*batches: np.ndarray) -> TensorStats:
    stats = TensorStats()
    for batch in batches:
        stats.update(batch)
    return stats


def undecided(method: Method, p: np.ndarray) -> np.ndarray:
    """Where float32's rounding of p may pick the neighbouring code."""
    if isinstance(method, Binary):
        return np.abs(p - method.threshold) < 1e-6
    if isinstance(method, Quantised):
        at = p * method.levels
        return np.abs(at - np.floor(at) - 0.5) <= 2e-6 * at
    assert isinstance(method, LogQuantised)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -np.log(p) / np.log(method.factor)
        return (np.abs(at - np.floor(at) - 0.5) < 1e-5) & np.isfinite(at)


@pytest.mark.parametrize("method", METHODS, ids=str)
@settings(deadline=None)
@given(rows)
def test_body_gives_the_codes_of_the_model(method: Method, x: np.ndarray) -> None:
    y, model, p = body(method, "Softmax", x), method.evaluate(x), softmax(x)
    same = np.isclose(y, model, rtol=4e-7, atol=0) | (np.isnan(y) & np.isnan(model))
    assert np.all(same | undecided(method, p))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_ugly_rows(method: Method, axis: int) -> None:
    """NaN just where Softmax has it; -inf is code 0."""
    x = UGLY if axis == 1 else np.ascontiguousarray(UGLY.T)
    y = body(method, "Softmax", x, {"axis": axis})
    y = y if axis == 1 else y.T
    expected = method.evaluate(UGLY)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(softmax(UGLY)))
    near = undecided(method, softmax(UGLY))
    np.testing.assert_allclose(y[~near], expected[~near], rtol=4e-7)


@pytest.mark.parametrize("method", [*UNIFORM, *LOG], ids=str)
@settings(deadline=None)
@given(rows)
def test_bound_holds(method: Method, x: np.ndarray) -> None:
    error = np.abs(method.evaluate(x) - softmax(x))
    assert np.all((error <= method.bound().value + 1e-12) | np.isnan(error))
    in_float32 = np.abs(body(method, "Softmax", x) - softmax(x))
    assert np.all((in_float32 <= method.bound().value + 2e-6) | np.isnan(in_float32))


@pytest.mark.parametrize("method", [*UNIFORM, *LOG], ids=str)
def test_bound_is_reached(method: Method) -> None:
    """Rows of two, whose softmax takes every value."""
    p = np.linspace(1e-4, 1 - 1e-4, 400_001)
    x = np.stack([np.log(p), np.log(1 - p)], axis=-1)
    error = np.abs(method.evaluate(x) - softmax(x)).max()
    assert 0.98 * method.bound().value <= error <= method.bound().value + 1e-12


@pytest.mark.parametrize("method", METHODS, ids=str)
@settings(deadline=None)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12))
def test_order_of_the_logits_is_kept(method: Method, row: list[float]) -> None:
    x = np.sort(np.array(row, np.float32))
    y = body(method, "Softmax", x)
    assert np.all(np.diff(y) >= 0)
    assert y.min() >= (method.added - 1e-7 if isinstance(method, Quantised) else 0)
    equal = np.flatnonzero(np.diff(x) == 0)
    np.testing.assert_array_equal(y[equal], y[equal + 1])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_element_and_one_peak(method: Method) -> None:
    one, zero = method.evaluate(np.zeros(1))[0], method.evaluate(np.array([0, -inf]))[1]
    if isinstance(method, Quantised):
        assert (one, zero) == (1 + method.added, method.added)
    elif isinstance(method, LogQuantised):
        assert (one, zero) == (1, 0)
    y = body(method, "Softmax", np.array([[3.0]], np.float32))
    np.testing.assert_allclose(y, one, rtol=1e-7)
    long = np.zeros(65_536, np.float32)
    long[77] = 1e4
    y = body(method, "Softmax", long)
    np.testing.assert_allclose(y, method.evaluate(long), rtol=4e-7)
    np.testing.assert_allclose(y[77], one, rtol=1e-7)


def test_correction_recovers_the_mean_of_long_flat_rows() -> None:
    """Every weight is below half a step: uncorrected, whole rows vanish."""
    rng = np.random.default_rng(3)
    seen, fresh = (rng.normal(0, 0.3, (2, 4, 16, 1024)).astype(np.float32) for _ in range(2))
    method = Quantised.fit(stats_of(seen), {})
    assert isinstance(method, Quantised)
    assert method.correction == np.float32(method.correction)
    plain = Quantised.fit(stats_of(seen), {"correct": False})
    assert plain.bound().value == Quantised().bound().value
    truth = softmax(fresh)
    without = np.mean(truth - body(plain, "Softmax", fresh))
    corrected = np.mean(truth - body(method, "Softmax", fresh))
    assert without >= 0.5 / 1024, "the mean error that there is to recover"
    assert abs(corrected) <= 0.1 * abs(without)
    sums = body(method, "Softmax", fresh).sum(axis=-1)
    assert np.abs(body(plain, "Softmax", fresh).sum(axis=-1) - 1).mean() >= 0.5
    np.testing.assert_allclose(sums, 1, atol=0.1)


@settings(deadline=None)
@given(st.integers(0, 100), st.sampled_from([3, 40, 700]), st.integers(2, 10))
def test_correction_never_makes_the_mean_error_worse(seed: int, length: int, bits: int) -> None:
    x = np.random.default_rng(seed).normal(0, 2, (8, length)).astype(np.float32)
    method = Quantised.fit(stats_of(x), {"bits": bits})
    assert isinstance(method, Quantised)
    assert abs(method.correction) * method.levels <= 0.5 + 1e-6
    before = np.mean(Quantised(bits=bits).evaluate(x) - softmax(x))
    after = np.mean(method.evaluate(x) - softmax(x))
    assert abs(after) <= abs(before) * 1e-6 + 1e-12


def heads_of(seed: int) -> np.ndarray:
    """Attention logits (2, 3, 8, 512) of a flat, a middling and a peaked head."""
    scale = np.array([0.2, 2.0, 8.0]).reshape(3, 1, 1)
    return np.asarray(np.random.default_rng(seed).normal(0, 1, (2, 3, 8, 512)) * scale, np.float32)


def head_errors(method: Quantised, x: np.ndarray) -> np.ndarray:
    return np.abs(np.mean(softmax(x) - body(method, "Softmax", x), axis=(0, 2, 3)))


def test_one_correction_per_head_recovers_more_where_heads_differ() -> None:
    seen, fresh = heads_of(1), heads_of(2)
    one, each = (Quantised.fit(stats_of(seen), {"per_head": per_head}) for per_head in (False, True))
    assert np.ndim(one.correction) == 0
    assert len(each.correction) == 3  # type: ignore[arg-type]
    assert np.array_equal(each.correction, np.float32(each.correction))
    without = head_errors(Quantised(), fresh)
    # What is left is the difference of two draws.
    assert head_errors(each, fresh).max() <= 0.1 * without.max()
    assert head_errors(each, fresh).sum() <= 0.2 * head_errors(one, fresh).sum()
    # On what was calibrated, no head has a mean error left.
    assert head_errors(each, seen).max() <= 1e-7
    # Over the tensor, both give the same back.
    assert np.mean(each.correction) == pytest.approx(one.correction, rel=1e-5)
    np.testing.assert_allclose(body(each, "Softmax", fresh), each.evaluate(fresh), atol=1.01 / 255)
    assert np.abs(each.evaluate(fresh) - softmax(fresh)).max() <= each.bound().value
    assert each.bound().value == 0.5 / 255 + np.abs(each.correction).max()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (2, 3, 2, 5), elements=logits),
    st.lists(st.floats(-1 / 15, 1 / 15), min_size=3, max_size=3),
)
def test_per_head_bodies_are_models_within_the_bound(x: np.ndarray, correction: list[float]) -> None:
    method = Quantised(bits=4, per_head=True, correction=correction)
    y, model, p = body(method, "Softmax", x), method.evaluate(x), softmax(x)
    same = np.isclose(y, model, rtol=4e-7, atol=1e-8) | (np.isnan(y) & np.isnan(model))
    assert np.all(same | undecided(method, p))
    assert np.all((np.abs(model - p) <= method.bound().value + 1e-12) | np.isnan(p))


def test_a_correction_per_head_of_one_value_is_that_per_tensor() -> None:
    x = heads_of(3)
    c = float(np.float32(0.001))
    one = body(Quantised(correction=c), "Softmax", x)
    np.testing.assert_array_equal(body(Quantised(correction=[c] * 3, per_head=True), "Softmax", x), one)
    np.testing.assert_array_equal(body(Quantised(correction=c, per_head=True), "Softmax", x), one)


@pytest.mark.parametrize("per_head", [False, True])
def test_fitting_to_a_node_follows_its_axis(per_head: bool) -> None:
    x = heads_of(4)
    turned = np.ascontiguousarray(np.moveaxis(x, -1, -2))
    options = {"per_head": per_head}
    expected = Quantised.fit(stats_of(x), options)
    for axis in (-2, 2):
        node = model_of("Softmax", turned, {"axis": axis}).graph.node("n")
        method = Quantised.fit_node(node, stats_of(turned), options)
        assert np.allclose(method.correction, expected.correction, rtol=1e-6)
    y = body(method, "Softmax", turned, {"axis": -2})
    np.testing.assert_allclose(np.moveaxis(y, -2, -1), body(method, "Softmax", x), atol=1.01 / 255)
    assert Quantised.fit_node(model_of("Softmax", x).graph.node("n"), stats_of(x), options) == expected


def test_heads_without_usable_rows_are_left_alone() -> None:
    x = heads_of(5)
    x[:, 1] = -inf
    method = Quantised.fit(stats_of(x), {"per_head": True})
    assert isinstance(method.correction, tuple)
    assert [c != 0 for c in method.correction] == [True, False, True]
    assert Quantised.fit(None, {"per_head": True}) == Quantised(per_head=True)
    assert Quantised.fit(stats_of(x), {"per_head": True, "correct": False}).added == 0


def test_per_head_needs_heads() -> None:
    method = Quantised(per_head=True, correction=[0.0, 0.001, 0.0])

    def reason(shape: tuple[int, ...], axis: int = -1) -> str | None:
        return method.refuses(
            model_of("Softmax", np.zeros(shape, np.float32), {"axis": axis}).graph.node("n")
        )

    assert reason((2, 3, 4, 5)) is None
    assert reason((2, 3, 4, 5), 2) is None
    assert reason((2, 3, 4, 5), 1) == "corrects per head, and needs rows along queries or keys"
    assert reason((2, 4, 4, 5)) == "has numbers for 3 heads, not for 4"
    for shape in ((3, 5), (3, 4, 5), (1, 2, 3, 4, 5)):
        assert str(reason(shape)).endswith(f"(batch, heads, queries, keys), not of rank {len(shape)}")
    flat = np.zeros((3, 5), np.float32)
    node = model_of("Softmax", flat).graph.node("n")
    options = {"per_head": True}
    assert Quantised.fit_node(node, stats_of(flat), options) == Quantised(per_head=True)


def test_corrections_per_head_survive_a_plan() -> None:
    method = Quantised.fit(stats_of(heads_of(6)), {"per_head": True})
    plan = Plan("cpu", (Choice("n", "Softmax", "quantised", options_of(method)),))
    (choice,) = Plan.from_toml(plan.to_toml()).choices
    assert isinstance(choice.options["correction"], list)
    assert registry.make("softmax", "quantised", choice.options) == method


@pytest.mark.parametrize("cls", [Quantised, Binary])
def test_fitting_without_usable_rows_changes_nothing(cls: type[Method]) -> None:
    assert cls.fit(None, {}) == cls()
    assert cls.fit(TensorStats(), {}) == cls()
    assert cls.fit(stats_of(np.full((2, 3), -inf), np.full((1, 3), np.nan)), {}) == cls()


def test_given_options_are_kept() -> None:
    stats = stats_of(np.random.default_rng(0).normal(0, 3, (9, 50)))
    assert Quantised.fit(stats, {"correction": 0.0}).correction == 0.0
    fitted = Binary.fit(stats, {"threshold": 0.2})
    assert (fitted.threshold, fitted.scale == Binary().scale) == (0.2, False)
    p = softmax_values(stats.examples)
    assert fitted.scale == pytest.approx(p[p >= 0.2].mean(), rel=1e-6)
    assert Binary.fit(stats, {"scale": 0.125}).scale == 0.125


def test_softmax_values_leave_out_rows_of_nan() -> None:
    values = softmax_values([np.array([[0, 0], [-inf, -inf]]), np.array([np.nan, 1]), np.array([1, -inf])])
    np.testing.assert_array_equal(values, [0.5, 0.5, 1, 0])
    assert softmax_values([]).size == 0
    np.testing.assert_array_equal(softmax_rows(np.array([1e30, -1e30])), [1, 0])


@pytest.mark.parametrize("method", LOG, ids=str)
def test_relative_error_of_codes(method: LogQuantised) -> None:
    """(b^1/2 - 1) p wherever there is a code, and reached; nothing below the last."""
    p = np.geomspace(1e-6, 0.999999, 200_001)
    y = method.evaluate(np.stack([np.log(p), np.log1p(-p)], axis=-1))[:, 0]
    error = np.abs(y / p - 1)
    limit = method.factor**0.5 - 1
    inside = p > method.factor ** -(method.last + 0.5) * (1 + 1e-9)
    assert 0.99 * limit <= error[inside].max() <= limit * (1 + 1e-9)
    assert not y[p < method.factor ** -(method.last + 0.5) * (1 - 1e-9)].any()
    codes = -np.log2(y[y > 0]) * (1 if method.base == "2" else 2)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-9)
    assert codes.max() <= method.last


@settings(deadline=None)
@given(rows)
def test_log_rows_sum_to_within_half_a_code(x: np.ndarray) -> None:
    method = LogQuantised(bits=6)
    p, y = softmax(x), method.evaluate(x)
    good = ~np.isnan(p).any(axis=-1)
    sums = y.sum(axis=-1)[good]
    assert np.all(sums <= 2**0.5 + 1e-9)
    assert np.all(sums >= 2**-0.5 - 1e-9)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=10),
)
def test_no_threshold_is_better_than_the_fitted(values: list[float], ties: list[float]) -> None:
    p = np.sort(np.array(values + ties))[::-1]
    threshold = best_threshold(p)

    def loss(t: float) -> float:
        above = p >= t
        return float(((p - np.where(above, p[above].mean() if above.any() else 0, 0)) ** 2).sum())

    assert loss(threshold) <= min(loss(t) for t in [*p, 2.0]) + 1e-9


def test_fitted_binary_beats_the_defaults() -> None:
    """Rows flatter than the defaults are for: hardly a weight reaches a tenth."""
    x = np.random.default_rng(5).normal(0, 1, (64, 100)).astype(np.float32)
    fitted, p = Binary.fit(stats_of(x), {}), softmax(x)
    assert np.mean((fitted.evaluate(x) - p) ** 2) < 0.9 * np.mean((Binary().evaluate(x) - p) ** 2)
    assert set(np.unique(body(fitted, "Softmax", x))) == {0.0, np.float32(fitted.scale)}


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (Quantised, {"bits": 1}, "bits must be an integer from 2 to 16, not 1"),
        (Quantised, {"bits": 8.0}, "not 8.0"),
        (Quantised, {"correct": 1}, "correct must be true or false, not 1"),
        (Quantised, {"correction": 0.1}, "correction must be a number of at most one step, not 0.1"),
        (Quantised, {"correction": np.nan}, "not nan"),
        (Quantised, {"per_head": 1}, "per_head must be true or false, not 1"),
        (Quantised, {"correction": [0.0]}, "must be one number, not a list, unless per_head is true"),
        (Quantised, {"per_head": True, "correction": []}, "must be of numbers of at most one step, not []"),
        (Quantised, {"per_head": True, "correction": [0.1]}, "not [0.1]"),
        (LogQuantised, {"bits": 7}, "bits must be an integer from 2 to 6, not 7"),
        (LogQuantised, {"base": "e"}, "base must be '2' or 'sqrt2', not 'e'"),
        (Binary, {"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5"),
        (Binary, {"scale": "a"}, "scale must be a number from 0 to 1, not 'a'"),
    ],
)
def test_bad_options(cls: type[Method], options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        cls(**options)
