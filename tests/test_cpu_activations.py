"""Activation methods on the cpu target: what TVM makes of their bodies is what onnxruntime does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from methods.single import model_of, run

from lowerkit.calibrate import Calibration
from lowerkit.passes import registry
from lowerkit.passes.activation.base import ACTIVATIONS
from lowerkit.passes.lower import apply_plan, default_plan
from lowerkit.targets.base import get_target

FAMILIES = {activation.family: activation.op for activation in ACTIVATIONS}
#: One of each form, for the quick run.
QUICK = ("gelu", "tanh", "exp", "rsqrt")
CASES = [
    pytest.param(family, name, marks=() if family in QUICK else pytest.mark.slow)
    for family, name in registry.methods()
    if family in FAMILIES
]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_compiled_is_the_body(family: str, name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 2.5, (4, 1003)).astype(np.float32)
    if name in ("interval-poly", "composite"):
        x = np.clip(x, -3.5, 3.5)
    else:
        x.flat[:6] = [np.nan, np.inf, -np.inf, 0, 1e-40, -3e38]
    if family in ("reciprocal", "rsqrt"):
        x.flat[6:] = np.abs(x.flat[6:]) + 0.3
    target = get_target("cpu")
    model = model_of(FAMILIES[family], x)
    apply_plan(model, default_plan(model, target, Calibration(), {family: name}))
    expected = run(model, x)
    target.emit(model, {}, tmp_path)
    found = target.open(tmp_path, {})({"x": x})["y"]
    # Coefficients of composed polynomials and quotients are above 1, and TVM fuses products with sums.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
