"""Softmax with a preset maximum is softmax for every row, whichever way it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from single import body

from lowerkit.errors import PlanError
from lowerkit.numerics.rows import softmax_rows
from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes import registry
from lowerkit.passes.softmax.unified_max import UnifiedMax

INF, NAN = np.inf, np.nan
wide = hnp.arrays(
    np.float32,
    (3, 9),
    elements=st.one_of(st.floats(-200, 200, width=32), st.sampled_from([-INF, 60.0, -60.0])),
)


@given(x=wide, center=st.floats(-100, 100, width=32))
def test_it_is_softmax(x: np.ndarray, center: float) -> None:
    method, exact = UnifiedMax(center=center), softmax_rows(x)
    np.testing.assert_allclose(method.evaluate(x), exact, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(body(method, "Softmax", x), exact, rtol=2e-5, atol=1e-10)


def test_ugly_rows() -> None:
    for row in ([NAN, 1, 2], [INF, 0, 1], [-INF, -INF, -INF]):
        assert np.isnan(body(UnifiedMax(), "Softmax", np.array([row], np.float32))).all()
    for row in ([1e4, 0, -1e4], [-3.4028235e38] * 3, [1e-45, 0, -1e-45], [7], [61, 60.5, -INF]):
        x = np.array([row], np.float32)
        np.testing.assert_allclose(body(UnifiedMax(), "Softmax", x), softmax_rows(x), rtol=1e-5)
    long = np.random.default_rng(0).normal(0, 20, (1, 65536)).astype(np.float32)
    np.testing.assert_allclose(body(UnifiedMax(), "Softmax", long), softmax_rows(long), rtol=1e-4, atol=1e-9)


def test_the_center_is_between_the_row_maxima() -> None:
    stats = TensorStats()
    stats.update(np.array([[1.0, 90.0], [-INF, 110.0], [-INF, -INF]], np.float32))
    assert UnifiedMax.fit(stats, {}) == UnifiedMax(center=100.0)
    assert UnifiedMax.fit(stats, {"center": 1}) == UnifiedMax(center=1)
    assert UnifiedMax.fit(None, {}) == UnifiedMax()
    assert UnifiedMax(center=100).outside(stats) is None
    assert UnifiedMax().outside(stats) == "rows peak 110 from the center, and fall back to the safe form"


def test_bad_options() -> None:
    with pytest.raises(PlanError, match="center must be a number from -1e6 to 1e6, not nan"):
        registry.make("softmax", "unified-max", {"center": NAN})
