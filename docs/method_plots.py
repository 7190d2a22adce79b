"""Draws the error of every method over its domain: docs/plots/*.svg, one figure for the methods of one derivation.

Errors are those of the numpy models in float64, at the default options, against float64; the dashed line is the
method's bound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy.special import softmax

from lowerkit.numerics.statistics import TensorStats
from lowerkit.passes.activation.base import ACTIVATIONS, RELU, ActivationMethod
from lowerkit.passes.base import Method
from lowerkit.plan import options_of

PLOTS = Path(__file__).with_name("plots")
#: Errors below this are drawn at it: less than rounding.
FLOOR = 1e-12
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "lowerkit", "font.family": "sans-serif", "font.size": 8}
_LINE, _BOUND = "#1f6fb4", "#d55e00"
#: Widest difference of two logits that the plot shows, where the method's domain ends before 16.
_SPREAD = {"cgf": 2.0}
_ROWS = 8


@dataclass(frozen=True)
class Curve:
    """|error| over x, and what both are; `bound` is in the same terms, or None."""

    x: np.ndarray
    error: np.ndarray
    label: str
    unit: str
    bound: float | None
    logarithmic: bool = False


def draw(group: Sequence[type[Method]], path: Path) -> None:
    """One panel for each of the methods, five in a row."""
    columns = min(5, len(group))
    rows = math.ceil(len(group) / columns)
    with mpl.rc_context(_STYLE):
        width = 5.2 if len(group) == 1 else 2.4 * columns
        figure = Figure(figsize=(width, 2.2 * rows), layout="constrained", facecolor="white")
        for index, cls in enumerate(group):
            axes = figure.add_subplot(rows, columns, index + 1)
            curve = curve_of(cls())
            axes.plot(curve.x, np.maximum(curve.error, FLOOR), color=_LINE, lw=0.9)
            if curve.bound:
                axes.axhline(curve.bound, color=_BOUND, lw=0.9, ls="--")
            axes.set_yscale("log")
            axes.set_xscale("log" if curve.logarithmic else "linear")
            axes.set_xlabel(curve.label)
            if index % columns == 0:
                axes.set_ylabel(f"{curve.unit} error")
            if len(group) > 1:
                axes.set_title(cls.family, fontsize=8)
            axes.grid(alpha=0.15, lw=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def curve_of(method: Method) -> Curve:
    """The error of a method at its default options over what its family depends on."""
    if isinstance(method, ActivationMethod) or method.family in _ACTIVATIONS:
        return _activation(method)
    return {"softmax": _softmax, "norm": _norm, "attention": _attention, "pool": _pool, "linear": _linear}[
        method.family
    ](method)


_ACTIVATIONS = {activation.family: activation for activation in (*ACTIVATIONS, RELU)}


def _activation(method: Method) -> Curve:
    about = _ACTIVATIONS[method.family]
    bound = method.bound()
    relative = bound is not None and bound.kind == "relative"
    low, high = {"exp": (-20.0, 20.0), "reciprocal": (0.05, 20.0), "rsqrt": (0.05, 20.0)}.get(
        method.family, (-10.0, 10.0)
    )
    if hasattr(method, "high"):
        low, high = method.low, method.high  # type: ignore[attr-defined]
    elif method.name == "composite":
        low, high = -method.limit, method.limit  # type: ignore[attr-defined]
    x = np.linspace(low, high, 301)
    exact = about.wholes[0](x)
    error = np.abs(method.evaluate(x) - exact)
    return Curve(
        x,
        error / np.abs(exact) if relative else error,
        "x",
        "relative" if relative else "absolute",
        bound.value if bound else None,
    )


def _softmax(method: Method) -> Curve:
    """The weight of the first of eight logits, the others 0."""
    spread = _SPREAD.get(method.name, 16.0)
    x = np.linspace(-spread, spread, 401)
    rows = np.zeros((len(x), _ROWS))
    rows[:, 0] = x
    exact = softmax(rows, axis=-1)[:, 0]
    found = method.evaluate(rows)
    # A choice of the largest sorts them: the first logit's weight is first or last.
    weight = np.where(x >= 0, found[:, 0], found[:, -1]) if method.name == "online-topk" else found[:, 0]
    error, bound = np.abs(weight - exact), method.bound()
    relative = bound is not None and bound.kind == "relative"
    return Curve(
        x,
        error / exact if relative else error,
        f"logit, {_ROWS - 1} others at 0",
        "relative" if relative else "absolute",
        bound.value if bound else None,
    )


def _norm(method: Method) -> Curve:
    """A row of 64 normal numbers, scaled to each variance."""
    row = np.random.default_rng(0).normal(size=64)
    row = (row - row.mean()) / row.std()
    low, high = getattr(method, "low", 1e-4), getattr(method, "high", 1e4)
    variance = np.geomspace(low, high, 401)
    epsilon = 1e-5
    if hasattr(method, "mean"):  # no method before it is calibrated: here to rows of variance 1
        method = replace(method, mean=(0.0,) * 64, variance=(1.0,) * 64)  # type: ignore[call-arg]
    exact = np.sqrt(variance / (variance + epsilon))[:, None] * row
    found = method.evaluate(np.sqrt(variance)[:, None] * row, epsilon=epsilon)
    bound = method.bound()
    error = np.abs(found - exact).max(axis=-1) / np.abs(exact).max(axis=-1)
    return Curve(variance, error, "variance", "relative", bound.value if bound else None, logarithmic=True)


@functools.cache
def _qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 1, 16, 8)) for _ in range(3))
    return q, k, v


def _attention(method: Method) -> Curve:
    """Attention of 16 normal tokens of 8 channels, at each scale of the scores."""
    q, k, v = _qkv()
    scales = np.geomspace(0.01, 1.0, 41)
    errors = []
    for scale in scales:
        exact = softmax(scale * q @ k.swapaxes(-1, -2), axis=-1) @ v
        found = method.evaluate(q, k=k, v=v, scale=float(scale))
        errors.append(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))
    return Curve(scales, np.array(errors), "scale of the scores", "relative r.m.s.", None, logarithmic=True)


def _pool(method: Method) -> Curve:
    """A window of four numbers, three of them 0."""
    x = np.linspace(-4.0, 4.0, 401)
    windows = np.zeros((len(x), 1, 2, 2))
    windows[:, 0, 0, 0] = x
    found = method.evaluate(windows, kernel_shape=[2, 2])[:, 0, 0, 0]
    return Curve(x, np.abs(found - np.maximum(x, 0)), "one number, three others at 0", "absolute", None)


def _linear(method: Method) -> Curve:
    """64 normal numbers, the first of them scaled, by 16 columns of normal weights; errors over K max|x| max|w|.

    What is calibrated is calibrated to the widest rows.
    """
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=64), rng.normal(size=(64, 16))
    x[0] = 1.0
    outlier = np.geomspace(1, 100, 201)
    rows = np.where(np.arange(64) == 0, outlier[:, None], x)
    stats = TensorStats()
    stats.update(rows)
    method = type(method).fit(stats, options_of(method))
    error = np.abs(method.evaluate(rows, weight=weight) - rows @ weight).max(axis=-1)
    whole = 64 * np.abs(rows).max(axis=-1) * np.abs(weight).max()
    bound = method.bound()
    found = bound.value if bound is not None and not hasattr(method, "scale") else None
    return Curve(outlier, error / whole, "largest of the row", "operands", found, logarithmic=True)
