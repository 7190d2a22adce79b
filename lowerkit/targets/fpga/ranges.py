"""Formats for every value of a lowered graph, from what it takes on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.errors import UnsupportedError
from lowerkit.reference import Reference
from lowerkit.targets.fpga.formats import Fixed

#: Room above the calibrated extremes; beyond it codes saturate.
MARGIN = 1.25


def observed(model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """The least and the greatest finite number of every float value, in onnxruntime."""
    values = [
        value.name or ""
        for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
        if value.dtype == ir.DataType.FLOAT
    ]
    inputs = {value.name for value in model.graph.inputs}
    reference = Reference(model, taps=[name for name in values if name not in inputs])
    found: dict[str, tuple[float, float]] = {}
    for sample in samples:
        results = {**sample, **reference(sample)}
        for name in values:
            array = np.asarray(results[name])
            array = array[np.isfinite(array)]
            if array.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def formats_for(ranges: Mapping[str, tuple[float, float]], width: int) -> dict[str, str]:
    """The format of `width` bits for each value that holds its range times `MARGIN`, 0 included, as text."""
    found = {}
    for name, (low, high) in ranges.items():
        low, high = min(low, 0.0) * MARGIN, max(high, 0.0) * MARGIN
        found[name] = str(Fixed.holding(low, max(high, 2.0**-40), width))
    return found


def parsed(formats: Mapping[str, str]) -> dict[str, Fixed]:
    """Formats from a plan. Raises UnsupportedError that names the value."""
    found = {}
    for name, text in formats.items():
        try:
            found[name] = Fixed.parse(str(text))
        except ValueError as error:
            raise UnsupportedError(f"format of value '{name}': {error}") from None
    return found
