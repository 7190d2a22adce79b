"""Inline SVG plots: the same bytes for the same numbers, readable on light and dark pages.

They are two kinds of points with an axis or two, and a plotting library takes longer to start than all that is plotted
took to measure. Lengths are in units of the view box, of which a page shows 96 an inch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from lowerkit.report.summary import number
from lowerkit.validation.results import LayerResult, OutputResult

#: Orange and blue, which the colour-blind tell apart, legible on white and on black; also marked by shape.
METHOD, ARITHMETIC = "#d55e00", "#1f8fd6"
#: Errors below this are drawn at it: less than the rounding of float32 can be told from nothing.
FLOOR = 1e-9
#: Of the plot by layer its width, and the height of its legend, of a layer and of the axis.
_WIDTH, _LEGEND, _ROW, _AXIS = 960.0, 28.0, 18.0, 44.0
#: Of the scatter plot the side, and what is left at the left and below, and above and at the right.
_SIDE, _NEAR, _FAR = 360.0, 64.0, 26.0
#: Points beyond are left out, as infinities are, and differences of the inverse are none.
_LARGEST = 1e300
_FONT = 12.0
#: Width of a character of fixed width, over the font's size.
_CHARACTER = 0.61


def layer_plot(layers: Sequence[LayerResult]) -> Markup:
    """Relative error by layer, method against arithmetic, log scale; one line per layer, inputs on top."""
    errors = [e for layer in layers for e in (layer.error.method, layer.error.arithmetic) if e]
    right = 2 * max([1.0, *(error.relative for error in errors if math.isfinite(error.relative))])
    low, high = math.log10(FLOOR / 2), math.log10(right * 1.2)
    names = [f"{_short(layer.value)}  {layer.method or layer.op}" for layer in layers]
    start = 12 + 10 * _CHARACTER * max(map(len, names))
    bottom = _LEGEND + _ROW * len(layers)

    def x(error: float) -> float:
        shown = max(error, FLOOR) if error < right else right  # what is no number is no small error
        return start + (_WIDTH - 12 - start) * (math.log10(shown) - low) / (high - low)

    parts = [_circle(12, _LEGEND / 2), _text(20, _LEGEND / 2, "method (original → lowered)")]
    if len(errors) > len(layers):
        parts += [_diamond(212, _LEGEND / 2), _text(220, _LEGEND / 2, "arithmetic (lowered → artifact)")]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        at = x(10.0**exponent)
        parts += [_grid(at, _LEGEND, at, bottom), _text(at, bottom + 11, f"{10.0**exponent:g}", "middle")]
    label = f"largest error relative to scale (less than {FLOOR:g} at the left edge, infinite at the right)"
    parts.append(_text((start + _WIDTH - 12) / 2, bottom + 31, label, "middle"))
    for row, (name, layer) in enumerate(zip(names, layers, strict=True)):
        y = _LEGEND + _ROW * (row + 0.5)
        parts += [_grid(start, y, _WIDTH - 12, y), _name(start - 6, y, name)]
        parts.append(_circle(x(layer.error.method.relative), y))
        if layer.error.arithmetic:
            parts.append(_diamond(x(layer.error.arithmetic.relative), y))
    description = f"{len(layers)} layers, largest errors as in the table below."
    return _svg(_WIDTH, bottom + _AXIS, "Error by layer", description, parts)


def scatter_plot(output: OutputResult) -> Markup:
    """Elements of an output, artifact against original, with the line on which they are equal."""
    points = [point for point in output.points if all(abs(value) < _LARGEST for value in point)]
    ticks = _ticks([value for point in points for value in point] or [0.0, 1.0])
    low, high = ticks[0], ticks[-1]
    size = _SIDE - _NEAR - _FAR

    def x(value: float) -> float:
        return _NEAR + size * (value - low) / (high - low)

    def y(value: float) -> float:
        return _SIDE - _NEAR - size * (value - low) / (high - low)

    parts = [_text(_NEAR + size / 2, _FAR / 2, _short(output.name), "middle")]
    for tick in ticks:
        parts += [
            _grid(x(tick), y(low), x(tick), y(high)),
            _text(x(tick), y(low) + 11, f"{tick:g}", "middle"),
        ]
        parts += [_grid(x(low), y(tick), x(high), y(tick)), _text(x(low) - 6, y(tick), f"{tick:g}", "end")]
    parts.append(_grid(x(low), y(low), x(high), y(high), opacity=0.5))
    parts += [_circle(x(original), y(artifact), ARITHMETIC, 0.6) for original, artifact in points]
    parts.append(_text(_NEAR + size / 2, _SIDE - _NEAR + 34, "original", "middle"))
    parts.append(
        Markup('<g transform="translate(12 {:.1f}) rotate(-90)">{}</g>').format(
            y(low) - size / 2, _text(0, 0, "artifact", "middle")
        )
    )
    total = output.error.total or output.error.method
    title = f"Output {output.name}: artifact against original"
    description = f"{len(points)} elements; largest relative error {number(total.relative)}."
    return _svg(_SIDE, _SIDE - _NEAR + 44, title, description, parts)


def _ticks(values: Sequence[float]) -> list[float]:
    """From 3 to 7 round numbers at equal distances; the first and last enclose `values`."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= max(1e-6 * size, 1 / _LARGEST):  # all of them about one number
        size = max(size, 1 / _LARGEST)
        low, high = low - size, high + size
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(n * unit for n in (0.2, 0.5, 1, 2) if (high - low) / (n * unit) <= 5)
    return [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _short(name: str, length: int = 44) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    """Text whose middle is at height `y`."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y + 4, anchor, text)


def _name(x: float, y: float, text: str) -> Markup:
    """A name that ends at `x`, of characters whose width is known."""
    return Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="end" font-family="monospace" font-size="10" '
        'xml:space="preserve">{}</text>'
    ).format(x, y + 3, text)


def _grid(x1: float, y1: float, x2: float, y2: float, opacity: float = 0.12) -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="currentColor" stroke-opacity="{}"/>'
    ).format(x1, y1, x2, y2, opacity)


def _circle(x: float, y: float, colour: str = METHOD, opacity: float = 1) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}" fill-opacity="{}"/>').format(
        x, y, colour, opacity
    )


def _diamond(x: float, y: float) -> Markup:
    return Markup(
        '<path d="M{:.1f} {:.1f}l4 4l-4 4l-4 -4z" fill="none" stroke="{}" stroke-width="1.5"/>'
    ).format(x, y - 4, ARITHMETIC)


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """An SVG element with a title and a description for screen readers."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" fill="currentColor" font-family="sans-serif" font-size="{_FONT:g}" '
        'role="img">'
    )
    labels = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return Markup(f"{head}{labels}{Markup(chr(10)).join(parts)}</svg>\n")
