"""Inline SVG plots: the same bytes for the same numbers, readable on light and dark pages."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowerkit.report.summary import number
from lowerkit.validation.results import LayerResult, OutputResult

#: Drawn in this colour, then turned into the page's own text colour.
_INK = "#010203"
#: Orange and blue, which the colour-blind tell apart, legible on white and on black; also marked by shape.
METHOD, ARITHMETIC = "#d55e00", "#1f8fd6"
#: Errors below this are drawn at it: less than the rounding of float32 can be told from nothing.
FLOOR = 1e-9
_STYLE: Any = {  # keys and values are matplotlib's own
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


def layer_plot(layers: Sequence[LayerResult]) -> Markup:
    """Relative error by layer, method against arithmetic, log scale; one line per layer, inputs on top."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 1.1 + 0.19 * len(layers)), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(layers))
        shown = [e.relative for layer in layers for e in (layer.error.method, layer.error.arithmetic) if e]
        right = 2 * max([1.0, *(value for value in shown if math.isfinite(value))])
        method = [_on_scale(layer.error.method.relative, right) for layer in layers]
        axes.plot(method, rows, "o", ms=5, color=METHOD, label="method (original → lowered)")
        probed = [(row, layer.error.arithmetic) for row, layer in enumerate(layers) if layer.error.arithmetic]
        if probed:
            values = [_on_scale(error.relative, right) for _, error in probed]
            axes.plot(
                values,
                [row for row, _ in probed],
                "D",
                ms=4,
                mfc="none",
                mew=1.3,
                color=ARITHMETIC,
                label="arithmetic (lowered → artifact)",
            )
        names = [f"{_short(layer.value)}  {layer.method or layer.op}" for layer in layers]
        axes.set_yticks(rows, names, fontsize=7.5)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # the default writes TeX, which is not parsed here
        axes.set_xlim(FLOOR / 2, right * 1.2)
        axes.set_xlabel(
            f"largest error relative to scale (less than {FLOOR:g} at the left edge, infinite at the right)"
        )
        axes.grid(axis="both", color=_INK, alpha=0.12, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return _svg(figure, "Error by layer", f"{len(layers)} layers, largest errors as in the table below.")


def scatter_plot(output: OutputResult) -> Markup:
    """Elements of an output, artifact against original, with the line on which they are equal."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.9, 3.6), layout="constrained")
        axes = figure.add_subplot()
        points = np.array([p for p in output.points if math.isfinite(p[0]) and math.isfinite(p[1])])
        if len(points):
            axes.axline((float(points[0, 0]),) * 2, slope=1, color=_INK, lw=0.8, alpha=0.5)
            axes.plot(points[:, 0], points[:, 1], "o", ms=3, mew=0, alpha=0.6, color=ARITHMETIC)
        axes.set_xlabel("original")
        axes.set_ylabel("artifact")
        axes.set_title(_short(output.name), fontsize=9)
        axes.grid(color=_INK, alpha=0.12, lw=0.6)
        _tidy(axes)
        total = output.error.total or output.error.method
        return _svg(
            figure,
            f"Output {output.name}: artifact against original",
            f"{len(points)} elements; largest relative error {number(total.relative)}.",
        )


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _on_scale(error: float, right: float) -> float:
    return min(max(error, FLOOR), right)


def _short(name: str, length: int = 44) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _svg(figure: Figure, title: str, description: str) -> Markup:
    """The figure as an inline SVG element with a title and a description for screen readers."""
    buffer = io.StringIO()
    # The salt makes ids depend on the figure's content alone, and differ between figures of one page.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # figure_1 and the like: one page holds several figures
    labels = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    start, _, rest = text.partition(">")
    return Markup(f'{start} role="img">{labels}{rest}')
