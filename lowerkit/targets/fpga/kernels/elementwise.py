"""Arithmetic of single elements. Results are exact before they are rounded once and saturated.

`lanes` elements are computed each cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.lanes import broadcast, elements
from lowerkit.targets.fpga.kernels.narrow import narrow
from lowerkit.targets.fpga.kernels.schedule import Built, built
from lowerkit.targets.fpga.lang.expr import Array, Expr, clamp, maximum
from lowerkit.targets.fpga.lang.program import Builder

Shape = Sequence[int]
Other = Shape | np.ndarray


def add(
    name: str,
    shape: Shape,
    other: Other,
    a: Fixed,
    b: Fixed,
    y: Fixed,
    *,
    negate: bool = False,
    rounding: str = "half-even",
    lanes: int = 1,
) -> Built:
    """y = a + b, or a - b if `negate`; the points are aligned by shifts.

    Args:
        shape: of a; that of y is what numpy broadcasts to.
        other: the shape of an input b, or constant codes.
    """

    def total(left: Expr, right: Expr) -> tuple[Expr, int]:
        fraction = max(a.fraction, b.fraction)
        left, right = left << (fraction - a.fraction), right << (fraction - b.fraction)
        return (left - right if negate else left + right), fraction

    return _pair(name, f"y = a {'-' if negate else '+'} b", shape, other, a, b, y, rounding, lanes, total)


def multiply(
    name: str,
    shape: Shape,
    other: Other,
    a: Fixed,
    b: Fixed,
    y: Fixed,
    *,
    rounding: str = "half-even",
    lanes: int = 1,
) -> Built:
    """y = a b; `shape` and `other` as for `add`."""
    return _pair(
        name, "y = a b", shape, other, a, b, y, rounding, lanes,
        lambda left, right: (left * right, a.fraction + b.fraction),
    )  # fmt: skip


def requantise(
    name: str, shape: Shape, x: Fixed, y: Fixed, *, rounding: str = "half-even", lanes: int = 1
) -> Built:
    """y = x in another format."""
    return _single(name, "y = x", shape, x, y, rounding, lanes, lambda value: (value, x.fraction))


def relu(
    name: str, shape: Shape, x: Fixed, y: Fixed, *, rounding: str = "half-even", lanes: int = 1
) -> Built:
    """y = max(x, 0)."""
    return _single(
        name, "y = max(x, 0)", shape, x, y, rounding, lanes,
        lambda value: (maximum(value, 0) if x.signed else value, x.fraction),
    )  # fmt: skip


def limit(
    name: str,
    shape: Shape,
    low: int,
    high: int,
    x: Fixed,
    y: Fixed,
    *,
    rounding: str = "half-even",
    lanes: int = 1,
) -> Built:
    """y = x, clamped to the codes `low` to `high` of x's format, of which it need not hold all."""
    if low > high:
        raise ValueError(f"{name}: limits {low} and {high}")
    return _single(
        name, f"y = x within {low * x.step:g} and {high * x.step:g}", shape, x, y, rounding, lanes,
        lambda value: (clamp(value, low, high), x.fraction),
    )  # fmt: skip


def scale(
    name: str,
    shape: Shape,
    code: int,
    factor: Fixed,
    x: Fixed,
    y: Fixed,
    *,
    rounding: str = "half-even",
    lanes: int = 1,
) -> Built:
    """y = c x, for the number c that `code` stands for in the format `factor`."""
    return _single(
        name, f"y = {code * factor.step:g} x", shape, x, y, rounding, lanes,
        lambda value: (value * code, x.fraction + factor.fraction),
    )  # fmt: skip


def _single(
    name: str,
    comment: str,
    shape: Shape,
    x: Fixed,
    y: Fixed,
    rounding: str,
    lanes: int,
    compute: Callable[[Expr], tuple[Expr, int]],
) -> Built:
    """A function of one element; `compute` returns a number and its fraction bits."""
    k = Builder(name, f"{comment}, {x} to {y}")
    source, target = k.input("x", shape, x.range), k.output("y", shape, y.range)
    with elements(k, shape, lanes) as index:
        value, fraction = compute(source[index])
        k.store(target, index, narrow(k.let("value", value), fraction, y, rounding))
    return built(k.finish())


def _pair(
    name: str,
    comment: str,
    shape: Shape,
    other: Other,
    a: Fixed,
    b: Fixed,
    y: Fixed,
    rounding: str,
    lanes: int,
    compute: Callable[[Expr, Expr], tuple[Expr, int]],
) -> Built:
    """A function of two elements; `compute` returns a number and its fraction bits."""
    k = Builder(name, f"{comment}, {a} and {b} to {y}")
    second = other.shape if isinstance(other, np.ndarray) else tuple(other)
    out = np.broadcast_shapes(tuple(shape), second)
    left = k.input("a", shape, a.range)
    if isinstance(other, np.ndarray):
        right = k.constant(Array.constant(f"{name}_b", other))
        if right.range.low < b.range.low or right.range.high > b.range.high:
            raise ValueError(
                f"{name}: constants from {right.range.low} to {right.range.high} are no codes of {b}"
            )
    else:
        right = k.input("b", second, b.range)
    target = k.output("y", out, y.range)
    with elements(k, out, lanes) as index:
        value, fraction = compute(left[broadcast(index, shape)], right[broadcast(index, second)])
        k.store(target, index, narrow(k.let("value", value), fraction, y, rounding))
    return built(k.finish())
