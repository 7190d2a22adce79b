"""Formats for every value of a lowered graph, from what it takes on samples and an error budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lowerkit.errors import PlanError, UnsupportedError
from lowerkit.graph.fusions.algebra import constant
from lowerkit.passes import registry
from lowerkit.passes.base import REPLACES
from lowerkit.reference import Reference
from lowerkit.targets.fpga.clipping import Histogram, clipped
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.formats import parse as parse_format
from lowerkit.targets.fpga.stages import with_stages

#: Room above the calibrated extremes, beyond which codes saturate; formats of so many bits or more can spare one.
MARGIN, WIDE, WIDE_MARGIN = 1.25, 12, 2.0
#: A number at or below this is a mask's. Masked logits saturate at the format's least number, which has to lie so far
#: below all others that their exponentials vanish: e^-24 < 2^-34.
MASKED, BELOW = -1e4, 24.0
#: The narrowest format that an error budget may choose.
NARROWEST = 4


@dataclass
class Observed:
    """The least and the greatest number of a value, its root mean square, and whether masks are among them."""

    low: float = 0.0
    high: float = 0.0
    masked: bool = False
    squares: float = 0.0
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, numbers: np.ndarray) -> None:
        """Take in the numbers of a sample; what is not finite is left out, but for masks' -inf."""
        masks = numbers <= MASKED
        self.masked = self.masked or bool(masks.any())
        kept = numbers[np.isfinite(numbers) & ~masks].astype(np.float64)
        if kept.size:
            self.low, self.high = min(self.low, float(kept.min())), max(self.high, float(kept.max()))
            self.squares += float(np.square(kept).sum())
            self.count += kept.size
            self.histogram.add(kept)

    @property
    def rms(self) -> float:
        """Root mean square."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def observed(model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Observed]:
    """What every float and integer value takes in onnxruntime; 0 is always among the numbers."""
    model = with_stages(model)
    kinds = (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32)
    values = [
        value.name or ""
        for value in [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
        if value.dtype in kinds
    ]
    inputs = {value.name for value in model.graph.inputs}
    reference = Reference(model, taps=[name for name in values if name not in inputs])
    found = {name: Observed() for name in values}
    for sample in samples:
        results = {**sample, **reference(sample)}
        for name in values:
            found[name].add(np.asarray(results[name]))
    return found


def formats_for(
    model: ir.Model,
    ranges: Mapping[str, Observed],
    width: int,
    noise: float | None = None,
    clip: str = "range",
) -> dict[str, str]:
    """A format for each value, as text.

    It holds the range times a margin, 0 included, with the most fraction bits, in `width` bits. With `noise`, it has
    the fewest bits, up to `width`, whose rounding error is at most `noise` times the value's root mean square:
    a step's is step / sqrt(12) (Widrow and Kollar, Quantization Noise, 2008, section 4). Weights of a softmax, from 0
    to 1, have all bits behind the point, and whole numbers none. With `clip` of "error", formats may be narrower than
    the range where their mean square error is less; see `clipping`.
    """
    weights = {output.name for node in model.graph if _is_softmax(node) for output in node.outputs}
    whole = _whole(model)
    depths = _depths(model, ranges)
    found = {}
    for name, seen in ranges.items():
        if name in whole:
            bits = max(int(seen.high), whole[name]).bit_length() or 1
            found[name] = str(Fixed(bits + (seen.low < 0), bits + (seen.low < 0), seen.low < 0))
        elif name in weights and seen.low >= 0:
            found[name] = str(Fixed(width, 0, signed=False))
        else:
            margin = WIDE_MARGIN if width >= WIDE else MARGIN
            low, high = seen.low * margin, max(seen.high * margin, 2.0**-40)
            if seen.masked:
                low -= max(BELOW, depths.get(name, 0.0))
            chosen = _within(low, high, seen.rms, width, noise)
            if clip == "error" and not seen.masked:
                chosen = clipped(chosen, seen.histogram)
            found[name] = str(chosen)
    return found


def _within(low: float, high: float, rms: float, width: int, noise: float | None) -> Fixed:
    """The narrowest format whose noise is small enough."""
    if noise is not None and rms > 0:
        for bits in range(NARROWEST, width):
            chosen = Fixed.holding(low, high, bits)
            if chosen.step / math.sqrt(12) <= noise * rms:
                return chosen
    return Fixed.holding(low, high, width)


def _depths(model: ir.Model, ranges: Mapping[str, Observed]) -> dict[str, float]:
    """How far below 0 masks have to reach: added to the greatest logit, they have to be below the least."""
    found = {}
    for node in model.graph:
        names = [value.name or "" for value in node.inputs if value is not None]
        if node.op_type != "Add" or not all(name in ranges for name in names):
            continue
        for mask, logits in (names, names[::-1]):
            if ranges[mask].masked and not ranges[logits].masked:
                found[mask] = (ranges[logits].high - ranges[logits].low) * WIDE_MARGIN + BELOW
    return found


def _is_softmax(node: ir.Node) -> bool:
    return registry.family_of(node.metadata_props.get(REPLACES, node.op_type)) == "softmax"


def _whole(model: ir.Model) -> dict[str, int]:
    """Values of whole numbers, and the largest that the graph lets them have: rows of a table less one."""
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    found = {v.name or "": 0 for v in values if v.dtype in (ir.DataType.INT64, ir.DataType.INT32)}
    for node in model.graph:
        ids = node.inputs[1] if node.op_type == "Gather" else None
        table = constant(node.inputs[0]) if ids is not None else None
        if ids is not None and table is not None:
            found[ids.name or ""] = len(table) - 1
    return found


def check_given(formats: Mapping[str, Format], ranges: Mapping[str, Observed]) -> None:
    """Raises PlanError for a format that does not hold its value's calibrated range, or has no value."""
    for name, form in formats.items():
        if name not in ranges:
            raise PlanError(f"option formats speaks of value '{name}', which the lowered graph has not")
        seen = ranges[name]
        if seen.low < form.low - form.step or seen.high > form.high + form.step:
            raise PlanError(
                f"{form} holds {form.low:g} to {form.high:g}, and value '{name}' takes {seen.low:g} to "
                f"{seen.high:g} on the calibration data",
                hint="give it more integer bits, or let it saturate with overflow = 'saturate'",
            )


def parsed(formats: Mapping[str, str]) -> dict[str, Format]:
    """Formats from a plan. Raises UnsupportedError that names the value."""
    found: dict[str, Format] = {}
    for name, text in formats.items():
        try:
            found[name] = parse_format(str(text))
        except ValueError as error:
            raise UnsupportedError(f"format of value '{name}': {error}") from None
    return found
