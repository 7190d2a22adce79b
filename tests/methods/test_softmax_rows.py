"""Every softmax method on ugly rows, and whether its weights are what its docstring says: a declaration each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import body, model_of, run
from test_softmax_methods import UGLY
from test_softmax_quantised import undecided

from lowerkit.numerics.rows import softmax_rows
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.base import Method

INF, NAN, BIG = np.inf, np.nan, float(np.finfo(np.float32).max)
#: What a row of length n sums to: the least and the most.
Sums = Callable[[Any, np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class Promise:
    """What a method's docstring says of its weights; the defaults are what softmax does."""

    variants: tuple[Mapping[str, Any], ...] = ({},)  # options; what they leave open is fitted to ROWS
    hidden: float = NAN  # each weight of a row of -inf alone
    masked: Callable[[Any], float] = lambda m: 0.0  # the weight of -inf next to a finite logit
    apart: bool = False  # NaN and +inf show in their own elements alone
    infinite: float | None = None  # the weight of +inf; None where it leaves no number in its row
    order: bool = True  # a larger logit has no smaller weight
    slack: Callable[[Any], float] = lambda m: 0.0  # but for this part of it
    shift: bool = True  # adding a constant to a row changes nothing
    sums: Sums | None = lambda m, x: (1, 1)  # None where sums are free
    reach: float = 20.0  # the largest |x| of rows on which all of this holds
    within: bool = False  # nothing holds where `outside` begins, and +inf may give infinities
    powers: tuple[float, float] = (
        0.0,
        INF,
    )  # |x| below are zero in float32, and x from the second on is +inf
    codes: bool = False  # rounding may decide between two weights
    long: Mapping[str, Any] | None = None  # options without which long rows are refused


def around_one(width: Callable[[Any, int], float]) -> Sums:
    return lambda m, x: (1 - width(m, x.size), 1 + width(m, x.size))


def log_sums(m: Any, x: np.ndarray) -> tuple[float, float]:
    return m.factor**-0.5 * (1 - x.size * m.factor ** -(m.last + 0.5)), m.factor**0.5


def softplus_sums(m: Any, x: np.ndarray) -> tuple[float, float]:
    return 1 - m.epsilon / np.logaddexp(0, x).sum(), 1


FREE = {"sums": None}
AT_MOST_ONE: dict[str, Sums] = {"sums": lambda m, x: (0, 1)}


def piece(m: Any) -> float:
    """How far weights may change places where two pieces of the exponential meet."""
    eps = m.polynomial().error
    return float(2 * eps / (1 + eps))


#: A new method is declared here: where it differs from softmax, as its docstring says.
PROMISES: dict[str, Promise] = {
    "binary": Promise(
        codes=True, sums=lambda m, x: (0, m.scale * min(x.size, 1 / m.threshold if m.threshold else INF))
    ),
    "cgf": Promise(
        variants=tuple({"order": k, "spread": 2.0} for k in (2, 4)),
        sums=lambda m, x: (math.exp(-m.remainder()), math.exp(m.remainder())),
        reach=1.0,
        within=True,
    ),
    "clipped": Promise(variants=({}, {"low": -0.1, "high": 1.2}), **FREE),
    "entmax": Promise(),
    "fixed": Promise(
        sums=around_one(
            lambda m, n: 2.0 ** -(m.reciprocal_bits + 1) + 2**-16 + n * 2.0 ** -(m.output_bits + 1)
        ),
        long={"longest": 65536, "table_bits": 24},
    ),
    "log": Promise(variants=({}, {"base": "sqrt2"}), codes=True, sums=log_sums),
    "online": Promise(),
    "piecewise-affine": Promise(sums=lambda m, x: (1, 1.125)),
    "plus-one": Promise(hidden=0.0, shift=False, **AT_MOST_ONE),
    "poly-exp": Promise(variants=({}, {"degree": 2}), slack=piece),
    "poly-exp-newton": Promise(
        variants=({}, {"steps": 1}), slack=piece, sums=lambda m, x: (1 - m.reciprocal_error(), 1)
    ),
    "power": Promise(
        variants=({}, {"form": "plain"}, {"form": "length-agnostic"}),
        hidden=0.0,
        infinite=NAN,
        order=False,
        shift=False,
        powers=(1e-30, 1e30),
        **AT_MOST_ONE,
    ),
    "power-polynomial": Promise(
        variants=({}, {"form": "length-agnostic", "steps": 20}),
        hidden=0.0,
        order=False,
        shift=False,
        reach=3.0,
        within=True,
        powers=(1e-30, 1e30),
        **AT_MOST_ONE,
    ),
    "quantised": Promise(
        variants=({}, {"correction": -0.001}),
        masked=lambda m: m.added,
        codes=True,
        sums=around_one(lambda m, n: n * (0.5 / m.levels + abs(m.added))),
    ),
    "relu": Promise(hidden=0.0, apart=True, infinite=INF, shift=False, **FREE),
    "scalable": Promise(),
    "shift": Promise(
        shift=False,
        sums=around_one(
            lambda m, n: 2.0 ** -(m.reciprocal_bits + 1) + 2**-16 + n * 2.0 ** -(m.output_bits + 1)
        ),
        long={"longest": 65536, "table_bits": 24},
    ),
    "sigmoid": Promise(hidden=0.0, apart=True, infinite=1.0, shift=False, **FREE),
    "softplus": Promise(hidden=0.0, infinite=NAN, shift=False, sums=softplus_sums),
    "sparsemax": Promise(),
    "two-pass": Promise(),
    "unified-max": Promise(),
}
ELSEWHERE = {"online-topk": "replaces the TopK that follows too, and has tests of its own"}


def fitted(name: str, options: Mapping[str, Any], x: np.ndarray) -> Method:
    stats = TensorStats()
    stats.update(x)
    return registry.method_class("softmax", name).fit(stats, options)


#: What methods are fitted to.
ROWS = np.random.default_rng(0).normal(0, 2, (64, 12)).astype(np.float32)
CASES = [
    pytest.param(fitted(name, options, ROWS), promise, id=f"{name}-{i}" if i else name)
    for name, promise in PROMISES.items()
    for i, options in enumerate(promise.variants)
]
each = pytest.mark.parametrize(("method", "promise"), CASES)
each_name = pytest.mark.parametrize(("name", "promise"), PROMISES.items(), ids=PROMISES)
#: Beside the rows on which softmaxes go wrong.
MORE = [
    [1e4, 0, 1, 2],
    [1e4, 1e4, 1e4, 1e4],
    [-1e4, 0, 1, 2],
    [-1e4, -1e4, -1e4, -1e4],
    [-1e4, -INF, 3, -BIG],
    [-INF, NAN, -INF, -INF],
    [-INF, NAN, -INF, 0],
    [NAN, -INF, 0, 1],
    [1e-40, -1e-40, 2e-39, 0],
    [1.5e19, 1.5e19, 1.5e19, 1.5e19],
    [BIG, 0, 1, 2],
    [BIG, BIG, BIG, BIG],
    [BIG, INF, -INF, BIG],
]
ALL = np.concatenate([UGLY, np.array(MORE, np.float32)])
eighths = st.integers(-160, 160).map(lambda i: i / 8)
ugly = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=2, max_side=6),
    elements=st.one_of(eighths, st.sampled_from([*sorted(set(ALL[~np.isnan(ALL)].tolist())), NAN])),
)


def test_every_method_has_a_promise() -> None:
    names = {name for family, name in registry.methods() if family == "softmax"}
    missing = sorted(names - PROMISES.keys() - ELSEWHERE.keys())
    assert not missing, f"add a Promise for {', '.join(missing)} to PROMISES: what the docstring says of rows"
    assert names >= PROMISES.keys() | ELSEWHERE.keys(), "a promise of a method that is no more"


def covered(method: Method, promise: Promise, row: np.ndarray) -> bool:
    stats = TensorStats()
    stats.update(row)
    return not promise.within or method.outside(stats) is None


def edges(method: Method, promise: Promise, x: np.ndarray) -> np.ndarray:
    return undecided(method, softmax_rows(x)) if promise.codes else np.zeros(x.shape, bool)


def check_row(method: Method, promise: Promise, row: np.ndarray, y: np.ndarray, infinite: float) -> None:
    """The documented weights of NaN, infinities, masks and equal logits; x counts as +inf from `infinite` on."""
    nan, top, mask = np.isnan(row), row >= infinite, row == -INF
    if nan.any() and not promise.apart:
        assert np.isnan(y).all()
    elif mask.all():
        np.testing.assert_array_equal(y, promise.hidden)
    elif top.any() and promise.infinite is None:
        assert not np.isfinite(y).any() if promise.within else np.isnan(y).all()
    elif covered(method, promise, row):
        assert np.isnan(y[nan]).all()
        np.testing.assert_array_equal(y[top], promise.infinite)
        np.testing.assert_array_equal(y[mask], np.asarray(promise.masked(method), y.dtype))
        rest = ~(nan | top)
        assert np.isfinite(y[rest]).all()
        assert promise.apart or not top.any() or not y[rest].any()
        order = np.argsort(row[rest], kind="stable")
        x, weights = row[rest][order], y[rest][order]
        same = x[1:] == x[:-1]
        np.testing.assert_allclose(weights[1:][same], weights[:-1][same], rtol=1e-6)


def check(method: Method, promise: Promise, x: np.ndarray, y: np.ndarray, rtol: float = 2e-5) -> None:
    """`y`, the body's weights of the rows `x`, are documented and those of the model."""
    low, high = promise.powers
    model = method.evaluate(np.where(np.abs(x) < low, 0, x))
    close = np.isclose(y, model, rtol=rtol, atol=1e-6, equal_nan=True) | edges(method, promise, x)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index]
        check_row(method, promise, row, model[index], INF)
        check_row(method, promise, row, y[index], high)
        # Where the model is no number, or float32 cannot hold what float64 can, the above is all there is.
        lost = bool(np.any(row >= high)) or (promise.within and not np.isfinite(model[index]).any())
        assert close[index].all() or lost or not covered(method, promise, row), (row, y[index], model[index])


@each
@pytest.mark.parametrize("times", [1, 4])
def test_ugly_rows(method: Method, promise: Promise, times: int) -> None:
    x = np.tile(ALL, (1, times))
    check(method, promise, x, body(method, "Softmax", x))


@each
@given(x=ugly)
@settings(max_examples=25)
def test_any_ugly_rows(method: Method, promise: Promise, x: np.ndarray) -> None:
    check(method, promise, x, body(method, "Softmax", x))


@each
def test_one_element(method: Method, promise: Promise) -> None:
    x = np.array([[0, 1e4, -1e4, 3.0, BIG, -BIG, 1e-45, -INF, INF, NAN]], np.float32).T
    check(method, promise, x, body(method, "Softmax", x))


def long_rows() -> np.ndarray:
    rng = np.random.default_rng(1)
    peak = np.zeros(65_536)
    peak[77] = 1e4
    rows = [
        rng.uniform(-1, 1, peak.size),
        rng.normal(0, 4, peak.size),
        peak,
        np.zeros(peak.size),
        np.full(peak.size, -1e4),
        np.where(np.arange(peak.size) % 7, -INF, peak),
    ]
    return np.stack(rows).astype(np.float32)


@each_name
def test_long_rows(name: str, promise: Promise) -> None:
    """Fitted to each row, as a network's have one length; those that fit alike run together."""
    together: dict[Method, list[np.ndarray]] = {}
    for row in long_rows():
        together.setdefault(fitted(name, promise.long or {}, row), []).append(row)
    for method, rows in together.items():
        x = np.stack(rows)
        node = model_of("Softmax", x).graph.node("n")
        assert method.refuses(node) is None
        if promise.long is not None:
            assert "65536" in str(fitted(name, {}, x).refuses(node))
        y = body(method, "Softmax", x)
        # Sums of float32 in sequence: 65,536 of its half spacing.
        check(method, promise, x, y, rtol=4e-3)
        for row, weights in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
            if promise.sums is not None and covered(method, promise, row) and weights.any():
                low, high = promise.sums(method, row)
                assert low - 4e-3 <= weights.sum() <= high + 4e-3


@each
@given(data=st.data())
@settings(max_examples=100)
def test_stated_properties(method: Method, promise: Promise, data: st.DataObject) -> None:
    elements = st.one_of(eighths.map(lambda v: v * promise.reach / 20), st.just(-INF))
    x = data.draw(hnp.arrays(np.float64, st.integers(1, 12), elements=elements))
    assume(x.max() > -INF)
    y, edge = method.evaluate(x), edges(method, promise, x)
    assert (y >= min(0, promise.masked(method))).all()
    order = np.argsort(x, kind="stable")
    rising, weights = x[order], y[order]
    if promise.order:
        assert (weights[1:] >= weights[:-1] * (1 - promise.slack(method)) - 1e-13).all()
    same = rising[1:] == rising[:-1]
    np.testing.assert_allclose(weights[1:][same], weights[:-1][same], rtol=1e-12)
    if promise.sums is not None:
        low, high = promise.sums(method, x)
        assert low - 1e-9 <= y.sum() <= high + 1e-9
    other = np.random.default_rng(data.draw(st.integers(0, 1000))).permutation(x.size)
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(method.evaluate(x[other])[~edge[other]], y[other][~edge[other]], **tolerance)
    if promise.shift:
        shifted = method.evaluate(x + data.draw(st.integers(-50, 50)))
        np.testing.assert_allclose(shifted[~edge], y[~edge], **tolerance)


@each
def test_a_shift_matters_where_no_invariance_is_promised(method: Method, promise: Promise) -> None:
    x = np.array([0.5, 0.25, -1.0]) * min(promise.reach, 1)
    assert promise.shift == np.allclose(method.evaluate(x + 0.5), method.evaluate(x), atol=1e-9)


@each
@pytest.mark.parametrize("axis", [0, 1])
def test_any_axis(method: Method, promise: Promise, axis: int) -> None:
    low = -promise.reach / 4
    x = np.random.default_rng(2).uniform(low, -low, (4, 5, 6)).astype(np.float32)
    y = body(method, "Softmax", x, {"axis": axis})
    check(method, promise, np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1))


@each
@pytest.mark.parametrize(("shape", "axis"), [((0, 4), -1), ((0, 4), 0), ((2, 0, 4), 2)])
def test_an_empty_batch_is_empty(method: Method, promise: Promise, shape: tuple[int, ...], axis: int) -> None:
    x = np.zeros(shape, np.float32)
    assert run(model_of("Softmax", x, {"axis": axis}), x).shape == shape
    assert body(method, "Softmax", x, {"axis": axis}).shape == shape
    if shape[axis]:
        assert method.evaluate(x).shape == shape
