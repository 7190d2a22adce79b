"""The exponentials of softmax and attention, in registers, against float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lowerkit.targets.cpu.features import default_cpu, level, tvm_target
from lowerkit.targets.cpu.kernels import exponential
from lowerkit.targets.cpu.kernels.exponential import Exponential
from lowerkit.targets.cpu.kernels.vectors import load, store


def by_polynomial(z: tvm.ir.Expr) -> tvm.ir.Expr:
    return exponential.polynomial_exponential(z, exponential.exact_coefficients())


def compiled(e: Exponential, count: int, lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    """`e` of `count` numbers, by vectors of `lanes`."""
    target = tvm.target.Target(tvm_target(default_cpu()))
    with target, IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        z, y = (T.arg(name, T.buffer((count,), "float32")) for name in "zy")
        with exponential.imported(), T.serial(0, count // lanes) as i:
            store(y, T.bind(e(T.bind(load(z, i * lanes, lanes)))), i * lanes, lanes)
    function = tvm.compile(tvm.IRModule({"main": builder.get()}), target)["main"]

    def run(values: np.ndarray) -> np.ndarray:
        result = tvm.runtime.tensor(np.zeros(count, np.float32))
        function(tvm.runtime.tensor(values), result)
        return np.asarray(result.numpy())

    return run


def between(low: float, high: float, step: int) -> np.ndarray:
    """Every `step`th float32 from `low`, which is negative, to 0 and from 0 to `high`."""
    signs = [
        np.arange(0, np.abs(np.float32(end)).view(np.uint32), step, dtype=np.uint32) for end in (low, high)
    ]
    return np.concatenate([-signs[0].view(np.float32), signs[1].view(np.float32)])


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 7, level(default_cpu()).lanes])
@pytest.mark.parametrize("e", [exponential.exact_exponential, by_polynomial])
def test_exponentials_over_their_range(e: Exponential, lanes: int) -> None:
    z = between(-87.3, 88, 50021)
    z = np.concatenate([z, np.zeros(-len(z) % lanes, np.float32)])
    exact = np.exp(z.astype(np.float64))
    # A rounding or two, the polynomial's 2^-24.6, and what ln 2 lacks as one float32.
    allowed = 2.0**-23 + 2.0**-24.5 + np.abs(z) * 2.0**-28.4
    got = compiled(e, len(z), lanes)(z)
    np.testing.assert_array_less(np.abs(got / exact - 1), allowed)


@pytest.mark.parametrize("lanes", [1, 3, level(default_cpu()).lanes])
@pytest.mark.parametrize("e", [exponential.exact_exponential, by_polynomial])
def test_exponentials_of_what_is_no_number_or_too_low(e: Exponential, lanes: int) -> None:
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    low = np.array([-np.inf, np.finfo(np.float32).min, -1e9, -104, -88], np.float32)
    z = np.concatenate([nans, low, np.linspace(-88, -87.4, 91, dtype=np.float32)])
    z = np.concatenate([z, np.zeros(-len(z) % lanes, np.float32)])
    got = compiled(e, len(z), lanes)(z)
    assert np.isnan(got[:4]).all()
    assert (got[4:9] == 0).all()
    assert ((got[9:100] >= 0) & (got[9:100] < 2.0**-126)).all()
